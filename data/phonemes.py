"""Phonemes as text tokens: each is one token, with its stress, and whether a word begins with it.

The symbols are those of misaki (Kokoro's way from English to phonemes): IPA, but a letter for what glides or is two
sounds, A as in "say", I "my", O "so", Q the British "so", W "now", Y "boy", ʤ, ʧ, and T for the flap of "city". Signs
that are heard as pauses or melody are tokens, too.
"""

from collections.abc import Iterable

ACCENTS = ("en-gb", "en-us")
SIGNS = ';:,.!?—…"()“”'
# their order is part of each model's weights
SYMBOLS = SIGNS + "bdfhjklmnpstvwzðŋɡɹTʃʒʤʧθx" + "AIOQWYaiuæɑɐɒɔəɛɜɪʊʌᵻᵊː"
STRESS = "ˈˌ"
NUM_PHONEME_TOKENS = 2 * (1 + len(STRESS)) * len(SYMBOLS)


def check_accent(accent: str) -> None:
    """Raise ValueError in one line for one whose phonemes are not known."""
    if accent not in ACCENTS:
        raise ValueError(f"phonemes are not known for {accent!r}; choose one of {', '.join(ACCENTS)}")


def numbered(phonemes: str) -> list[int]:
    """Phonemes of words with spaces between, each stress before what it lies on -> their tokens, 0 to
    NUM_PHONEME_TOKENS - 1. Symbols that are not known are left out."""
    tokens, begins, stress = [], 1, 0
    for symbol in phonemes:
        if symbol.isspace():
            begins, stress = 1, 0
        elif symbol in STRESS:
            stress = 1 + STRESS.index(symbol)
        else:
            if symbol in SYMBOLS:
                tokens.append((begins * (1 + len(STRESS)) + stress) * len(SYMBOLS) + SYMBOLS.index(symbol))
                begins = 0
            stress = 0
    return tokens


def written(tokens: Iterable[int]) -> str:
    """Tokens -> phonemes, as `numbered` takes them."""
    found = ""
    for token in tokens:
        kind, symbol = divmod(token, len(SYMBOLS))
        begins, stress = divmod(kind, 1 + len(STRESS))
        found += " " * begins + ("", *STRESS)[stress] + SYMBOLS[symbol]
    return found.strip()
