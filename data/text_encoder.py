"""What all ways from a text to its tokens share: words, numbers in words, which part of the text a token stands for."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .number_words import said

WORD_START = "\u2581"  # how sentencepiece writes the space before a word


def clean_text(text: str) -> str:
    """White space of any kind and length -> one space; none at the ends."""
    return " ".join(text.replace(WORD_START, " ").split())


def said_words(text: str, numbers: str) -> list[str]:
    """The words of a text as they are told: numbers become words of the language `numbers`, with spaces between."""
    words = clean_text(text).split()
    return [said(word, numbers) for word in words] if numbers else words


class TextEncoder(ABC):
    """Text -> tokens. A word is what white space separates; as it is told, it may have spaces: see `said_words`."""

    def __init__(self, numbers: str = ""):
        self.numbers = numbers

    @abstractmethod
    def tokens_of(self, told: Sequence[str]) -> list[list[int]]:
        """Tokens of each of some words, as they are told, which stand beside each other."""

    @abstractmethod
    def spans_of(self, told: str, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Tokens of a word, as it is told -> for each the first of its characters, spaces left out, and the one after
        the last."""

    def units(self, words: Iterable[str]) -> Iterator[str]:
        """Words of a text that is being written -> parts of it that have the same tokens alone and in the text."""
        return iter(words)

    def encode(self, text: str) -> list[int]:
        """Tokens of the text, without BOS and EOS. Raises ValueError for lone surrogates, which are no text."""
        return [token for word in self.encode_words(text) for token in word]

    def encode_words(self, text: str) -> list[list[int]]:
        """Tokens of each word."""
        return self.tokens_of(self._told(text))

    def encode_places(self, text: str) -> tuple[list[int], np.ndarray]:
        """Tokens of the text, and the places of each in `clean_text(text)`: [L, 2], its first character and the one
        after its last. Those of a number in words are spread over its digits."""
        tokens, places, start, words = [], [], 0, self._told(text)
        for written, told, word in zip(clean_text(text).split(), words, self.tokens_of(words), strict=True):
            tokens += word
            length = len(told.replace(" ", ""))
            for first, last in self.spans_of(told, word):
                if told != written:
                    first, last = first * len(written) // length, -(-last * len(written) // length)
                places.append((start + first, start + last))
            start += len(written) + 1
        return tokens, np.array(places, np.int64).reshape(-1, 2)

    def _told(self, text: str) -> list[str]:
        """`said_words`. Raises ValueError as `encode`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds {text[error.start]!r}, which is no character") from None
        return said_words(text, self.numbers)
