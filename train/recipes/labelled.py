"""Speech with phone labels, to probe models with: a Russian speaker's sentences.

    python -m codeclm.train.recipes.labelled datasets/speech

From Debian's festvox-ru (copyright 2005 Nickolay V. Shmyrev, BSD-like): 620 sentences, 1.7 h, made for a synthesizer
(msu_ru_nsh). `apt-get download` fetches it, no root needed; ffmpeg converts it.

Result: OUT/labelled/shmyrev_ru/*.flac, and beside each its text (.txt) and labels (.lab, HTK's format: start and end in
units of 100 ns, phone, and the word where one begins). The package has phones alone; where words begin is found here
from the text: in Russian each vowel letter is a vowel.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import tyro

from ...data.progress import progress_bar
from ...inference.evaluate.labels import UNITS
from .corpus import convert, fetch_debian

PACKAGE, SPEAKER = "festvox-ru", "shmyrev_ru"
FOLDER = "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
PAUSE = "pau"
VOWELS = {"a", "aa", "ae", "ay", "e", "ee", "i", "ii", "o", "oo", "u", "uu", "ur", "y", "yy"}
VOWEL_LETTERS, WITH_J, NO_SOUND = "аеёиоуыэюя", "еёюя", "ьъ"


def word_starts(text: str, phones: Sequence[str]) -> dict[int, str] | None:
    """Which phones words begin with: number of the phone -> word; None where vowels and vowel letters differ in number.

    A word without a vowel ("в") is part of the next one. Consonants between the last vowel of a word and the first of
    the next one are shared out as their letters are, or by a pause.
    """
    words: list[str] = []
    before = ""
    for word in re.findall(r"[а-яё]+", text.lower().replace("+", "")):
        before += word
        if any(letter in VOWEL_LETTERS for letter in before):
            words.append(before)
            before = ""
    if before and words:
        words[-1] += before
    vowels = [number for number, phone in enumerate(phones) if phone in VOWELS]
    if len(vowels) != sum(letter in VOWEL_LETTERS for word in words for letter in word) or not words:
        return None

    starts, seen, closing = {}, 0, 0  # vowels of the words before, consonant letters after the last one
    for word in words:
        places = [number for number, letter in enumerate(word) if letter in VOWEL_LETTERS]
        opening = len(sounding(word[: places[0]])) + (places[0] == 0 and word[0] in WITH_J)
        first = vowels[seen - 1] + 1 if seen else 0
        pauses = [number for number in range(first, vowels[seen]) if phones[number] == PAUSE]
        num_between = vowels[seen] - first
        if pauses or not seen:
            start = pauses[-1] + 1 if pauses else 0
        else:
            start = first + round(num_between * closing / max(1, closing + opening))
        starts[start] = word
        seen += len(places)
        closing = len(sounding(word[places[-1] + 1 :]))
    return starts


def sounding(letters: str) -> str:
    return "".join(letter for letter in letters if letter not in NO_SOUND)


def htk_labels(labels: str, text: str) -> str:
    """Festival's labels ("0.34200 125 pau": the end in seconds, and the phone) and the text -> HTK's."""
    found = [line.split() for line in labels.splitlines() if len(line.split()) == 3]
    ends = [round(float(end) * UNITS) for end, _, _ in found]
    phones = [phone for _, _, phone in found]
    words = word_starts(text, phones) or {}
    lines = []
    for number, phone in enumerate(phones):
        start = ends[number - 1] if number else 0
        lines.append(" ".join([f"{start} {ends[number]} {phone}", *([words[number]] if number in words else [])]))
    return "\n".join(lines) + "\n"


def sentences(root: Path) -> list[tuple[str, str]]:
    """(name, text) of each sentence in the package, unpacked at `root`; "+" is before a stressed vowel."""
    return re.findall(r'^\( (\S+) "(.*)" \)$', (root / "etc/txt.done.data").read_text(), re.MULTILINE)


def convert_sentence(root: Path, name: str, text: str, target: Path) -> None:
    """One of them as FLAC, with its text beside it; a file that exists is kept."""
    convert(root / f"wav/{name}.wav", target)
    target.with_suffix(".txt").write_text(text.replace("+", "") + "\n")


def fetch_labelled(out: Path) -> None:
    """Files that exist are kept."""
    root = fetch_debian([PACKAGE], out / "debian") / FOLDER
    for name, text in progress_bar(sentences(root), unit="sentence", desc=SPEAKER):
        target = out / "labelled" / SPEAKER / f"{SPEAKER}-{name}.flac"
        convert_sentence(root, name, text, target)
        target.with_suffix(".lab").write_text(htk_labels((root / f"lab/{name}.lab").read_text(), text))


def main(out: tyro.conf.Positional[Path]) -> None:
    """Fetch the labelled speech into OUT/labelled."""
    fetch_labelled(out)


if __name__ == "__main__":
    tyro.cli(main)
