"""What speech a folder of shards holds: `python -m codeclm.train.recipes.embedded.survey OUT/speech/train`.

Hours and voices of each kind; of a sample by hash: pitch, level, share of silence, and whisper-base's word errors.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tyro.conf import Positional, arg

from ....data.audio import audio_blocks
from ....data.progress import progress_bar
from ....data.sources import Source, find_sources
from ....data.split import name_hash
from ....inference.sound.measures import SpeechMeasures, measure_speech
from .shards import RATE

FLAC_RATE = 60e6  # bytes of FLAC in an hour, about: tells hours where nothing is decoded


def main(
    speech: Positional[Path],
    by: Annotated[Literal["kind", "voice"], arg(help="what the rows are")] = "kind",
    sample: Annotated[int, arg(help="utterances of each row that are measured")] = 50,
    asr: Annotated[bool, arg(help="also hear the English ones with whisper-base")] = False,
) -> None:
    """Print a table of the speech in shards."""
    rows: dict[str, list[Source]] = defaultdict(list)
    for source in find_sources(speech).sources:
        rows[kind_of(source.speaker or "") if by == "kind" else source.speaker or ""].append(source)
    total = sum(source.size for sources in rows.values() for source in sources)
    print(f"| {by} | utterances | voices | share | mean s | pitch Hz (10 to 90 %) | level dBFS | silent | WER |")
    print("|---|---|---|---|---|---|---|---|---|")
    heard = 0.0
    for name, sources in sorted(rows.items()):
        chosen = sorted(sources, key=lambda source: name_hash(source.name))[:sample]
        audio = [sound(source) for source in progress_bar(chosen, desc=name, leave=False)]
        measures = [measure_speech(clip, RATE) for clip in audio]
        errors = f"{word_errors(chosen, audio):.1%}" if asr and any(is_english(source) for source in chosen) else ""
        share = sum(source.size for source in sources) / total
        heard += len(sources) * float(np.mean([measured.duration_s for measured in measures]))
        about = f"{len(sources)} | {len({source.speaker for source in sources})} | {share:.1%}"
        print(f"| {name} | {about} | {described(measures)} | {errors} |")
    print(f"\nabout {heard / 3600:.2f} h in {total / 1e6:.0f} MB of FLAC")


def kind_of(voice: str) -> str:
    """ "kokoro_af_sky~1" -> "kokoro, changed"."""
    base, mark, _ = voice.partition("~")
    kind = base.split("_")[0]
    synthetic = kind in ("heart", "kokoro", "joe", "flite", "espeak")
    return (kind if synthetic else f"human {base}") + (", changed" if mark else ", mixed" if "+" in base else "")


def is_english(source: Source) -> bool:
    return source.text is not None and kind_of(source.speaker or "").removesuffix(", changed") not in FOREIGN


FOREIGN = {f"human {name}" for name in ("allison_es", "carlo", "ivrvoice_ru", "shmyrev_ru")}


def sound(source: Source) -> np.ndarray:
    """[S] at RATE"""
    return np.concatenate(list(audio_blocks(source.open(), RATE, False, source.label)))


def described(measures: list[SpeechMeasures]) -> str:
    """The middle of each measure."""
    pitches = [measured.median_pitch_hz for measured in measures if measured.median_pitch_hz > 0] or [0.0]
    low, middle, high = np.percentile(pitches, [10, 50, 90])
    seconds = np.mean([measured.duration_s for measured in measures])
    level = np.median([measured.loudness_dbfs for measured in measures])
    silent = np.mean([measured.silent_share for measured in measures])
    return f"{seconds:.1f} | {middle:.0f} ({low:.0f} to {high:.0f}) | {level:.0f} | {silent:.0%}"


def word_errors(sources: list[Source], audio: list[np.ndarray]) -> float:
    """whisper-base's, of the English ones; numbers are compared as they are said."""
    from ....inference.sound.transcribe import Transcriber, spoken_words, word_error_rate

    transcriber = Transcriber("en")
    english = [(source.text or "", clip) for source, clip in zip(sources, audio, strict=True) if is_english(source)]
    heard = [(text, transcriber.transcribe(clip, RATE)) for text, clip in english]
    said = [[" ".join(spoken_words(text, "en")) for text in texts] for texts in zip(*heard, strict=True)]
    return word_error_rate(said[0], said[1])


if __name__ == "__main__":
    tyro.cli(main)
