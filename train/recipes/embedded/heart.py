"""hibari's voice "heart" (PyPI hibari-tts), other voices made of its spectra, and when it says each letter.

Its network gives phonemes their lengths before it gives them a sound; data/spelling.py says which letters they are.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ....data.phonemes import STRESS
from ....data.pronunciation import read_tokens, reader, spelling
from ....data.word_times import Word

RATE = 24_000  # Hz
LENGTHS = "/Clip_output_0"  # what the network calls the lengths of its phonemes
UNIT = 600  # samples, of these lengths
ACCENT = "en-us"


class Token(NamedTuple):
    """A word or a sign of a sentence, as hibari reads it."""

    text: str
    first: int  # place of its phonemes in those of the sentence
    end: int


def say(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int, list[Word]]:
    """-> audio [S], Hz, and when its letters are said; none for a sentence that is too long to be said at once.

    voice: what `shaped` takes: "pitch=3 throat=1.06 melody=1.4 breath=2"; and speed=1.1.
    """
    from hibari import dsp  # pyright: ignore[reportMissingImports]
    from hibari.tts import MAX_PHONEMES  # pyright: ignore[reportMissingImports]

    shape = {name: float(value) for name, value in (setting.split("=") for setting in voice.split())}
    speed = shape.pop("speed", 1.0)
    parts, words, seconds = [np.zeros(0, np.float32)], [], 0.0
    for sentence in heart().split_sentences(text):
        whole, tokens = tokens_of(sentence)
        is_long = len(whole) > MAX_PHONEMES
        for phonemes in phonemes_of(sentence, ACCENT) if is_long else [whole]:
            if len(ids := heart().ids(phonemes)) < 3:
                continue
            inputs = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
            *outputs, lengths = _network().run(None, inputs)
            parts.append(dsp.synth(*shaped([output[0] for output in outputs], **shape), rng=rng))
            if not is_long:
                begins = seconds + _begins(phonemes, np.ravel(lengths)) * UNIT / RATE
                words += letter_times(sentence, tokens, phonemes, begins)
            seconds += len(parts[-1]) / RATE
    return np.concatenate(parts), RATE, words


def shaped(
    outputs: list[np.ndarray],
    pitch: float = 0.0,
    melody: float = 1.0,
    throat: float = 1.0,
    breath: float = 0.0,
    whisper: float = 0.0,
) -> list[np.ndarray]:
    """hibari's spectra [bins, F] and pitch [F] as another voice would have them.

    pitch: semitones; melody: how wide the pitch moves; throat: factor on the formants; breath: dB more noise;
    whisper: 1 for no pitch at all.
    """
    harmonic, turn, noise, rest, phase, f0 = outputs
    voiced = f0 > 40
    if whisper:
        noise = np.logaddexp(noise, harmonic - 1.5).astype(np.float32)
        rest, f0 = np.full_like(rest, -20.0), np.zeros_like(f0)
    elif voiced.any() and (pitch or melody != 1):
        middle = np.exp(np.log(f0[voiced]).mean())
        moved = middle * (np.maximum(f0, 1) / middle) ** melody * 2 ** (pitch / 12)
        f0 = np.where(voiced, np.clip(moved, 55, 600), f0).astype(np.float32)
    if throat != 1:
        harmonic, turn, noise, rest = (_warped(spectrum, throat) for spectrum in (harmonic, turn, noise, rest))
    if pitch or melody != 1:  # a part of the network's phases holds its own pitch: it becomes noise
        rng = np.random.default_rng(len(f0))
        phase = rng.uniform(-np.pi, np.pi, phase.shape).astype(np.float32)
    return [harmonic, turn, noise + np.float32(breath * np.log(10) / 20), rest, phase, f0]


def _warped(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """[bins, F] -> the same stretched along frequency."""
    place = np.minimum(np.arange(len(spectrum)) / factor, len(spectrum) - 1.001)
    low = place.astype(int)
    share = (place - low)[:, None].astype(np.float32)
    return spectrum[low] * (1 - share) + spectrum[low + 1] * share


@cache
def heart() -> Any:
    from hibari import Hibari  # pyright: ignore[reportMissingImports]

    return Hibari()


@cache
def _network() -> Any:
    """hibari's, which also gives the lengths of its phonemes."""
    import onnx
    import onnxruntime

    model = onnx.load(heart().model_path)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(LENGTHS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def phonemes_of(text: str, accent: str) -> list[str]:
    """Sentence by sentence."""
    heart()._g2p = reader(accent)
    return heart().phonemize(text)


def tokens_of(sentence: str) -> tuple[str, list[Token]]:
    """The American phonemes of a sentence, and its words as they are read: numbers and abbreviations written out."""
    whole, tokens = "", []
    for token in read_tokens(sentence, ACCENT):
        said = token.phonemes or ""
        tokens.append(Token(token.text, len(whole), len(whole) + len(said)))
        whole += said + (" " if token.whitespace else "")
    blank = len(whole) - len(whole.lstrip())
    return whole.strip(), [Token(text, first - blank, end - blank) for text, first, end in tokens]


def _begins(phonemes: str, lengths: np.ndarray) -> np.ndarray:
    """Lengths of the phonemes that the network knows, between two pauses -> the begin of each, and the end [P + 1]."""
    known = np.array([symbol in heart().vocab for symbol in phonemes])
    ends = np.cumsum(lengths)
    return np.append(ends[np.cumsum(known) - known], ends[known.sum()])


def letter_times(sentence: str, tokens: Sequence[Token], phonemes: str, begins: np.ndarray) -> list[Word]:
    """Letters and digits of a sentence, and the seconds where they begin and end. begins: of each phoneme [P + 1].

    What is read otherwise than it is written, as "Dr." is, is one piece.
    """
    read = [piece for token in tokens for piece in _pieces(token, phonemes, begins)]
    written = [c for c in sentence if c.isalnum()]
    matcher = SequenceMatcher(None, [c.casefold() for c in written], [c.casefold() for c, _, _ in read], autojunk=False)
    words: list[Word] = []
    for kind, first, end, start, stop in matcher.get_opcodes():
        said = read[start:stop]
        if kind == "equal":
            words += said
        elif first < end:  # others were read, or none
            before = words[-1][2] if words else float(begins[0])
            bounds = (said[0][1], said[-1][2]) if said else (before, before)
            words.append(("".join(written[first:end]), *bounds))
    return words


def _pieces(token: Token, phonemes: str, begins: np.ndarray) -> list[Word]:
    """The letters of a token; those that are not heard begin and end where the next one begins."""
    letters = [c for c in token.text if c.isalnum()]
    units = _units(phonemes, token.first, min(token.end, len(phonemes)))
    first, end = (float(begins[min(place, len(phonemes))]) for place in (token.first, token.end))
    spelled = "".join(letters).casefold()
    reading = spelling(ACCENT).reading(spelled, [unit for unit, _ in units]) if spelled.isalpha() else None
    if not units or reading is None or len(spelled) != len(letters):
        bounds = np.linspace(first, end, len(letters) + 1).tolist()
    else:
        places = [place for _, place in units]
        starts = [*(float(begins[place]) for place in places), end]
        bounds = [starts[place] for place in np.cumsum([0, *reading])]
    return [(c, *times) for c, times in zip(letters, pairwise(bounds), strict=True)]


def _units(phonemes: str, first: int, end: int) -> list[tuple[str, int]]:
    """Phonemes and where they are, a mark of stress with what it stands before."""
    units: list[tuple[str, int]] = []
    stress = None  # where the mark before is
    for place in range(first, end):
        if phonemes[place] in STRESS:
            stress = place
        elif not phonemes[place].isspace():
            units.append((phonemes[place], place if stress is None else stress))
            stress = None
    return units
