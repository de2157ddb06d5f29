"""Which letters of a word say which of its phonemes, so that times of phonemes become times of letters.

A letter says up to three phonemes, in order: "x" two, the "e" of "time" none. How likely each is to say what is counted
on the words of a dictionary, the likeliest reading of each by the counts before it (hard EM). L letters, P phonemes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

ROUNDS = 5  # times that it is counted
MOST = 3  # phonemes of a letter
SEVERAL = 1.0  # nats for each phoneme of a letter after the first
UNSEEN = 0.1  # counts of what was not seen


class Spelling:
    def __init__(self, words: Iterable[tuple[str, Sequence[str]]]):
        """words: letters and phonemes."""
        words = list(words)
        self.costs: dict[str, dict[tuple[str, ...], float]] = {}
        self.unseen: dict[str, float] = {}
        readings = [_evenly(len(letters), len(phonemes)) for letters, phonemes in words]
        for _ in range(ROUNDS):
            self._count(words, readings)
            readings = [self.reading(*word) for word in words]
        self._count(words, readings)

    def _count(self, words: list[tuple[str, Sequence[str]]], readings: list[list[int] | None]) -> None:
        counts: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        for (letters, phonemes), reading in zip(words, readings, strict=True):
            place = 0
            for letter, count in zip(letters, reading or (), strict=False):
                counts[letter][tuple(phonemes[place : place + count])] += 1
                place += count
        for letter, found in counts.items():
            total = found.total() + 1
            self.costs[letter] = {said: -math.log(count / total) for said, count in found.items()}
            self.unseen[letter] = -math.log(UNSEEN / total)

    def cost(self, letter: str, said: tuple[str, ...]) -> float:
        """Nats."""
        unseen = self.unseen.get(letter, -math.log(UNSEEN))
        return self.costs.get(letter, {}).get(said, unseen) + SEVERAL * max(0, len(said) - 1)

    def reading(self, letters: str, phonemes: Sequence[str]) -> list[int] | None:
        """How many phonemes each letter says, likeliest of all [L]; None if they are too many."""
        best = [[math.inf] * (len(phonemes) + 1) for _ in range(len(letters) + 1)]
        taken = [[0] * (len(phonemes) + 1) for _ in range(len(letters) + 1)]
        best[0][0] = 0.0
        for row, letter in enumerate(letters):
            for place, before in enumerate(best[row]):
                if before == math.inf:
                    continue
                for count in range(min(MOST, len(phonemes) - place) + 1):
                    cost = before + self.cost(letter, tuple(phonemes[place : place + count]))
                    if cost < best[row + 1][place + count]:
                        best[row + 1][place + count], taken[row + 1][place + count] = cost, count
        place = len(phonemes)
        if best[-1][place] == math.inf:
            return None
        reading = []
        for row in range(len(letters), 0, -1):
            reading.append(taken[row][place])
            place -= taken[row][place]
        return reading[::-1]


def _evenly(num_letters: int, num_phonemes: int) -> list[int] | None:
    """A first guess: the phonemes spread evenly over the letters."""
    bounds = [number * num_phonemes // num_letters for number in range(num_letters + 1)] if num_letters else [0]
    return [after - before for before, after in zip(bounds[:-1], bounds[1:], strict=True)]
