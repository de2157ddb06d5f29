"""Words, pseudo-words, sentences and shuffled sentences, said by the synthetic voice "heart" (hibari-tts).

A pseudo-word is the beginning of one word with the end of another; of two words both pseudo-words are made, so that
each beginning and each end is as often in a word as in a pseudo-word. Sentences come from a small grammar.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from ..sound.manipulate import trimmed
from ..sound.measures import resampled
from .voices import RATE

VOICE, PACKAGE, EXTRA = "heart", "hibari", "speedrun"
WORDS = """
al-phabet ba-nana bal-cony cal-endar ce-lery cu-cumber dic-tator di-nosaur el-ephant em-peror fam-ily fur-niture
gal-axy gor-illa har-mony his-tory in-strument is-land jan-uary jew-elry kan-garoo kil-ogram lav-ender lem-onade
mar-athon mel-ody mus-tard news-paper nov-ember oc-topus or-chestra pa-rade pen-cil po-tato pub-lisher
re-public sal-amander spa-ghetti tel-ephone to-mato tur-pentine um-brella vi-olin vol-cano wed-nesday wil-derness
"""
ADJECTIVES = "old young quiet clever tired gentle angry little famous hungry careful lonely cheerful nervous"
PEOPLE = "farmer teacher doctor sailor painter soldier lawyer baker driver singer writer hunter gardener"
VERBS = "carried opened cleaned painted followed remembered borrowed noticed collected repaired covered finished"
THINGS = "basket window letter garden bicycle kettle blanket ladder mirror candle wallet lantern bottle carpet"
PLACES = "village station market river bridge harbour library forest kitchen valley mountain castle church"
PREPOSITIONS = "near behind beside outside inside above before"


class Speaker:
    """The voice; the same text is always said in the same way."""

    def __init__(self) -> None:
        """Raises ImportError without the package."""
        from hibari import Hibari  # pyright: ignore[reportMissingImports]

        self._tts = Hibari()

    def say(self, text: str) -> np.ndarray:
        """-> audio [S] at RATE, without the silence around it."""
        audio = np.asarray(self._tts(text, seed=zlib.crc32(text.encode())), np.float32)
        return trimmed(resampled(audio, 24_000, RATE).astype(np.float32), RATE)


def word_pairs(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """(word, pseudo-word), two by two: the second of each two has the other halves of the same words."""
    words = [tuple(word.split("-")) for word in WORDS.split()]
    couples = [(a, b) for a in words for b in words if a < b]
    for index in rng.permutation(len(couples)):
        (a, b), (c, d) = couples[index]
        yield a + b, a + d
        yield c + d, c + b


def sentence(rng: np.random.Generator) -> list[str]:
    """The words of a sentence."""
    kinds = (ADJECTIVES, PEOPLE, VERBS, THINGS, PREPOSITIONS, PLACES)
    adjective, person, verb, thing, preposition, place = (str(rng.choice(kind.split())) for kind in kinds)
    return ["the", adjective, person, verb, "a", thing, preposition, "the", place]


def shuffled(words: list[str], rng: np.random.Generator) -> list[str]:
    """The same words in an order in which at most two follow each other as before."""
    follows = set(zip(words, words[1:], strict=False))
    while True:
        order = [words[i] for i in rng.permutation(len(words))]
        if sum(couple in follows for couple in zip(order, order[1:], strict=False)) <= 2:
            return order


def as_text(words: list[str]) -> str:
    """As it is written: one sentence."""
    return " ".join(words).capitalize() + "."
