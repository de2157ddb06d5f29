"""What a model's codes, nats and continuations look like on a page. S samples, T frames, K codebooks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..codec.report import codebook_use
from ..generation import Generation
from ..generator import SpeechGenerator
from ..sound.transcribe import Transcriber
from .page import Table
from .tracks import Sound, Word


def rendering(lm: SpeechGenerator, codes: np.ndarray, nll: np.ndarray, num_samples: int) -> Sound:
    """codes [K, T] with their nats [K, T] -> what the codec makes of them, `num_samples` long."""
    audio = lm.codec.decode(torch.from_numpy(codes)[None].to(lm.device))[0, 0].cpu().numpy()[:num_samples]
    bits = nll / math.log(2)
    raw = lm.codec.frame_rate * len(bits) * math.log2(lm.codec.codebook_size)
    about = f"{bits.sum(axis=0).mean() * lm.codec.frame_rate:.0f} bits/s by the model; the codes alone have {raw:.0f}"
    name = "what is left after the codec"
    return Sound(name, audio, lm.codec.sample_rate, about, lm.codec.frame_rate, codes, bits)


def continuation(lm: SpeechGenerator, made: Generation) -> Sound:
    """The prompt and what the model adds."""
    prompt_s, new_s = (len(audio) / made.sample_rate for audio in (made.prompt_audio, made.audio))
    bits = made.nll / math.log(2)
    rate = bits[:, made.num_prompt_frames :].sum(axis=0).mean() * lm.codec.frame_rate
    about = f"the prompt up to {prompt_s:.1f} s, then {new_s:.1f} s by the model, {rate:.0f} bits/s"
    audio = np.concatenate([made.prompt_audio, made.audio])
    name = f"continuation, seed {made.seed}"
    return Sound(name, audio, made.sample_rate, about, lm.codec.frame_rate, made.codes, bits, prompt_s)


def sentence(lm: SpeechGenerator, said: Generation) -> Sound:
    """What the model says of a text, without anything before it."""
    bits = said.nll / math.log(2)
    rate = bits.sum(axis=0).mean() * lm.codec.frame_rate
    end = "it ends by itself" if said.finish_reason == "eos" else "it was stopped before its end"
    about = f"{len(said.audio) / said.sample_rate:.1f} s by the model, {rate:.0f} bits/s; {end}"
    return Sound("a sentence", said.audio, said.sample_rate, about, lm.codec.frame_rate, said.codes, bits)


def heard(sounds: Sequence[Sound], transcriber: Transcriber | None) -> list[Sound]:
    """The sounds with their words, in the language of the first; as they are without a transcriber."""
    if transcriber is None:
        return list(sounds)
    language = transcriber.detect_language(sounds[0].audio, sounds[0].sample_rate)
    return [_heard(sound, transcriber, language) for sound in sounds]


def _heard(sound: Sound, transcriber: Transcriber, language: str) -> Sound:
    words = [Word(*word) for word in transcriber.words(sound.audio, sound.sample_rate, language)]
    return replace(sound, words=words, transcript=" ".join(word.text for word in words))


def codebook_table(codes: np.ndarray, nll: np.ndarray, lm: SpeechGenerator) -> Table:
    """codes [K, T] with their nats [K, T] -> how evenly each codebook is used, and how well it is predicted."""
    rows = [["codebook", "entries used", "perplexity of use", "the model's perplexity", "bits a frame"]]
    for k, (row, nats) in enumerate(zip(codes, nll, strict=True)):
        use = codebook_use(np.bincount(row, minlength=lm.codec.codebook_size))
        cells = f"{use.used_share:.1%}", f"{use.perplexity:.1f}", f"{np.exp(nats.mean()):.1f}"
        rows.append([str(k), *cells, f"{nats.mean() / math.log(2):.2f}"])
    return Table("Codebooks in this recording", rows)
