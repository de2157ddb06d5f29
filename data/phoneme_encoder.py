"""Text -> tokens of its phonemes, for texts that a model is to say."""

from collections.abc import Iterable, Iterator, Sequence

from .phonemes import SIGNS, STRESS, check_accent, numbered, written
from .pronunciation import pronounced, sayers, sentences
from .text_encoder import TextEncoder


class PhonemeEncoder(TextEncoder):
    def __init__(self, accent: str, first: int, numbers: str = ""):
        """accent: one of phonemes.ACCENTS, else ValueError is raised; first: the number of the first token."""
        check_accent(accent)
        super().__init__(numbers)
        self.accent, self.first = accent, first

    def tokens_of(self, told: Sequence[str]) -> list[list[int]]:
        """Raises ImportError if hibari-tts is not installed."""
        return [
            [self.first + number for number in numbered(phonemes)]
            for sentence in sentences(told)
            for phonemes in pronounced(tuple(sentence), self.accent)
        ]

    def spans_of(self, told: str, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """The letter that says each phoneme; a sign is where it is written."""
        word = told.replace(" ", "")
        letters = [place for place, c in enumerate(word) if c.isalnum()]
        symbols = [written([token - self.first]).strip(STRESS) for token in tokens]
        phonemes = tuple(symbol for symbol in symbols if symbol not in SIGNS)
        by = sayers("".join(word[place] for place in letters), phonemes, self.accent) if letters else []
        places = iter([letters[number] for number in by])
        spans, after = [], 0
        for symbol in symbols:
            first = max(word.find(symbol, after), after) if symbol in SIGNS else next(places, 0)
            first = min(first, len(word) - 1)  # more signs than the letters around them leave places for
            after = first + 1
            spans.append((first, after))
        return spans

    def units(self, words: Iterable[str]) -> Iterator[str]:
        """Sentences: how a word is said depends on those around it."""
        return map(" ".join, sentences(words))
