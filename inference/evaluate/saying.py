"""Does a model say the text that it is given, in the voice that it is given, and does it write down what it hears?

    python -m codeclm.inference.evaluate.saying DATA --language en --model MODEL

DATA is recordings with texts, and with speakers for the voices: a speaker's own, or a folder for each. For each
recording the model says its text, by itself and in the voice of another recording of the speaker, and writes the text
of the recording. whisper-base reads the recording, its round trip through the codec and what was said: its errors on
the recording are its own. Similarities are of Resemblyzer, to the recording that lent its voice, and to those that lent
the other speakers'. S samples.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import Positional, arg

from ...data.audio import AudioError
from ...data.audio_out import save_audio
from ...data.progress import progress_bar
from ...data.sources import Source
from ...model.shapes import SAYS, TAGGED, WRITES
from ..config import SAYING, EvaluateConfig, SamplingConfig
from ..generator import SpeechGenerator
from ..options import Data, Device, Model, Options, Seed, open_model
from ..request import sayable
from ..screen import log_lines, say_error
from ..sound.compare import Words, text_error_rate
from ..sound.transcribe import Transcriber, character_error_rate, spoken_words
from ..text_table import markdown_table
from .margins import right
from .quality.estimate import cell, estimate
from .quality.material import ROUND_TRIP, round_trip
from .quality.packaged import is_installed
from .quality.speaker import similarity
from .transcribed import Transcribed, with_text

MIN_VOICE_S, MAX_VOICE_S = 3.0, 10.0  # length of a voice prompt
RECORDING, SAID, IN_VOICE, WRITTEN = (
    "recording",
    "said",
    "said in the voice of another recording",
    "written by the model",
)

Embed = Callable[[np.ndarray, int], np.ndarray | None]


@dataclass
class Heard:
    """All that came of one way from a text to words, over the recordings."""

    words: list[Words] = field(default_factory=list)
    voices: list[tuple[str, np.ndarray]] = field(default_factory=list)  # the speaker it is of, and what is heard


def main(
    data: Positional[Data],
    language: Annotated[str, arg(help="language of the texts, a code such as en")] = "en",
    model: Model = "default",
    limit: Annotated[int, arg(help="use N recordings, spread evenly over those with a text")] = 50,
    out: Annotated[Path | None, arg(metavar="FOLDER", help="keep what was said as NUMBER-said.wav")] = None,
    best_of: Annotated[int, arg(help="each text is said N times, and the model chooses (codeclm say --best-of)")] = 1,
    seed: Seed = 0,
    device: Device = "auto",
    sampling: Annotated[SamplingConfig, Options] = SAYING,
) -> None:
    """Print word errors of what MODEL says and writes, and whether it keeps voices."""
    try:
        with log_lines():
            lm, transcriber = open_model(model, device, rows=best_of), Transcriber(language)
            embed = None
            if is_installed("similarity"):
                from .quality.speaker import VoiceEncoder

                embed = VoiceEncoder().embed
            print(saying_table(lm, transcriber, data, limit, seed, embed, out, sampling, best_of))
    except (ValueError, OSError, ImportError) as error:
        say_error(error)
        sys.exit(2)


def saying_table(
    lm: SpeechGenerator,
    transcriber: Transcriber,
    data: Path,
    limit: int,
    seed: int,
    embed: Embed | None = None,
    out: Path | None = None,
    sampling: SamplingConfig = SAYING,
    best_of: int = 1,
) -> str:
    """Markdown: a row for each way. Raises ValueError for a model without a text, AudioError without recordings."""
    sampling = sayable(lm, sampling)
    layout = lm.model.config.text.layout if lm.tokenizer is not None else "none"
    if layout not in {*SAYS, *WRITES}:
        raise ValueError(f"{lm.name}: neither says nor writes; train a model with --model.text.layout mixed")
    recordings, sources = with_text(data, limit, lm.codec.sample_rate)
    language, rate = str(transcriber.language), lm.codec.sample_rate
    voices = lent_voices(recordings, sources, rate) if layout in TAGGED else {}
    heard: dict[str, Heard] = {}
    for number, recording in enumerate(progress_bar(recordings, desc="say", unit="text")):
        voice = voices.get(recording.source.name)
        for way, audio, written in ways(lm, recording, layout, voice, seed, sampling, best_of):
            row = heard.setdefault(way, Heard())
            if written is None:
                written = transcriber.transcribe(audio, rate) if len(audio) else ""
                sounds = embed(audio, rate) if embed is not None and len(audio) else None
                if sounds is not None and recording.source.voice:
                    row.voices.append((recording.source.voice, sounds))
            row.words.append(Words(written, text=recording.text, language=language))
            if out is not None and way in (SAID, IN_VOICE) and len(audio):
                save_audio(out / f"{number + 1:03d}-{'said' if way == SAID else 'in-voice'}.wav", audio, rate)
    references = {}
    for recording in recordings:
        voice = voices.get(recording.source.name)
        if embed is not None and voice is not None and (found := embed(voice, rate)) is not None:
            references.setdefault(recording.source.voice, found)
    count = sum(len(spoken_words(recording.text, language)) for recording in recordings)
    usual = asdict(SamplingConfig())
    chosen = "".join(f", {name} {value}" for name, value in asdict(sampling).items() if value != usual[name])
    chosen += f", the best of {best_of}" if best_of > 1 else ""
    told = f"{len(recordings)} recordings of {data}, {count} words, seed {seed}{chosen}; heard by whisper-base"
    return "\n".join(
        [told, "", *markdown_table([HEADING, *(cells(way, row, references) for way, row in heard.items())])]
    )


HEADING = ["sound", "word errors", "character errors", "like the voice", "like others", "nearer to it than to others"]


def cells(way: str, row: Heard, references: dict[str, np.ndarray]) -> list[str]:
    """references: speaker -> the recording that lends the voice, as heard [256]."""
    config = EvaluateConfig()
    own, other, nearer = [], [], []
    for speaker, voice in row.voices if way in (RECORDING, ROUND_TRIP, IN_VOICE) else ():
        if speaker not in references:
            continue
        mine = similarity(voice, references[speaker])
        theirs = np.array([similarity(voice, heard) for name, heard in references.items() if name != speaker])
        own.append(mine)
        if len(theirs):
            other.append(float(theirs.mean()))
            nearer.append(float(right(mine - theirs).mean()))
    shown = [
        cell(estimate(own, config), ".2f"),
        cell(estimate(other, config), ".2f"),
        cell(estimate(nearer, config), ".0%"),
    ]
    rates = [f"{text_error_rate(row.words, *rate):.1%}" for rate in ((), (character_error_rate,))]
    return [way, *rates, *shown]


def ways(
    lm: SpeechGenerator,
    recording: Transcribed,
    layout: str,
    voice: np.ndarray | None,
    seed: int,
    sampling: SamplingConfig,
    best_of: int,
) -> Iterator[tuple[str, np.ndarray, str | None]]:
    """Name, audio [S] and, where whisper is not asked, the words."""
    yield RECORDING, recording.audio, None
    yield ROUND_TRIP, round_trip(lm, recording.audio), None
    if layout in SAYS:
        yield SAID, lm.say(recording.text, seed=seed, sampling=sampling, best_of=best_of).audio, None
    if layout in TAGGED and voice is not None:
        lent = voice, lm.codec.sample_rate
        yield IN_VOICE, lm.say(recording.text, lent, seed, sampling, best_of=best_of).audio, None
    if layout in WRITES:
        yield WRITTEN, recording.audio[:0], lm.transcribe((recording.audio, lm.codec.sample_rate))


def lent_voices(recordings: Sequence[Transcribed], sources: Sequence[Source], rate: int) -> dict[str, np.ndarray]:
    """Name of a recording -> another one of its speaker [S]: the first after it that is no shorter than a voice is."""
    places = {source.name: number for number, source in enumerate(sources)}
    speakers: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        speakers.setdefault(source.voice, []).append(number)
    found = {}
    for recording in recordings:
        if not recording.source.voice:
            continue
        own = places[recording.source.name]
        others = [number for number in speakers[recording.source.voice] if number != own]
        for number in sorted(others, key=lambda other: (other < own, other)):
            try:
                audio = sources[number].load(rate)
            except AudioError:
                continue
            if len(audio) >= MIN_VOICE_S * rate:
                found[recording.source.name] = audio[: round(MAX_VOICE_S * rate)]
                break
    return found


if __name__ == "__main__":
    tyro.cli(main, prog="python -m codeclm.inference.evaluate.saying")
