"""Generation: prompt codes in, continued codes and audio out. State is an object passed along, never a mode.

B batch, K codebooks, T frames, V codebook size. One step = one pass of the backbone, then codebook 0, then one pass of
the depth decoder for each other codebook.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.audio import check_usable, load_audio, save_wav
from ..data.progress import progress_bar
from ..model.codecs import Codec
from ..model.delay_pattern import ABSENT, undelay
from ..model.lm import SpeechLM
from ..model.transformer import KVCache
from .config import SamplingConfig
from .sampling import exponential_noise, sample

Prompt = str | Path | tuple[np.ndarray, int] | None


@dataclass
class Generation:
    """A continuation, the prompt it continues, and how surprising each code was to the model."""

    audio: np.ndarray  # [S] float32, the continuation only
    prompt_audio: np.ndarray  # [S'] float32, the prompt as the codec renders it; empty without a prompt
    sample_rate: int  # Hz
    codes: np.ndarray  # [K, T], prompt and continuation
    nll: np.ndarray  # [K, T] nats under the model at temperature 1
    num_prompt_frames: int
    finish_reason: str  # "length" or "eos"

    @property
    def surprise_bits(self) -> np.ndarray:
        """Bits per frame, summed over codebooks [T]."""
        return self.nll.sum(axis=0) / np.log(2)

    def save(self, path: str | Path, with_prompt: bool = False) -> None:
        """Write a WAV file of the continuation, or of the prompt followed by it."""
        audio = np.concatenate([self.prompt_audio, self.audio]) if with_prompt else self.audio
        save_wav(path, audio, self.sample_rate)


@dataclass
class State:
    """Where a batch of generations stands: what the backbone has seen, and the steps so far."""

    cache: KVCache
    steps: Tensor  # [B, K, capacity] delayed codes; position s is filled for s < position
    position: int  # the next step to be generated
    num_prompt_frames: int
    num_frames: int  # prompt and continuation, when none ends before
    generators: list[torch.Generator]
    nll: Tensor = field(repr=False)  # [B, K, capacity] nats
    end: Tensor = field(repr=False)  # [B] the frame at which EOS was drawn; num_frames where it was not


@torch.inference_mode()
def start(model: SpeechLM, prompt: Tensor | None, num_frames: int, seeds: Sequence[int]) -> State:
    """Prepare to continue `prompt` [K, T'] (or nothing) by `num_frames` frames, once for each seed.

    Every prompt code keeps its value while generating, the delayed ones included. Raises ValueError for bad codes.
    """
    batch, num_codebooks, delays = len(seeds), model.num_codebooks, model.config.delays
    prompt_frames = 0 if prompt is None else prompt.shape[1]
    total = prompt_frames + num_frames
    capacity = total + max(delays)
    steps = torch.full((batch, num_codebooks, capacity), ABSENT, device=model.device)
    nll = torch.zeros(batch, num_codebooks, capacity, device=model.device)
    cache = KVCache(model.config.backbone_config, batch, capacity + 1, model.head_0.weight)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    end = torch.full((batch,), total, device=model.device)
    state = State(cache, steps, prompt_frames, prompt_frames, total, generators, nll, end)
    if prompt is not None:
        prompt = prompt.to(model.device)
        # the prompt's own nll in step order, and one pass that fills the cache up to the first step to be drawn
        prompt_nll = model(prompt[None]).nll
        for k, lag in enumerate(delays):
            steps[:, k, lag : lag + prompt_frames] = prompt[k]
            nll[:, k, lag : lag + prompt_frames] = prompt_nll[:, k].float()
        inputs = torch.cat([torch.full_like(steps[:, :, :1], model.bos), steps[:, :, : prompt_frames - 1]], dim=2)
        model.start_step(inputs, cache)
    return state


@torch.inference_mode()
def step(model: SpeechLM, state: State, sampling: SamplingConfig, allow_eos: bool = False) -> State:
    """Generate one step of every row: draws what is not given, records the nll of what was drawn.

    A row that has ended gets no more codes than those that lag behind its end.
    """
    s = state.position
    before = state.steps[:, :, s - 1 : s] if s else torch.full_like(state.steps[:, :, :1], model.bos)
    logits, context = model.start_step(before, state.cache)
    depth_cache = KVCache(model.config.depth_config, len(state.generators), model.num_codebooks, logits)
    for k, lag in enumerate(model.config.delays):
        if k:
            logits = model.depth_step(context, state.steps[:, k - 1, s], k, depth_cache)
        # drawn whether needed or not: what a row draws depends on its seed and its position alone
        noise = exponential_noise(state.generators, model.codebook_size + 1)[:, : logits.shape[1]].to(logits.device)
        frame = s - lag
        if not 0 <= frame < state.num_frames:
            continue
        code = state.steps[:, k, s]
        if frame >= state.num_prompt_frames:
            code = draw(model, logits, k, sampling, noise, allow_eos)
            code = torch.where(frame < state.end, code, ABSENT)
        state.nll[:, k, s] = F.cross_entropy(logits.float(), code, ignore_index=ABSENT, reduction="none")
        if k == 0:
            ends = code == model.eos
            state.end = torch.where(ends, frame, state.end)
            state.nll[:, k, s].masked_fill_(ends, 0.0)
            code = code.masked_fill(ends, ABSENT)
        state.steps[:, k, s] = code
    state.position += 1
    return state


def draw(model: SpeechLM, logits: Tensor, k: int, sampling: SamplingConfig, noise: Tensor, allow_eos: bool) -> Tensor:
    """One code [B] of codebook k, or EOS where codebook 0 may end."""
    if k == 0 and not allow_eos:
        logits = logits.clone()
        logits[:, model.eos] = float("-inf")
    return sample(logits, sampling.depth_temperature if k else sampling.temperature, sampling.top_k, noise)


def generate_codes(
    model: SpeechLM, prompt: Tensor | None, num_frames: int, seeds: Sequence[int], sampling: SamplingConfig
) -> Iterator[State]:
    """Yield the state after each step until `num_frames` frames are complete, or every row has ended."""
    state = start(model, prompt, num_frames, seeds)
    lag = max(model.config.delays)
    while state.position < state.num_frames + lag:
        state = step(model, state, sampling, allow_eos=sampling.stop_at_end)
        yield state
        if sampling.stop_at_end and state.position >= int(state.end.max()) + lag:
            return


class SpeechGenerator:
    """A speech LM with its codec, ready to use; `load` makes one. Deterministic: same seed and machine, same bytes."""

    def __init__(self, model: SpeechLM, codec: Codec, name: str):
        self.model, self.codec, self.name = model.eval(), codec, name
        check_codec(model, codec, name)

    def generate(
        self,
        prompt: Prompt = None,
        duration_s: float = 8.0,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
    ) -> Generation:
        """Continue `prompt` by `duration_s` seconds; see `generate_many`."""
        return self.generate_many(prompt, duration_s, [seed], sampling, progress)[0]

    def generate_many(
        self,
        prompt: Prompt = None,
        duration_s: float = 8.0,
        seeds: Sequence[int] = (0,),
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
    ) -> list[Generation]:
        """Continue one prompt once for each seed, as one batch; each row draws from random numbers of its own.

        prompt: a path, (samples [S], sample_rate), or None to start from nothing. Raises AudioError for an unusable
        prompt, ValueError for a duration that is not positive.
        """
        if not 0 < duration_s < 24 * 3600:
            raise ValueError(f"duration must be more than 0 s and less than a day, not {duration_s}")
        codes = None if prompt is None else self.encode(prompt, sampling.max_prompt_s)
        num_frames = max(1, round(duration_s * self.codec.frame_rate))
        states = generate_codes(self.model, codes, num_frames, seeds, sampling)
        if progress:
            total = num_frames + max(self.model.config.delays)
            states = progress_bar(states, total=total, unit="frame", desc=f"generate x{len(seeds)}")
        state = None
        for state in states:  # noqa: B007
            pass
        assert state is not None
        return [self._finish(state, row) for row in range(len(seeds))]

    def encode(self, prompt: str | Path | tuple[np.ndarray, int], max_s: float = 10.0) -> Tensor:
        """The last `max_s` seconds of audio -> codes [K, T].

        A last frame that the audio does not fill is left out: it would tell of an end.
        """
        if isinstance(prompt, tuple):
            audio, rate = prompt
            if rate != self.codec.sample_rate:
                import soxr

                audio = soxr.resample(np.asarray(audio, np.float32), rate, self.codec.sample_rate, "HQ")
            audio = np.asarray(audio, np.float32)
            check_usable(audio, self.codec.sample_rate, "the prompt")
        else:
            audio = load_audio(prompt, self.codec.sample_rate)
        hop = self.codec.hop_length
        whole = len(audio) // hop * hop or len(audio)
        first = max(0, whole - round(max_s * self.codec.frame_rate) * hop)
        device = next(self.codec.parameters()).device
        return self.codec.encode(torch.from_numpy(audio[first:whole])[None, None].to(device))[0]

    def _finish(self, state: State, row: int) -> Generation:
        delays, end, cut = self.model.config.delays, int(state.end[row]), state.num_prompt_frames
        codes = undelay(state.steps[row : row + 1], delays)[0, :, :end]
        nll = undelay(state.nll[row : row + 1], delays)[0, :, :end]
        # decoded in one go, so that the continuation joins the prompt without a seam
        audio = self.codec.decode(codes[None])[0, 0].cpu().numpy() if end else np.zeros(0, np.float32)
        return Generation(
            audio=audio[cut * self.codec.hop_length :],
            prompt_audio=audio[: cut * self.codec.hop_length],
            sample_rate=self.codec.sample_rate,
            codes=codes.cpu().numpy(),
            nll=nll.cpu().numpy(),
            num_prompt_frames=cut,
            finish_reason="eos" if end < state.num_frames else "length",
        )


def check_codec(model: SpeechLM, codec: Codec, name: str) -> None:
    """Raise ValueError if `model` was trained on the codes of another codec."""
    reference = model.config.codec_reference
    if reference.fingerprint != codec.fingerprint:
        raise ValueError(
            f"{name}: the model was trained on codec '{reference.name}' ({reference.fingerprint[:12]}), "
            f"not on this '{codec.name}' ({codec.fingerprint[:12]}); give the codec it was trained with"
        )
