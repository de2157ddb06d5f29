"""What is read aloud: sentences from Debian's dictionaries, from a small language model, and made of numbers and names.

Every sentence is on one side, for training or held out, by a hash of its words; that of the texts that the first
recipe (corpus.py) holds out is theirs. Some are read alone, others with those that follow.
"""

import gzip
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..corpus import JOE_TEXT_SHARE, CorpusConfig, group_words, read_texts, split_of
from .spoken import spoken_sentences

HELD_OUT_SHARE = 40  # one sentence of this many
MIN_WORDS, MAX_WORDS = 4, 40
WANTED_WORDS = (1, 1, 10, 20, 30)  # an utterance ends with the sentence that reaches one of these
WORDNET = ("noun", "verb", "adj", "adv")
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ,.;:'?!-]+")
QUOTATION = re.compile(r"(?:^ {12,}\S.*\n)+", re.MULTILINE)
SPOKEN = 60_000  # sentences with numbers, dates, names and letters

# how many of 50 utterances come from each source
SHARES = {"definitions": 12, "examples": 11, "quotations": 11, "written": 6, "spoken": 6, "scripture": 4}

Sides = dict[str, list[str]]  # "train" and "heldout" -> texts


def utterance_texts(unpacked: Path, written: list[str], seed: int) -> dict[str, Sides]:
    """Source -> texts of utterances for each side, in an order that depends on the seed alone; none is there twice.

    unpacked: folder with the files of Debian's wordnet-base and dict-gcide. written: the language model's sentences.
    """
    definitions, examples = wordnet((unpacked / f"usr/share/wordnet/data.{part}").read_text() for part in WORDNET)
    dictionary = gzip.decompress((unpacked / "usr/share/dictd/gcide.dict.dz").read_bytes()).decode("utf-8", "replace")
    sources = {
        "definitions": definitions,
        "examples": examples,
        "quotations": quotations(dictionary),
        "written": written,
        "spoken": spoken_sentences(SPOKEN, seed),
    }
    return sided(sources, scripture(), seed)


def sided(sources: dict[str, list[str]], scripture: Sides, seed: int) -> dict[str, Sides]:
    """Sentences of each source -> texts of utterances; what scripture holds out is nowhere else."""
    known, texts = {_key(text) for text in scripture["heldout"]}, {"scripture": scripture}
    for name, found in sources.items():
        sides: Sides = {"train": [], "heldout": []}
        for sentence in found:
            if (key := _key(sentence)) not in known:
                known.add(key)
                sides[side_of(sentence)].append(sentence)
        texts[name] = {side: grouped(sentences, seed) for side, sentences in sides.items()}
    return {name: texts[name] for name in SHARES if name in texts}


def side_of(sentence: str) -> str:
    return "heldout" if zlib.crc32(_key(sentence).encode()) % HELD_OUT_SHARE == 0 else "train"


def grouped(sentences: list[str], seed: int) -> list[str]:
    """Sentences in another order, some alone and some joined to a paragraph."""
    order = list(sentences)
    random.Random(seed).shuffle(order)
    share = -(-len(order) // len(WANTED_WORDS)) or 1
    groups = [
        group
        for number, wanted in enumerate(WANTED_WORDS)
        for group in group_words(order[number * share : (number + 1) * share], wanted)
    ]
    random.Random(seed).shuffle(groups)
    return groups


def scripture() -> Sides:
    """The Bible's verses and fortunes, as the first recipe reads them and holds them out."""
    texts = read_texts(CorpusConfig())
    share, sides = round(len(texts) * JOE_TEXT_SHARE), {"train": [], "heldout": []}
    for voice, part in (("joe", texts[:share]), ("heart", texts[share:])):
        for index, text in enumerate(part):
            sides[split_of(f"{voice}-{index:06d}")].append(text)
    return sides


def wordnet(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Contents of WordNet's data files -> "Canal: a long and narrow strip of water.", and its examples of use."""
    definitions, examples = [], []
    for line in (line for content in files for line in content.splitlines() if " | " in line):
        entry, _, gloss = line.partition(" | ")
        word = re.sub(r"\(.*\)|_", " ", entry.split()[4]).strip()
        meaning = re.sub(r"\(.*?\)", " ", gloss.split('"')[0])
        if word.isascii():
            definitions += _plain(f"{word}: {meaning}")
        for example in re.findall(r'"([^"]+)"', gloss):
            examples += _plain(example)
    return definitions, examples


def quotations(dictionary: str) -> list[str]:
    """Quotations from authors in GCIDE, without the author's name."""
    found = []
    for match in QUOTATION.finditer(dictionary):
        quoted, dashes, _ = match[0].partition("--")
        if dashes:
            found += _plain(re.sub(r"\s\.( \.)+|\[.*?\]|[{}]", " ", quoted))
    return found


def _plain(text: str) -> Iterator[str]:
    """The text as one sentence, if it can be read."""
    text = re.sub(r" (?=[,;:.?!])", "", " ".join(text.split())).strip(" ,;:-")
    if PLAIN.fullmatch(text) and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        yield text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def _key(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", sentence.lower()))


Deal = Callable[[int], tuple[str, int]]


def deal(shares: dict[str, int]) -> Deal:
    """Number -> kind, and how many of that kind came before: evenly mixed, in these proportions."""
    total = sum(shares.values())
    places = sorted((((index + 0.5) / count, kind) for kind, count in shares.items() for index in range(count)))
    pattern = [kind for _, kind in places]
    before = [pattern[:place].count(kind) for place, kind in enumerate(pattern)]

    def dealt(number: int) -> tuple[str, int]:
        turn, place = divmod(number, total)
        return pattern[place], turn * shares[pattern[place]] + before[place]

    return dealt
