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
    generators: list[torch.Generator]
    nll: Tensor = field(repr=False)  # [B, K, capacity] nats
    finished: Tensor = field(repr=False)  # [B] bool, EOS was drawn


@torch.inference_mode()
def start(model: SpeechLM, prompt: Tensor | None, num_frames: int, seeds: Sequence[int]) -> State:
    """Prepare to continue `prompt` [K, T'] (or nothing) by `num_frames` frames, once for each seed.

    Every prompt code keeps its value while generating, the delayed ones included. Raises ValueError for bad codes.
    """
    batch, num_codebooks, delays = len(seeds), model.num_codebooks, model.config.delays
    prompt_frames = 0 if prompt is None else prompt.shape[1]
    capacity = prompt_frames + num_frames + max(delays)
    steps = torch.full((batch, num_codebooks, capacity), ABSENT, dtype=torch.long)
    if prompt is not None:
        model.check_codes(prompt[None])
        for k, lag in enumerate(delays):
            steps[:, k, lag : lag + prompt_frames] = prompt[k]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    cache = KVCache(model.config.backbone_config, batch, capacity + 1, model.head_0.weight)
    nll = torch.zeros(batch, num_codebooks, capacity)
    state = State(cache, steps, 0, generators, nll, torch.zeros(batch, dtype=torch.bool))
    if prompt is not None:
        # the prompt's own nll in step order, and one pass that fills the cache up to the first step to be drawn
        prompt_nll = model(prompt[None]).nll
        for k, lag in enumerate(delays):
            state.nll[:, k, lag : lag + prompt_frames] = prompt_nll[:, k].float()
        state.position = prompt_frames
        inputs = torch.cat([torch.full_like(steps[:, :, :1], model.bos), steps[:, :, : prompt_frames - 1]], dim=2)
        model.start_step(inputs, cache)
    return state


@torch.inference_mode()
def step(model: SpeechLM, state: State, sampling: SamplingConfig, allow_eos: bool = False) -> State:
    """Generate one step of every row: draws what is not given, records the nll of what was drawn."""
    s, delays = state.position, model.config.delays
    last_frame = state.steps.shape[2] - max(delays)
    before = state.steps[:, :, s - 1 : s] if s else torch.full_like(state.steps[:, :, :1], model.bos)
    logits, context = model.start_step(before, state.cache)
    depth_cache = KVCache(model.config.depth_config, len(state.generators), model.num_codebooks, logits)
    code = torch.full_like(state.steps[:, 0, 0], ABSENT)
    for k in range(model.num_codebooks):
        if k:
            logits = model.depth_step(context, code, k, depth_cache)
        inside = 0 <= s - delays[k] < last_frame
        given = state.steps[:, k, s]
        noise = exponential_noise(state.generators, model.codebook_size + 1)[:, : logits.shape[1]]
        if not inside:
            code = given
            continue
        code = given if bool((given != ABSENT).all()) else draw(model, logits, k, sampling, noise, allow_eos)
        state.nll[:, k, s] = F.cross_entropy(logits.float(), code, reduction="none")
        if k == 0:
            state.finished |= code == model.eos
            code = code.clamp_max(model.codebook_size - 1)
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
    model: SpeechLM,
    prompt: Tensor | None,
    num_frames: int,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    stop_at_eos: bool = False,
) -> Iterator[State]:
    """Yield the state after each step until `num_frames` frames are complete (or, on request, every row has ended)."""
    state = start(model, prompt, num_frames, seeds)
    while state.position < state.steps.shape[2]:
        state = step(model, state, sampling, allow_eos=stop_at_eos)
        yield state
        if stop_at_eos and bool(state.finished.all()):
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
        codes = None if prompt is None else self.encode(prompt)
        num_frames = max(1, round(duration_s * self.codec.frame_rate))
        states = generate_codes(self.model, codes, num_frames, seeds, sampling)
        if progress:
            from tqdm import tqdm

            total = num_frames + max(self.model.config.delays)
            states = tqdm(states, total=total, unit="frame", desc=f"generate x{len(seeds)}")
        state = None
        for state in states:  # noqa: B007
            pass
        assert state is not None
        return [self._finish(state, row, codes) for row in range(len(seeds))]

    def encode(self, prompt: str | Path | tuple[np.ndarray, int]) -> Tensor:
        """Audio -> codes [K, T]. A last frame that the audio does not fill is left out: it would tell of an end."""
        if isinstance(prompt, tuple):
            audio, rate = prompt
            if rate != self.codec.sample_rate:
                import soxr

                audio = soxr.resample(np.asarray(audio, np.float32), rate, self.codec.sample_rate, "HQ")
            audio = np.asarray(audio, np.float32)
            check_usable(audio, self.codec.sample_rate, "the prompt")
        else:
            audio = load_audio(prompt, self.codec.sample_rate)
        whole = len(audio) // self.codec.hop_length * self.codec.hop_length
        return self.codec.encode(torch.from_numpy(audio[: whole or len(audio)])[None, None])[0]

    def _finish(self, state: State, row: int, prompt: Tensor | None) -> Generation:
        delays = self.model.config.delays
        codes = undelay(state.steps[row : row + 1], delays)[0]
        nll = undelay(state.nll[row : row + 1], delays)[0]
        prompt_frames = 0 if prompt is None else prompt.shape[1]
        # decoded in one go, so that the continuation joins the prompt without a seam
        audio = self.codec.decode(codes[None])[0, 0].numpy()
        cut = prompt_frames * self.codec.hop_length
        return Generation(
            audio=audio[cut:],
            prompt_audio=audio[:cut],
            sample_rate=self.codec.sample_rate,
            codes=codes.numpy(),
            nll=nll.numpy(),
            num_prompt_frames=prompt_frames,
            finish_reason="length",
        )


def check_codec(model: SpeechLM, codec: Codec, name: str) -> None:
    """Raise ValueError if `model` was trained on the codes of another codec."""
    reference = model.config.codec_reference
    if reference.fingerprint != codec.fingerprint:
        raise ValueError(
            f"{name}: the model was trained on codec '{reference.name}' ({reference.fingerprint[:12]}), "
            f"not on this '{codec.name}' ({codec.fingerprint[:12]}); give the codec it was trained with"
        )
