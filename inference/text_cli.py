"""The verbs between text and speech: `say` and `transcribe`."""

import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Annotated, cast

from tyro.conf import Positional, arg

from ..model.shapes import SAYS, TAGGED, WRITES
from .argument_checks import (
    check_audio_out,
    check_device,
    check_distinct,
    check_duration,
    check_layout,
    check_model,
    check_number,
    check_prompt,
    check_recording,
    check_seeds,
)
from .config import SAYING, BeamConfig, SamplingConfig
from .options import AudioFile, Device, Model, Options, Seed, Threads, Weights, open_model
from .passage import TextFormat, lines
from .threads import check_threads


def say(
    text: Positional[Annotated[str, arg(metavar="TEXT", help="text to say; - for stdin")]],
    voice: Annotated[
        Path | None,
        arg(
            metavar="AUDIO",
            help="somebody to sound like (or a file of `prefix`), for a model of the text layout mixed or timed",
        ),
    ] = None,
    out: Annotated[Path, arg(help="the file to write: .wav, .flac, .ogg, .opus or .mp3")] = Path("said.wav"),
    model: Model = "default",
    duration: Annotated[
        float | None,
        arg(metavar="S", help="stop after N seconds, if the model has not ended (20, or 0.2 for each character)"),
    ] = None,
    best_of: Annotated[
        int,
        arg(help="draw N readings, and take the one in which the model, writing down what it hears, finds TEXT best"),
    ] = 1,
    seed: Seed = 0,
    weights: Weights = "float32",
    device: Device = "auto",
    threads: Threads = None,
    sampling: Annotated[SamplingConfig, Options] = SAYING,
) -> None:
    """Say TEXT, in the voice of a recording where one is given, until the model ends it."""
    check_text(text)
    check_seeds(seed)
    check_number("--best-of", best_of, 1)
    if duration is not None:
        check_duration(duration)
    check_device(device)
    check_threads(threads)
    check_audio_out(out)
    check_distinct(out, [voice])
    check_prompt(voice)
    if sampling.stop_at_end:
        raise ValueError("--stop-at-end: of no use with say, which always stops there")
    config = check_model(model)
    check_layout("say", model, config, *SAYS)
    if voice is not None:
        check_layout("--voice", model, config, *TAGGED)
    if best_of > 1:
        check_layout("--best-of", model, config, *TAGGED)
    if text == "-":
        text = "".join(stdin_parts())
        check_text(text)
    said = open_model(model, device, threads, weights, best_of).say(
        text, voice, seed, sampling, True, duration, best_of
    )
    said.save(out)
    seconds = len(said.audio) / said.sample_rate
    print(f"{out}: {seconds:.2f} s, seed {said.seed}")
    if said.finish_reason == "length":
        print(f"it had not ended after {seconds:g} s; --duration N gives it more time")


def transcribe(
    audio: Positional[AudioFile],
    model: Model = "default",
    max_s: Annotated[
        float, arg(metavar="S", help="the most that a passage lasts: AUDIO is cut where it is quiet")
    ] = 20.0,
    format: Annotated[
        TextFormat, arg(help="a line for each passage as plain text or, with its times, as JSON; subtitles: srt, vtt")
    ] = "text",
    texts: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="texts, a line each, by which words are spelled: an n-gram model is counted in them, in place of the "
            "one that MODEL may have",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    beam: Annotated[BeamConfig, Options] = BeamConfig(),
) -> None:
    """Write down what is said in AUDIO, with a model of the text layout mixed, timed or last."""
    check_number("--max-s", max_s, 0.1, unit=" s")
    check_device(device)
    check_threads(threads)
    check_recording(audio)
    check_layout("transcribe", model, check_model(model), *WRITES)
    counted = None if texts is None else lines_of(texts)
    lm = open_model(model, device, threads)
    if counted is not None and lm.tokenizer is not None:
        lm.tokenizer.ngram = lm.tokenizer.counted(counted)
    for line in lines(lm.passages(audio, max_s, beam), format):
        print(line, flush=True)


def lines_of(texts: Path) -> list[str]:
    """Raises FileNotFoundError, or ValueError for a file that is no text."""
    if not texts.is_file():
        raise FileNotFoundError(f"--texts {texts}: no such file")
    try:
        lines = [line for line in texts.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"--texts {texts}: is not UTF-8 text; convert it") from None
    if not lines:
        raise ValueError(f"--texts {texts}: holds no text; give a line for each")
    return lines


def check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("TEXT is empty; give what is to be said")


def stdin_parts() -> Iterator[str]:
    """What is written to standard input, as it comes. Raises ValueError if it is not UTF-8."""
    pipe, decoder = cast(BufferedReader, sys.stdin.buffer), getincrementaldecoder("utf-8")()
    try:
        while data := pipe.read1():
            yield decoder.decode(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise ValueError("standard input: is not UTF-8 text; convert it") from None
