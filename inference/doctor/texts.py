"""The transcripts of a store: how many there are, whether they fit the audio, and in which script they are.

N utterances with text, in the order of their names.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from .findings import Examination, count
from .speech import Speech, pc, strings

FEWEST = 16  # texts from which something can be said of all of them
SHIFTS = (-3, -2, -1, 1, 2, 3)  # files by which texts may be off
FITS, MISFITS = 0.6, 0.3  # correlation of the logarithms of length and duration: of right texts, of wrong ones
SPREAD = 0.15  # standard deviation of the logarithms: texts that are all of one length tell nothing
FAR = 4.0  # times as many characters per second as usual, or as few
FAR_LETTERS = 20  # a difference of fewer characters is none
SCRIPT_SHARE = 0.9  # a script that this many of a speaker's texts are in is that of all
LATIN = "LATIN"


def examine_texts(speech: Speech, seen: Examination) -> None:
    table, originals = speech.store.table, speech.originals
    has_text = table["text"].is_valid().to_numpy(zero_copy_only=False)
    known = originals[has_text[originals]]
    seen.facts["text_share"] = share = len(known) / max(1, len(originals))
    if not len(known):
        seen.lines.append(("texts", "none"))
        return
    known = known[pc.sort_indices(table["name"].take(pa.array(known))).to_numpy()]
    names, texts = strings(table["name"], known), strings(table["text"], known)
    seconds = speech.store.num_samples[known] / speech.store.codec.sample_rate
    letters = np.array([len(text) for text in texts])
    usual = float(np.median(letters / seconds))
    seen.facts |= {"characters_per_second": usual}
    seen.lines.append(("texts", f"{share:.0%} of the utterances, {usual:.1f} characters per second"))
    if len(known) < len(originals):
        without = count(len(originals) - len(known), "utterance")
        seen.note("text", f"{without} without", "fine, where text is not to be learned")
    if not judge_fit(letters, seconds, seen):
        judge_rates(names, letters, seconds, usual, seen)
    judge_scripts(names, [speech.speaker(i) for i in known.tolist()], texts, seen)


def judge_fit(letters: np.ndarray, seconds: np.ndarray, seen: Examination) -> bool:
    """Whether the texts do not belong to the audio: longer audio has longer texts, or else they are shifted."""
    a, b = np.log(letters), np.log(seconds)
    if len(a) < FEWEST or min(a.std(), b.std()) < SPREAD:
        return False
    own = correlation(a, b)
    shifted = {shift: correlation(a[max(0, shift) : len(a) + min(0, shift)], b[max(0, -shift) : len(b) - max(0, shift)])
               for shift in SHIFTS}  # fmt: skip
    best = max(SHIFTS, key=lambda shift: shifted[shift])
    seen.facts["text_fit"] = own
    if own < MISFITS and shifted[best] > FITS:
        found = f"each fits the audio of {count(abs(best), 'file')} {'before' if best > 0 else 'after'} its own"
        seen.error("texts", f"{found} (correlation with the durations {shifted[best]:.2f}, in place {own:.2f})",
                   "move them back")  # fmt: skip
    elif own < MISFITS:
        found = f"their lengths do not go with the durations (correlation {own:.2f}; {FITS} and more is usual)"
        seen.error("texts", found, "compare some with their audio: they may belong to other files")
    return own < MISFITS


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 0 else 0.0


def judge_rates(
    names: Sequence[str], letters: np.ndarray, seconds: np.ndarray, usual: float, seen: Examination
) -> None:
    expected = usual * seconds
    far = (np.maximum(letters, expected) > FAR * np.minimum(letters, expected)) & (
        np.abs(letters - expected) > FAR_LETTERS
    )
    if len(names) >= FEWEST and far.any():
        odd = [f"{names[i]} {letters[i] / seconds[i]:.1f}/s" for i in np.flatnonzero(far).tolist()]
        found = f"{len(odd)} of {count(len(names), 'text')} have {FAR:g} times as many or as few characters per second"
        seen.warn("texts", f"{found} as usual", "compare them with their audio", odd)


def judge_scripts(names: Sequence[str], speakers: Sequence[str], texts: Sequence[str], seen: Examination) -> None:
    """Texts in another script than nearly all of their speaker's, and words that mix two."""
    scripts = [script_of(text) for text in texts]
    by_speaker: dict[str, Counter[str]] = {}
    for speaker, script in zip(speakers, scripts, strict=True):
        by_speaker.setdefault(speaker, Counter()).update([script] * bool(script))
    other = []
    for name, speaker, script in zip(names, speakers, scripts, strict=True):
        common, number = max(by_speaker[speaker].items(), key=lambda item: item[1], default=("", 0))
        if script not in ("", common) and number >= SCRIPT_SHARE * by_speaker[speaker].total():
            other.append(f"{name} {script.lower()}, not {common.lower()}")
    if other:
        found = f"{count(len(other), 'text')} in another script than the speaker's others"
        seen.warn("texts", found, "another language, or a wrong encoding: look at them", other)
    mixed = [name for name, text in zip(names, texts, strict=True) if any(map(is_mixed, text.split()))]
    if mixed:
        found = f"{count(len(mixed), 'text')} with words of two scripts"
        seen.warn("texts", found, "letters that only look alike are other letters to a model: replace them", mixed)


def script_of(text: str) -> str:
    """The script that most letters of a text are in, as Unicode calls it; "" without letters."""
    found = scripts_in(text)
    return found.most_common(1)[0][0] if found else ""


def scripts_in(text: str) -> Counter[str]:
    if text.isascii():  # nearly always; a look-up for each letter would take long
        return Counter({LATIN: sum(map(str.isalpha, text))}) if any(map(str.isalpha, text)) else Counter()
    return Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())


def is_mixed(word: str) -> bool:
    """Whether Latin letters stand among Cyrillic or Greek ones, in one word."""
    return not word.isascii() and LATIN in (found := scripts_in(word)) and bool(found.keys() & {"CYRILLIC", "GREEK"})
