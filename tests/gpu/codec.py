"""Codecs on the device: the CPU's codes to the last one, whole, batched and streamed; its audio to a tolerance."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from codeclm.inference.codec.contract import PROPERTIES, Broken, chunkings, probe, stream
from codeclm.inference.codec.random_codecs import EVERY_KIND, load_tiny
from codeclm.model.codecs import Codec

from .harness import Reading, difference, num_different
from .setting import Setting

AUDIO = 1e-3  # of the peak


def clips(setting: Setting) -> dict[str, Tensor]:
    """Name -> [1, 1, S]: human speech, and noise whose codes hang by a hair more often."""
    codec = setting.codec
    frames = setting.amount("noise_s", 20, 2) * codec.sample_rate // codec.hop_length
    return {"speech": setting.speech, "noise": probe(codec, frames * codec.hop_length)}


def codes_as_cpu(setting: Setting) -> Iterator[Reading]:
    here, there = setting.codec, setting.there(setting.codec)
    for name, audio in clips(setting).items():
        expected, moved = here.encode(audio), audio.to(setting.device)
        unit = f"of {expected.numel()} codes differ"
        yield Reading(f"{name}, whole", num_different(there.encode(moved), expected), 0, unit)
        lengths = [audio.shape[-1], audio.shape[-1] // 2]
        batch = there.encode(moved.repeat(2, 1, 1), lengths)
        half = here.encode(audio[..., : lengths[1]])
        yield Reading(f"{name}, first row of a batch", num_different(batch[:1], expected), 0, unit)
        yield Reading(f"{name}, padded row", num_different(batch[1:, :, : half.shape[-1]], half), 0, unit)
        for chunks in chunkings(audio.shape[-1], here.hop_length):
            streamed = stream(there.streaming_encoder(), moved.split(chunks, dim=-1))
            yield Reading(f"{name}, streamed in {len(chunks)} chunks", num_different(streamed, expected), 0, unit)


def audio_as_cpu(setting: Setting) -> Iterator[Reading]:
    here, there = setting.codec, setting.there(setting.codec)
    expected, codes = here.decode(setting.codes), setting.codes.to(setting.device)
    peak = float(expected.abs().max())
    yield Reading("decoded at once", difference(there.decode(codes), expected) / peak, AUDIO, "of the peak")
    streamed = stream(there.streaming_decoder(), codes.split(1, dim=-1))
    yield Reading("decoded frame by frame", difference(streamed, expected) / peak, AUDIO, "of the peak")


def contract(setting: Setting) -> Iterator[Reading]:
    """Property by property, as `codeclm codec check` prints it: 0 where it holds."""
    yield from kept(setting.there(setting.codec), "spectral, embedded")


def contract_of_every_kind(setting: Setting) -> Iterator[Reading]:
    """Those of its properties that a device decides. Only our own codec promises the same codes on the CPU."""
    for kind in EVERY_KIND:
        here = load_tiny(kind)
        there, audio = setting.there(here), probe(here, 50 * here.hop_length)
        yield from kept(there, f"{kind}, random weights", {"fingerprint", "long file", "float32"})
        codes = here.encode(audio)
        share = num_different(there.encode(audio.to(setting.device)), codes) / codes.numel()
        yield Reading(f"{kind}, random weights: codes that are not the CPU's", share, unit="share")


@torch.no_grad()
def kept(codec: Codec, name: str, but: Collection[str] = ()) -> Iterator[Reading]:
    for property, check in PROPERTIES.items():
        if property in but:
            continue
        complaint = ""
        try:
            check(codec)
        except Broken as error:
            complaint = str(error)
        yield Reading(f"{name}: {property}", math.inf if complaint else 0.0, 0, "", complaint)
