"""One frame = one CUDA graph: the frame step by the kernels of cuda_kernels.py, captured once and replayed.

Positions, columns, settings of sampling, codes and nats are on the device, so that a replay needs nothing of the host.
It draws what the frame step draws (tests hold them together), and goes on in its caches.
B rows, K codebooks, D backbone width, d depth width, H heads, G key/value heads, E head width, P slots of a cache.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.lm import SpeechLM
from .cuda_stack import COLUMNS, KernelDepth, KernelStack, Launcher, padded, power_of_two, stored
from .frame_step import FrameStep, is_supported
from .fused_weights import fused_weights
from .sampling import BatchSampling
from .step import can_end
from .windows import Window, window_frames

if TYPE_CHECKING:
    from .grid import Request, State

MAX_BATCH = 64  # rows; for more, the kernels would have to be others

log = logging.getLogger(__name__)
hopeless: WeakSet[SpeechLM] = WeakSet()  # models whose frames could not be made graphs


def is_possible(model: SpeechLM, batch: int) -> bool:
    """Whether frames of this model can be graphs here."""
    depth = model.config.depth
    does_more = model.config.pattern == "depth" and (depth.sees_text or depth.group_size > 1)
    there = model.device.type == "cuda" and model.dtype == torch.float32 and find_spec("triton") is not None
    return there and model not in hopeless and is_supported(model) and batch <= MAX_BATCH and not does_more


@contextmanager
def graphed(
    model: SpeechLM, request: "Request", sampling: BatchSampling, batch: int
) -> Iterator["GraphedFrame | None"]:
    """A graph of this model's frames that nobody else uses; kept for the next one, until a weight changes.

    None where there can be none, or where a step does more than draw codes.
    """
    does_more = sampling.is_guided or sampling.repetition_frames or sampling.endless is not None
    if does_more or request.new_codes is not None or not is_possible(model, batch):
        yield None
        return
    size = model.codebook_size
    key = batch, min(size, request.num_codes or size), can_end(model, sampling)
    weights = fused_weights(model)
    idle = idle_graphs(model)
    graphs = [frame for frame in idle.get(key, []) if frame.walk.weights is weights]
    frame = graphs.pop() if graphs else made(model, *key)
    if frame is None:
        yield None
        return
    idle[key] = graphs
    frame.walk.restart()
    try:
        yield frame
    finally:
        idle[key].append(frame)


class Idle(dict[Any, list["GraphedFrame"]]):
    """Graphs that nobody uses, kept with their model and gone with it; a copy of the model has none of them."""

    def __deepcopy__(self, memo: Any) -> "Idle":
        return Idle()

    def __reduce__(self) -> Any:
        return Idle, ()


def idle_graphs(model: SpeechLM) -> Idle:
    """Lists of them, each under what its graphs were made for."""
    return vars(model).setdefault("_idle_graphs", Idle())


def made(model: SpeechLM, batch: int, num_codes: int, can_end: bool) -> "GraphedFrame | None":
    """None where the kernels cannot be compiled or launched; that is told once, and not tried again with this model."""
    try:
        return GraphedFrame(model, batch, num_codes, can_end)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, or a card that Triton does not know: whatever it says
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning(f"frames are launched kernel by kernel, which takes longer: no graph of a frame ({reason})")
        hopeless.add(model)
        return None


class GraphedFrame:
    """Frames of one batch in which every code is drawn; the other steps of a generation are the FrameStep's."""

    def __init__(self, model: SpeechLM, batch: int, num_codes: int, can_end: bool):
        """can_end: whether rows may end before others, after which their codes are ABSENT."""
        capacity, device = window_frames(model.config) + max(model.config.delays) + 1, model.device
        walk = self.walk = FrameStep(model, batch, capacity, looks_ahead=False)
        self.model, self.num_codes, self.can_end = model, num_codes, can_end
        self.launcher = Launcher(batch, device)
        self.backbone = KernelStack(walk.backbone, self.launcher)
        weights, gaps, size = walk.weights, model.config.gaps, model.codebook_size + 1
        gain = weights.stack.gain
        self.depth = None if walk.depth is None else KernelDepth(walk.depth, self.launcher, gain, gaps)
        # as the kernels index them: ABSENT has a row of its own, the last one
        self.tables = padded(weights.tables[: model.num_codebooks * size].unflatten(0, (-1, size)), gaps).flatten(0, 1)
        self.text_table = None if weights.text_table is None else padded(weights.text_table)
        self.sizes = [model.num_classes] + [model.codebook_size] * (model.num_codebooks - 1)
        self.starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.heads = {k: stored(head, gain) for k, head in weights.heads.items() if k >= 0}
        zeros, like = torch.zeros, self.backbone.x
        self.indices = zeros(batch, model.num_codebooks, dtype=torch.int64, device=device)
        self.text_index = zeros(batch, dtype=torch.int64, device=device)
        self.codes, self.nats = torch.zeros_like(self.indices), like.new_zeros(batch, model.num_codebooks)
        self.end, self.column = torch.zeros_like(self.text_index), zeros(1, dtype=torch.int64, device=device)
        self.settings = like.new_zeros(batch, model.num_codebooks, 4)
        self.noise = like.new_zeros(COLUMNS, batch, sum(self.sizes))
        self.outputs = [like.new_zeros(batch, size) for size in self.sizes]
        self.until = 0  # columns before this one are laid out
        self.column_on_device = -1  # the next step's, as the device knows it
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":  # a CPU runs the kernels in Triton's interpreter
            self.capture()

    def capture(self) -> None:
        """Compile the kernels and record them. Whatever the caches held is lost."""
        with torch.cuda.device(self.model.device):  # kernels are launched on the current one
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.frame()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.frame()

    def takes(self, state: "State", window: Window, column: int) -> bool:
        """Whether every code of the step at `column` is drawn, and no text; nor is any told ahead."""
        request, first = state.request, max(window.first, state.num_prompt_frames)
        is_told = request.new_text is not None and (self.model.predicts_text or self.model.config.num_recent_tokens > 0)
        scores_text = request.draw_text or is_told
        frames = [column - lag for lag in self.model.config.delays]
        return request.draw_codes and not scores_text and first <= min(frames) and max(frames) < window.stop

    def take(self, state: "State", column: int, sampling: BatchSampling) -> None:
        """The step at `column`, into the state."""
        if self.column_on_device != column:
            self.begin(state, column, sampling)
        if column >= self.until:
            self.noise.copy_(state.noise.of(column, COLUMNS))
            self.backbone.rotate_from(self.walk.backbone.position)
            self.backbone.turn.zero_()
            self.until = column + COLUMNS
        if self.graph is None:
            self.frame()
        else:
            with torch.cuda.device(self.model.device):
                self.graph.replay()
        self.walk.position += 1
        self.walk.backbone.position += 1
        self.walk.backbone.num_used = max(self.walk.backbone.num_used, self.walk.backbone.position)
        self.column_on_device = column + 1
        self.record(state, column)

    def begin(self, state: "State", column: int, sampling: BatchSampling) -> None:
        """Go on from where the walk stands."""
        walk, stack = self.walk, self.backbone
        self.indices.copy_(torch.remainder(walk.codes, self.model.codebook_size + 2))
        self.text_index.copy_(torch.remainder(walk.text, self.model.text_size + 2))
        self.end.copy_(state.end)
        self.column.fill_(column)
        self.settings.copy_(settings_of(sampling, self.settings))
        position, capacity = walk.backbone.position, walk.backbone.capacity
        stack.position.fill_(position)
        stack.slot.fill_(position % capacity)
        stack.filled.fill_(min(max(walk.backbone.num_used, position + 1), capacity))
        self.until = column

    def record(self, state: "State", column: int) -> None:
        """Codes and nats of a step into the grid; what the walk would know after it, for whoever goes on."""
        delays = self.model.config.delays
        if any(delays):
            for k, lag in enumerate(delays):
                state.codes[:, k, column - lag], state.nll[:, k, column - lag] = self.codes[:, k], self.nats[:, k]
        else:
            state.codes[:, :, column], state.nll[:, :, column] = self.codes, self.nats
        state.end = self.end
        if self.text_table is not None:
            known = None if state.request.new_text is None else state.text
            text = self.text_index.new_full((), ABSENT) if known is None else known[:, column]
            self.text_index.copy_(torch.remainder(text, self.model.text_size + 2))

    def leave(self, state: "State") -> None:
        """Let another step go on from here, or another generation."""
        if self.column_on_device >= 0:
            self.column_on_device = -1
            state.end = self.end.clone()
            absent = self.model.bos if self.model.config.gaps == "bos" else ABSENT
            codes = torch.where(self.indices > self.model.codebook_size, absent, self.indices)
            text = torch.where(self.text_index > self.model.text_size, ABSENT, self.text_index)
            self.walk.set_before(slice(None), codes, text)
            self.walk.backbone.slot.copy_(self.backbone.slot)

    # --- what is captured ---

    def frame(self) -> None:
        """Every operation of a frame, all of it on the device."""
        self.embed()
        self.backbone.step()
        if self.depth is not None:
            self.begin_depth(self.depth)
        for k in range(self.model.num_codebooks):
            self.draw(k)
        self.advance()

    def embed(self) -> None:
        """The step before, into the backbone's x."""
        x = self.backbone.x
        block = min(power_of_two(x.shape[1]), 256)
        text = self.tables if self.text_table is None else self.text_table
        self.launcher.launch(
            "embed", (len(x), -(-x.shape[1] // block)), self.tables, self.indices, text, self.text_index, x,
            x.stride(0), x.shape[1], self.model.codebook_size + 2,
            K=self.model.num_codebooks, TEXT=self.text_table is not None, BLOCK=block,
        )  # fmt: skip

    def begin_depth(self, depth: KernelDepth) -> None:
        """The backbone's word, and the position that takes no code, where there is one."""
        self.launcher.product(self.backbone.x, depth.project, depth.condition, self.backbone.end_floor)
        if depth.codeless:
            depth.stack.x.copy_(depth.condition)
            depth.stack.step(0)

    def draw(self, k: int) -> None:
        """Codebook k: its logits, its code and nats, and, with a depth decoder, the position that takes the code."""
        depth, logits = self.depth, self.outputs[k]
        if depth is not None and k >= depth.first:
            self.launcher.product(depth.stack.x, depth.heads[k - depth.first], logits, depth.stack.end_floor)
        else:
            self.launcher.product(self.backbone.x, self.heads[k], logits, self.backbone.end_floor)
        if depth is None or k == len(self.sizes) - 1:
            self.choose(k, logits, logits, logits, False, False)
        else:
            place = k + depth.codeless
            self.choose(k, depth.tables[k], depth.condition, depth.stack.x, True, depth.adds or place == 0)
            depth.stack.step(place)

    def choose(self, k: int, table: Tensor, condition: Tensor, x: Tensor, feeds: bool, adds: bool) -> None:
        """Draw codebook k. feeds: the code's row of `table` becomes x, with the condition if it `adds`."""
        config, logits, size = self.model.config, self.outputs[k], self.sizes[k]
        noise = self.noise[:, :, self.starts[k] :]
        self.launcher.launch(
            "draw", (len(logits),), logits, noise, noise.stride(1), self.backbone.turn, len(logits), self.settings,
            self.column, self.end, self.codes, self.nats, self.indices, len(self.sizes), k, config.delays[k],
            table, condition, x, x.stride(0), x.shape[1], C=size, V=config.codebook_size, NUM_CODES=self.num_codes,
            ENDS=self.can_end, EOS=k == 0 and config.end == "eos", FEED=feeds, ADD=adds, BLOCK=power_of_two(size),
            BLOCK_X=power_of_two(x.shape[1]), warps=max(1, power_of_two(size) // 1024),
        )  # fmt: skip

    def advance(self) -> None:
        stack, mask = self.backbone, self.walk.backbone.mask
        self.launcher.launch(
            "advance", (1,), self.column, stack.position, stack.slot, stack.filled, stack.turn, COLUMNS, mask,
            mask.stride(0), stack.stack.capacity, self.codes, self.end, B=len(mask), K=len(self.sizes),
            ZEROS=self.can_end and self.model.config.end == "zeros",
        )  # fmt: skip


def settings_of(sampling: BatchSampling, like: Tensor) -> Tensor:
    """[B, K, 4] temperature, top_k, top_p and min_p."""
    numbers = [[0.0 if isinstance(values, Tensor) else values for values in limits] for limits in sampling.codebooks]
    settings = torch.tensor(numbers, dtype=like.dtype).to(like.device).repeat(len(like), 1, 1)
    for k, limits in enumerate(sampling.codebooks):
        for place, values in enumerate(limits):
            if isinstance(values, Tensor):  # rows differ
                settings[:, k, place] = values.squeeze(1)
    return settings
