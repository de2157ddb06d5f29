"""One frame = one CUDA graph: the frame step by the kernels of cuda_kernels.py, captured once and replayed.

Positions, columns, settings of sampling, codes and nats are on the device, so that a replay needs nothing of the host.
It draws what the frame step draws (tests hold them together), and goes on in its caches.
B rows, K codebooks, D backbone width, d depth width, H heads, G key/value heads, E head width, P slots of a cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.lm import SpeechLM
from ..model.rope import rotary_tables
from .frame_step import FrameStep, Stack, is_supported
from .fused_weights import fused_weights
from .products import Product
from .sampling import BatchSampling
from .windows import Window, window_frames

if TYPE_CHECKING:
    from .engine import Request, State

MAX_BATCH = 64  # rows; for more, the kernels would have to be others
FEW = 8  # rows that are multiplied without tensor cores
COLUMNS = 16  # whose noise and rotations are laid out at once


idle: WeakKeyDictionary[SpeechLM, dict[Any, list["GraphedFrame"]]] = WeakKeyDictionary()


def is_possible(model: SpeechLM, batch: int) -> bool:
    """Whether frames of this model can be graphs here."""
    reads_text = model.config.pattern == "depth" and model.config.depth.sees_text
    there = model.device.type == "cuda" and find_spec("triton") is not None
    return there and is_supported(model) and batch <= MAX_BATCH and not reads_text


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
    key = batch, min(size, request.num_codes or size), sampling.stop_at_end and model.config.end != "never"
    weights = fused_weights(model)
    graphs = [frame for frame in idle.get(model, {}).get(key, []) if frame.walk.weights is weights]
    frame = graphs.pop() if graphs else GraphedFrame(model, *key)
    idle.setdefault(model, {})[key] = graphs
    frame.walk.restart()
    try:
        yield frame
    finally:
        idle[model][key].append(frame)


class Products:
    """Products of [B, in] with weights that are stored [out, in]."""

    def __init__(self, batch: int, device: torch.device):
        from . import cuda_kernels

        self.kernels, self.batch = cuda_kernels, batch
        on_gpu = device.type == "cuda"
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        self.blocks = (8, 4) if on_gpu else (64, 16)  # outputs of a program; the interpreter is quick with few programs

    def shape(self, weight: Tensor) -> tuple[tuple[int], dict[str, Any]]:
        """The grid, and how the kernel divides its work. weight: [N, D]."""
        outputs, inputs = weight.shape
        few = self.batch <= FEW
        rows = power_of_two(self.batch) if few else max(16, power_of_two(self.batch))
        if few:
            block = next((n for n in self.blocks if outputs >= self.processors * n), 2)
            room = 8192 // (rows * block)  # numbers that a program holds
            block_inputs = min(power_of_two(inputs), room, 1024)
        else:
            block = 32 if outputs >= self.processors * 32 else 16
            block_inputs = min(max(16, power_of_two(inputs)), 128 if weight.element_size() == 2 else 64)
        divided = dict(D=inputs, B=self.batch, ROWS=rows, DOT=not few, BLOCK_N=block, BLOCK_D=block_inputs)
        return (-(-outputs // block),), divided

    def product(self, x: Tensor, weight: Tensor, to: Tensor, floor: float | None = None, add: bool = False) -> None:
        """to = x weight^T, of x / |x| where a norm's `floor` is given; `add`ed to what it holds."""
        grid, divided = self.shape(weight)
        self.kernels.product[grid](
            x, x.stride(0), weight, to, to.stride(0), weight.shape[0], floor or 0.0,
            NORM=floor is not None, ADD=add, **divided,
        )  # fmt: skip


