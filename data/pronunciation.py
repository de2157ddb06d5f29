"""How the words of a sentence are pronounced, and which letters say which phoneme: hibari-tts knows, an extra.

It is a dictionary of 170,000 words, a network for others, and what the words around tell ("I read it", "the apple").
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from .phonemes import STRESS
from .spelling import Spelling

DICTIONARY_SHARE = 30  # one word of this many teaches how letters are said
END = re.compile(r"[.!?…][\"'”’)\]]*$")
NO_END = re.compile(r"[\"“'‘(]*([A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Rev|Hon|Gen|Col|Maj|Capt|Lt|Sgt|Gov|Sen|Rep|Messrs|vs)\.$")


@cache
def reader(accent: str) -> Any:
    """hibari's, of one of phonemes.ACCENTS. Raises ImportError in one line if it is not installed."""
    try:
        from hibari.g2p import G2P  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("phonemes need: pip install 'codeclm[phonemes]'") from None
    return G2P(british=accent == "en-gb")


def sentences(words: Iterable[str]) -> Iterator[list[str]]:
    """Words of a text -> those of each sentence, as soon as its last is there. What follows a title or an initial
    ("Dr.", "J.") goes on."""
    begun: list[str] = []
    for word in words:
        begun.append(word)
        if END.search(word) and not NO_END.match(word):
            yield begun
            begun = []
    if begun:
        yield begun


def read_tokens(sentence: str, accent: str) -> Any:
    """hibari's tokens of a sentence: their text, phonemes and white space, abbreviations and numbers written out."""
    found = reader(accent)
    from hibari.g2p.normalize import normalize  # pyright: ignore[reportMissingImports]

    return found.phonemize_tokens(found.tokenize(normalize(sentence)))


@lru_cache(maxsize=1 << 16)
def pronounced(words: tuple[str, ...], accent: str) -> tuple[str, ...]:
    """Phonemes of each word of a sentence. A word may have spaces, and so may its phonemes; none: it is not said."""
    read = [("", "")]  # letters and phonemes of the words as they are read
    for token in read_tokens(" ".join(words), accent):
        letters, phonemes = read[-1]
        read[-1] = letters + token.text, phonemes + (token.phonemes or "")
        if token.whitespace:
            read.append(("", ""))
    given = [(part, number) for number, word in enumerate(words) for part in word.split()]
    said: list[list[str]] = [[] for _ in words]
    pair = SequenceMatcher(None, [plain(part) for part, _ in given], [plain(letters) for letters, _ in read], False)
    for _, first, end, start, stop in pair.get_opcodes():
        for place in range(start, stop):
            number = first + (place - start) * (end - first) // (stop - start)
            said[given[min(number, len(given) - 1)][1]].append(read[place][1])
    return tuple(" ".join(filter(None, parts)) for parts in said)


def plain(word: str) -> str:
    """What two ways to write a word have in common."""
    return "".join(filter(str.isalnum, word)).casefold()


@cache
def spelling(accent: str) -> Spelling:
    """How English is written, of words of hibari's dictionary."""
    import hibari  # pyright: ignore[reportMissingImports]

    path = Path(hibari.__file__).parent / f"assets/lexicon_{accent.removeprefix('en-')}_gold.json.gz"
    entries = json.loads(gzip.decompress(path.read_bytes()))
    known = [word for word, said in entries.items() if isinstance(said, str) and re.fullmatch("[a-z]{3,}", word)]
    return Spelling((word, re.sub(f"[{STRESS}]", "", entries[word])) for word in known[::DICTIONARY_SHARE])


@lru_cache(maxsize=1 << 16)
def sayers(letters: str, phonemes: tuple[str, ...], accent: str) -> list[int]:
    """Letters of a word and its phonemes -> which letter says each phoneme [P]; spread evenly where they do not fit."""
    said = spelling(accent).reading(letters.casefold(), phonemes) if len(letters.casefold()) == len(letters) else None
    if said is None:
        return [place * len(letters) // len(phonemes) for place in range(len(phonemes))]
    return [place for place, count in enumerate(said) for _ in range(count)]
