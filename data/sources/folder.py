"""A folder of audio files, or one file, with transcripts NAME.txt and times of words NAME.json beside NAME.wav."""

from collections.abc import Sequence
from pathlib import Path

from ..audio import find_audio
from ..word_times import words_beside
from .source import Found, Source, file_stamp, stems, words_stamp


def read_folder(audio: Path) -> Found:
    """Every audio file below a folder, or the one file. Raises AudioError if there is none."""
    return Found(file_sources(audio, find_audio(audio)))


def file_sources(audio: Path, files: Sequence[Path]) -> list[Source]:
    """Files of the folder `audio`, named by their place in it."""
    names = utterance_names(audio, files)
    return [_source(path, name) for path, name in zip(files, names, strict=True)]


def utterance_names(audio: Path, files: Sequence[Path]) -> list[str]:
    """Paths relative to the folder `audio` without suffix; with it where two files would have the same name."""
    root = audio.parent if audio.is_file() else audio
    return stems(file.relative_to(root).as_posix() for file in files)


def transcript_path(audio: Path) -> Path:
    """Where the transcript of an audio file lies, if it has one: NAME.txt beside NAME.wav."""
    return audio.with_suffix(".txt")


def _source(path: Path, name: str) -> Source:
    stamp, of_text, words_in = file_stamp(path), file_stamp(transcript_path(path)), words_beside(path)
    has_text = of_text != (-1, -1)
    known = (*stamp, *(of_text if has_text else ()), *words_stamp(words_in))
    return Source(name, path, known, max(0, stamp[0]), has_transcript=has_text, words_in=words_in)