class KernelStack:
    """A Stack's step by kernels, in its buffers and caches."""

    def __init__(self, stack: Stack, products: Products, places: Tensor | None = None):
        """places: [P + 1] 0, 1, 2, ...: for a stack whose position is known beforehand."""
        self.stack, self.products, self.config, self.places = stack, products, stack.config, places
        self.x = stack.x
        self.floor = self.config.dim * self.config.norm_eps
        self.end_floor = self.floor if self.config.final_norm else None  # of what follows the stack
        config, like = self.config, stack.x
        self.query = like.new_zeros(products.batch, config.num_heads * config.size_of_head)
        self.mixed, self.gated = torch.zeros_like(self.query), like.new_zeros(products.batch, config.ff_dim)
        self.layers = [
            (stored(layer.qkv), layer.qkv_bias, stored(layer.out), stored(layer.gate.both), stored(layer.down))
            for layer in stack.layers
        ]
        count = COLUMNS if places is None else len(places) - 1
        self.turns = like.new_zeros(count, config.size_of_head // 2, 2)
        index = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.slot, self.filled, self.turn, self.position = index, index + 1, index.clone(), index.clone()
        if places is not None:
            self.rotate_from(0)

    def rotate_from(self, position: int) -> None:
        """Lay out the rotations of the positions from here on."""
        if self.config.rope:
            count, size = self.turns.shape[:2]
            cos, sin = rotary_tables(
                torch.arange(position, position + count, device=self.turns.device), self.config, self.turns.dtype
            )
            self.turns.copy_(torch.stack([cos.view(count, size), sin.view(count, size)], dim=-1))

    def step(self, place: int | None = None) -> None:
        """The next position of every row, or, with `places`, position `place`."""
        config, kernels, batch = self.config, self.products.kernels, self.products.batch
        if self.places is None or place is None:
            slot, filled, turn, mask = self.slot, self.filled, self.turn, self.stack.mask
        else:
            slot = turn = self.places[place:]
            filled, mask = self.places[place + 1 :], None
        size, capacity = config.size_of_head, self.stack.capacity
        shape = dict(B=batch, H=config.num_heads, G=config.num_kv_heads, E=size, P=capacity)
        for (qkv, bias, out, gate_up, down), cache in zip(self.layers, self.stack.caches, strict=True):
            grid, divided = self.products.shape(qkv)
            kernels.heads[grid](
                self.x, self.x.stride(0), qkv, qkv if bias is None else bias, self.query, cache, slot, self.turns, turn,
                self.floor, BIAS=bias is not None, ROPE=config.rope, **divided | shape,
            )  # fmt: skip
            kernels.attend[(batch, config.num_heads)](
                self.query, cache, cache if mask is None else mask, 0 if mask is None else mask.stride(0),
                slot, filled, self.mixed, size**-0.5, MASK=mask is not None,
                BLOCK_P=16 if self.places is not None else 64, BLOCK_E=power_of_two(size), **shape,
            )  # fmt: skip
            self.products.product(self.mixed, out, self.x, add=True)
            grid, divided = self.products.shape(gate_up[: config.ff_dim])
            kernels.gated[grid](
                self.x, self.x.stride(0), gate_up, self.gated, config.ff_dim, self.floor, **divided
            )
            self.products.product(self.gated, down, self.x, add=True)


class GraphedFrame:
    """Frames of one batch in which every code is drawn; the other steps of a generation are the FrameStep's."""

    def __init__(self, model: SpeechLM, batch: int, num_codes: int, can_end: bool):
        """can_end: whether rows may end before others, after which their codes are ABSENT."""
        capacity, device = window_frames(model.config) + max(model.config.delays) + 1, model.device
        walk = self.walk = FrameStep(model, batch, capacity)
        self.model, self.num_codes, self.can_end = model, num_codes, can_end
        self.products = Products(batch, device)
        self.backbone, self.depth = KernelStack(walk.backbone, self.products), None
        if walk.depth is not None:
            places = torch.arange(walk.depth.stack.capacity + 1, device=device)
            self.depth = KernelStack(walk.depth.stack, self.products, places)
        self.sizes = [model.num_classes] + [model.codebook_size] * (model.num_codebooks - 1)
        self.starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.heads = {k: stored(head) for k, head in walk.weights.heads.items() if k >= 0}
        if walk.weights.depth is not None:
            first = walk.depth.decoder.first
            self.heads |= {first + k: stored(head) for k, head in enumerate(walk.weights.depth.heads)}
            self.project = stored(walk.weights.depth.project)
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
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.frame()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.frame()

    def takes(self, state: "State", window: Window, column: int) -> bool:
        """Whether every code of the step at `column` is drawn, and no text."""
        request, first = state.request, max(window.first, state.num_prompt_frames)
        scores_text = request.draw_text or (request.new_text is not None and self.model.predicts_text)
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
            self.graph.replay()
        self.walk.position += 1
        self.walk.backbone.position += 1
        self.walk.backbone.num_used = max(self.walk.backbone.num_used, self.walk.backbone.position)
        self.column_on_device = column + 1
        self.record(state, column)

    def begin(self, state: "State", column: int, sampling: BatchSampling) -> None:
        """Go on from where the walk stands."""
        walk, stack = self.walk, self.backbone
        self.indices.copy_(walk.rows)
        self.text_index.copy_(walk.text_row)
        self.end.copy_(state.end)
        self.column.fill_(column)
        for k, limits in enumerate(sampling.codebooks):
            for place, value in enumerate(limits):
                self.settings[:, k, place] = value.squeeze(1) if isinstance(value, Tensor) else value
        position, capacity = walk.backbone.position, walk.backbone.capacity
        stack.position.fill_(position)
        stack.slot.fill_(position % capacity)
        stack.filled.fill_(min(max(walk.backbone.num_used, position + 1), capacity))
        self.until = column

    def record(self, state: "State", column: int) -> None:
        """Codes and nats of a step into the grid; what the walk would know after it, for whoever goes on."""
        walk, delays = self.walk, self.model.config.delays
        if any(delays):
            for k, lag in enumerate(delays):
                state.codes[:, k, column - lag], state.nll[:, k, column - lag] = self.codes[:, k], self.nats[:, k]
        else:
            state.codes[:, :, column], state.nll[:, :, column] = self.codes, self.nats
        state.end = self.end
        if walk.weights.text_table is not None:
            text = self.text_index.new_full((), ABSENT) if state.request.new_text is None else state.text[:, column]
            self.text_index.copy_(torch.remainder(text, self.model.text_size + 2))
        walk.rows, walk.text_row = self.indices, self.text_index

    def leave(self, state: "State") -> None:
        """Let another step go on from here, or another generation."""
        if self.column_on_device >= 0:
            self.column_on_device = -1
            state.end = self.end.clone()
            self.walk.rows, self.walk.text_row = self.indices.clone(), self.text_index.clone()
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
        weights, x = self.walk.weights, self.backbone.x
        block = min(power_of_two(x.shape[1]), 256)
        text = weights.tables if weights.text_table is None else weights.text_table
        self.products.kernels.embed[(len(x), -(-x.shape[1] // block))](
            weights.tables, self.indices, text, self.text_index, x, x.stride(0), x.shape[1],
            self.model.codebook_size + 2, K=self.model.num_codebooks, TEXT=weights.text_table is not None, BLOCK=block,
        )  # fmt: skip

    def begin_depth(self, depth: KernelStack) -> None:
        """The backbone's word, and the position that takes no code, where there is one."""
        condition = self.walk.depth.condition
        self.products.product(self.backbone.x, self.project, condition, self.backbone.end_floor)
        if self.walk.depth.decoder.codeless:
            depth.x.copy_(condition)
            depth.step(0)

    def draw(self, k: int) -> None:
        """Codebook k: its logits, its code and nats, and, with a depth decoder, the position that takes the code."""
        model, depth, logits = self.model, self.depth, self.outputs[k]
        by_depth = depth is not None and k >= self.walk.depth.decoder.first
        source = depth if by_depth else self.backbone
        self.products.product(source.x, self.heads[k], logits, source.end_floor)
        feeds = depth is not None and k < model.num_codebooks - 1
        table, condition, x = logits, logits, logits  # not looked at
        adds = False
        if feeds:
            decoder = self.walk.depth.decoder
            table, condition, x = self.walk.weights.depth.tables[k], self.walk.depth.condition, depth.x
            adds = decoder.config.conditioning == "add" or k + decoder.codeless == 0
        has_end = k == 0 and model.config.end == "eos"
        size = self.sizes[k]
        self.products.kernels.draw[(len(logits),)](
            logits, self.noise[:, :, self.starts[k] :], self.noise.stride(1), self.backbone.turn, len(logits),
            self.settings, self.column, self.end, self.codes, self.nats, self.indices, len(self.sizes), k,
            model.config.delays[k], table, condition, x, x.stride(0), x.shape[1], C=size, V=model.codebook_size,
            NUM_CODES=self.num_codes, ENDS=self.can_end, EOS=has_end, FEED=feeds, ADD=adds,
            BLOCK=power_of_two(size), BLOCK_X=power_of_two(x.shape[1]), num_warps=8,
        )  # fmt: skip
        if feeds:
            depth.step(k + self.walk.depth.decoder.codeless)

    def advance(self) -> None:
        stack, mask = self.backbone, self.walk.backbone.mask
        self.products.kernels.advance[(1,)](
            self.column, stack.position, stack.slot, stack.filled, stack.turn, mask, mask.stride(0), stack.stack.capacity,
            self.codes, self.end, B=len(mask), K=len(self.sizes),
            ZEROS=self.can_end and self.model.config.end == "zeros",
        )  # fmt: skip


def stored(product: Product) -> Tensor:
    """A matrix [in, out] as [out, in] rows in memory: no copy where it lies so already."""
    return product.weight.t().contiguous()


def power_of_two(n: int) -> int:
    """The least that is n or more."""
    return 1 << max(0, n - 1).bit_length()
