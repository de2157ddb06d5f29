"""Recordings as a language model hears them: rendered by its codec, with its surprise, their words, and what follows.

S samples, T frames, K codebooks.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ...data.audio import AudioError, load_audio
from ...data.progress import progress_bar
from ...data.store_writer import Utterance, commit_store, write_shard
from ...data.token_store import TokenStore
from ...model.codec_reference import CodecReference
from ...model.files import readable
from ..codec.report import codebook_use
from ..evaluate.score import frame_nll
from ..generation import Generation
from ..generator import SpeechGenerator
from ..sound.transcribe import Transcriber
from ..windows import window_frames, windows
from .config import ReportConfig
from .page import Page, Section, Table
from .tracks import Sound, Word


def recordings_page(lm: SpeechGenerator, paths: Sequence[Path], config: ReportConfig = ReportConfig()) -> Page:
    """The page of some recordings. One that cannot be used is named. Raises AudioError if none can."""
    transcriber = Transcriber() if config.asr else None
    rate, sections, unusable = lm.codec.sample_rate, [], []
    for path in progress_bar(paths, desc="report", unit="recording", delay=2):
        try:
            audio = load_audio(path, rate)
        except AudioError as error:
            unusable.append(str(error))
            continue
        sections.append(_section(lm, readable(path.name), audio, config, transcriber))
    if not sections:
        raise AudioError(unusable[0] if unusable else "no recording was given")
    notes = [
        f"As {lm.name} hears it: codes of the codec {lm.codec.name}, and the bits that each costs the model. "
        "Click into a picture to hear from there; with the keyboard, arrow keys move and space plays.",
        *(f"skipped {reason}" for reason in unusable),
    ]
    return Page("What the model hears", notes, sections)


def _section(
    lm: SpeechGenerator, name: str, audio: np.ndarray, config: ReportConfig, transcriber: Transcriber | None
) -> Section:
    rate = lm.codec.sample_rate
    shown = audio[: round(config.limit_s * rate)]
    codes = lm.encode((shown, rate), math.inf)
    nll = _surprise(lm, codes)
    language = None if transcriber is None else transcriber.detect_language(shown, rate)
    rendering = lm.codec.decode(codes[None])[0, 0].cpu().numpy()[: len(shown)]
    recording = _heard(Sound("recording", shown, rate, _lengths(audio, shown, rate)), transcriber, language)
    bits = nll / math.log(2)
    raw = lm.codec.frame_rate * len(bits) * math.log2(lm.codec.codebook_size)
    rendered = Sound(
        "what is left after the codec",
        rendering,
        rate,
        f"{bits.sum() / len(rendering) * rate:.0f} bits/s by the model; the codes alone have {raw:.0f}",
        lm.codec.frame_rate,
        codes.cpu().numpy(),
        bits,
    )
    sounds = [recording, _heard(rendered, transcriber, language)]
    prompt = shown[: round(config.prompt_s * rate)]
    if config.continuations:
        seeds = range(config.seed, config.seed + config.continuations)
        for made in lm.generate_many((prompt, rate), config.duration, seeds):
            sounds.append(_heard(_continuation(lm, made), transcriber, language))
    return Section(name, (), sounds, [_codebooks(codes.cpu().numpy(), nll, lm.codec.codebook_size)])


def _surprise(lm: SpeechGenerator, codes: Tensor) -> np.ndarray:
    """codes [K, T] -> nats [K, T]."""
    with tempfile.TemporaryDirectory() as folder:
        codec = CodecReference.of(lm.codec)
        utterance = Utterance("recording", codes.shape[1] * lm.codec.hop_length, codes.T.cpu().numpy())
        commit_store(Path(folder), codec, [write_shard(Path(folder), 0, [utterance], codec)])
        seen = windows(codes.shape[1], window_frames(lm.model.config))
        return np.concatenate(frame_nll(lm.model, TokenStore(folder), [(0, window) for window in seen]), axis=1)


def _continuation(lm: SpeechGenerator, made: Generation) -> Sound:
    prompt_s = len(made.prompt_audio) / made.sample_rate
    bits = made.nll / math.log(2)
    mean = bits[:, made.num_prompt_frames :].sum(axis=0).mean() * lm.codec.frame_rate
    new_s = len(made.audio) / made.sample_rate
    about = f"seed {made.seed}: the prompt up to {prompt_s:.1f} s, then {new_s:.1f} s by the model, {mean:.0f} bits/s"
    audio = np.concatenate([made.prompt_audio, made.audio])
    return Sound(
        f"continuation {made.seed}", audio, made.sample_rate, about, lm.codec.frame_rate, made.codes, bits, prompt_s
    )


def _heard(sound: Sound, transcriber: Transcriber | None, language: str | None) -> Sound:
    if transcriber is None:
        return sound
    words = [Word(*word) for word in transcriber.words(sound.audio, sound.sample_rate, language)]
    return replace(sound, words=words, transcript=" ".join(word.text for word in words))


def _lengths(audio: np.ndarray, shown: np.ndarray, rate: int) -> str:
    whole = f"{len(audio) / rate:.1f} s"
    return whole if len(shown) == len(audio) else f"the first {len(shown) / rate:.0f} s of {whole}"


def _codebooks(codes: np.ndarray, nll: np.ndarray, codebook_size: int) -> Table:
    rows = [["codebook", "entries used", "perplexity of use", "the model's perplexity", "bits a frame"]]
    for k, (row, nats) in enumerate(zip(codes, nll, strict=True)):
        use = codebook_use(np.bincount(row, minlength=codebook_size))
        cells = f"{use.used_share:.1%}", f"{use.perplexity:.1f}", f"{np.exp(nats.mean()):.1f}"
        rows.append([str(k), *cells, f"{nats.mean() / math.log(2):.2f}"])
    return Table("Codebooks in this recording", rows)
