"""Models in use on the device: continuations, scores and compressed files are what the CPU says of them.

K codebooks, T frames.
"""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from codeclm.inference.codec.contract import stream
from codeclm.inference.compress.codes import compress_codes, decompress_codes, predicted_bits
from codeclm.inference.config import EvaluateConfig, SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.model.lm import SpeechLM

from .codec import AUDIO
from .harness import Reading, difference, num_different
from .setting import Setting

FREE = SamplingConfig(temperature=1.0, top_k=0)
EXACT, SINGLE = 1e-9, 2e-3  # nats a code, in float64 and float32


@torch.no_grad()
def nats(model: SpeechLM, codes: Tensor) -> Tensor:
    """[B, K, T] on the CPU."""
    return model(codes.cpu()).nll


def in_float64(model: SpeechLM) -> SpeechLM:
    """A copy."""
    return nn.Module.double(deepcopy(model)).eval()


def from_codes(setting: Setting) -> Iterator[Reading]:
    """A prompt of codes, two seeds at once."""
    request = Request(setting.amount("frames", 50, 4), setting.codes[0])
    for name, bound in (("float64", EXACT), ("float32", SINGLE)):
        here = in_float64(setting.model) if name == "float64" else setting.model
        there = setting.there(here)
        found = list(generate(there, request, [0, 1], FREE))[-1]
        expected = list(generate(here, request, [0, 1], FREE))[-1]
        yield Reading(f"{name}: nats recorded", difference(found.nll, nats(here, found.codes)), bound, "nats a code")
        # the same random numbers; in float32 a near-tie may be drawn otherwise
        different, most = num_different(found.codes, expected.codes), 0 if bound == EXACT else None
        yield Reading(f"{name}: codes drawn otherwise than by the CPU", different, most)


def from_audio(setting: Setting) -> Iterator[Reading]:
    """A prompt of audio: what `SpeechGenerator.generate` gives, and the audio of its codes streamed."""
    codec = setting.there(setting.codec)
    lm = SpeechGenerator(setting.there(setting.model), codec, "there")
    spoken = lm.generate(setting.prompt, duration_s=setting.amount("frames", 50, 4) / codec.frame_rate, sampling=FREE)
    codes = torch.from_numpy(spoken.codes)[None]
    prompt = spoken.num_prompt_frames
    yield Reading("codes of the prompt", num_different(codes[:, :, :prompt], setting.codes[:, :, :prompt]), 0, "differ")
    recorded = torch.from_numpy(spoken.nll)[None]
    yield Reading("nats recorded", difference(recorded, nats(setting.model, codes)), SINGLE, "nats a code")
    whole = torch.from_numpy(spoken.audio)
    expected = setting.codec.decode(codes)[0, 0]
    peak, new = float(expected.abs().max()), len(expected) - len(whole)
    yield Reading("audio, against the CPU's", difference(whole, expected[new:]) / peak, AUDIO, "of the peak")
    streamed = stream(codec.streaming_decoder(), codes.to(setting.device).split(1, dim=-1))[0, 0]
    yield Reading("audio streamed frame by frame", difference(streamed, expected) / peak, AUDIO, "of the peak")


def scored(setting: Setting) -> Iterator[Reading]:
    store = setting.store("scored", 4, setting.amount("score_frames", 600, 20))  # longer than the context on a GPU
    there = setting.there(setting.model)
    frames = sum(store.num_frames.tolist())

    def bits(model: SpeechLM, config: EvaluateConfig = EvaluateConfig()) -> tuple[Tensor, float]:
        nll = torch.from_numpy(score_store(model, store, config, progress=False).nll)
        return nll, float(nll.sum()) / frames / math.log(2)

    expected, here = bits(setting.model)
    found, _ = bits(there)
    yield Reading("float32, nats of each codebook of each utterance", difference(found / expected, found / found), 1e-4)
    _, half = bits(there, EvaluateConfig(bf16=True))
    yield Reading("bfloat16, bits a frame", abs(half / here - 1), 0.01, "relative")


def compressed(setting: Setting) -> Iterator[Reading]:
    """Float64, coded on the device; read back there, and on the CPU as another machine would."""
    here = in_float64(setting.model)
    there = setting.there(here)
    rows = [part[0] for part in setting.codes.split(setting.amount("coded_frames", 25, 5), dim=-1)][:2]
    payloads = compress_codes(there, rows, batch_size=2)
    lengths = [row.shape[1] for row in rows]
    for name, model in (("there", there), ("by the CPU", here)):
        back = decompress_codes(model, payloads, lengths)
        different = sum(num_different(a, b) for a, b in zip(back, rows, strict=True))
        yield Reading(f"codes read back {name}", different, 0, "differ")
    size, expected = 8 * sum(map(len, payloads)), sum(predicted_bits(there, row) for row in rows)
    # finishing a file takes a byte or two, and each distribution that hangs by rounding 20 bits
    yield Reading("size beyond the prediction", abs(size - expected), 0.01 * expected + 32 * len(rows), "bits")
