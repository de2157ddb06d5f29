"""Text <-> text tokens: a thin class over sentencepiece, kept in one file (tokenizer.model).

BPE within words, bytes for characters it does not know: any text can be written, and comes back with its white space
normalised. Where tokens lie beside the codes of the audio is align.py.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path

from ..model.files import write_whole
from ..model.text_tokens import BOS, EOS, EPAD, PAD
from .ngram import ORDER, Ngram
from .number_words import check_language
from .phoneme_encoder import PhonemeEncoder
from .phonemes import NUM_PHONEME_TOKENS, written
from .text_encoder import WORD_START, TextEncoder, said_words

MIN_VOCAB_SIZE = 4 + 256 + 1  # special tokens, bytes and the start of a word
TOKENIZER_FILE = "tokenizer.model"


class TextTokenizer(TextEncoder):
    """Tokens are 0..vocab_size-1: EPAD, BOS, EOS, PAD, 256 bytes, then pieces of words, then those of phonemes.

    `saying` encodes the texts that a model is to say: this one, or that of their phonemes.
    """

    def __init__(self, model: bytes, source: str = TOKENIZER_FILE, numbers: str = "", phonemes: str = ""):
        """model: the content of a tokenizer.model; source: what to call it in errors. numbers: the language in which
        the numbers of a text become words before they become tokens, a code such as "en"; "": digits stay digits.
        phonemes: the accent in which a text that is said becomes phonemes (phonemes.py); "": it is told as written.

        Raises ValueError if it is no sentencepiece model or has other special ids, or the language is not known.
        """
        from sentencepiece import SentencePieceProcessor

        if numbers:
            check_language(numbers)
        super().__init__(numbers)
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
            self.num_pieces = self._pieces.vocab_size()
            special = tuple(getattr(self._pieces, f"{name}_id")() for name in ("unk", "bos", "eos", "pad"))
        except (RuntimeError, ValueError):  # ValueError: the reason itself is not UTF-8
            special, self.num_pieces = None, 0
        if not self.num_pieces:
            raise ValueError(f"{source}: is not a sentencepiece model, or is damaged; copy or train it again")
        if special != (EPAD, BOS, EOS, PAD):
            raise ValueError(
                f"{source}: has the ids {special} for unknown, BOS, EOS and PAD; they must be {(EPAD, BOS, EOS, PAD)}"
            )
        self.ngram: Ngram | None = None  # which texts are likely, where something has counted them
        self.saying = PhonemeEncoder(phonemes, self.num_pieces, numbers) if phonemes else self
        self.vocab_size = self.num_pieces + (NUM_PHONEME_TOKENS if phonemes else 0)

    @classmethod
    def train(
        cls, transcripts: Iterable[str], vocab_size: int = 2000, numbers: str = "", phonemes: str = ""
    ) -> "TextTokenizer":
        """The same transcripts in the same order give the same bytes. vocab_size: without those of phonemes; 0 for
        characters alone.

        Raises ValueError if there is no text, or a vocabulary of this size cannot be made from it.
        """
        from sentencepiece import SentencePieceTrainer

        if not vocab_size:
            texts = list(transcripts)
            return cls.train(texts, cls._num_characters(texts, numbers), numbers, phonemes)
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(f"vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}, 256 of them for bytes")
        texts = [" ".join(said_words(text, numbers)) for text in transcripts]
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError("no text to train a tokenizer on; put a transcript NAME.txt beside each NAME.wav")
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                normalization_rule_name="identity",
                unk_id=EPAD,
                bos_id=BOS,
                eos_id=EOS,
                pad_id=PAD,
                max_sentence_length=2**30,  # bytes; longer texts would be left out without a word
                num_threads=1,  # the number becomes part of the file
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(_in_one_line(str(error), vocab_size)) from None
        return cls(model.getvalue(), numbers=numbers, phonemes=phonemes)

    @classmethod
    def _num_characters(cls, transcripts: list[str], numbers: str) -> int:
        """The least vocab_size: sentencepiece says it of one that is too small. Very rare characters are bytes."""
        try:
            cls.train(transcripts, MIN_VOCAB_SIZE, numbers)
        except ValueError as error:
            if found := re.search(r"choose at least (\d+)", str(error)):
                return int(found[1])
            raise
        return MIN_VOCAB_SIZE

    @classmethod
    def load(cls, path: str | Path, numbers: str = "", phonemes: str = "") -> "TextTokenizer":
        """`path`: a tokenizer.model, or the folder that holds it, with an n-gram model where there is one beside it.

        Raises FileNotFoundError or ValueError.
        """
        path = Path(path)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a model that reads text has a {TOKENIZER_FILE}")
        tokenizer = cls(path.read_bytes(), str(path), numbers, phonemes)
        tokenizer.ngram = Ngram.load(path.parent, tokenizer.fingerprint)
        return tokenizer

    def save(self, folder: str | Path) -> Path:
        """Write folder/tokenizer.model, whole or not at all -> its path, and the n-gram model beside it.

        Raises OSError if it cannot be written.
        """
        path = Path(folder) / TOKENIZER_FILE
        write_whole(path, self.model)
        if self.ngram is not None:
            self.ngram.save(path.parent, self.fingerprint)
        return path

    def counted(self, texts: Iterable[str], order: int = ORDER) -> Ngram:
        """An n-gram model of these texts. Raises ValueError if there is none, or one that is no text."""
        return Ngram.count((self.encode(text) for text in texts), self.num_pieces, order)

    def tokens_of(self, told: Sequence[str]) -> list[list[int]]:
        # a part at a time: for a list sentencepiece starts threads, and waits for them
        return [[token for part in word.split() for token in self._pieces.encode(part)] for word in told]

    def spans_of(self, told: str, tokens: Sequence[int]) -> list[tuple[int, int]]:
        word = told.replace(" ", "")
        character_of = [place for place, c in enumerate(word) for _ in c.encode()] + [len(word)]  # for each byte
        sizes = [self._num_bytes[token] for token in tokens]
        return [
            (character_of[after - size], character_of[after - 1] + 1 if size else character_of[after])
            for after, size in zip(accumulate(sizes), sizes, strict=True)
        ]

    @cached_property
    def _num_bytes(self) -> list[int]:
        """What each token writes of a word, without the space before it."""
        pieces = [self._pieces.id_to_piece(token) for token in range(self.num_pieces)]
        return [
            1 if self._pieces.is_byte(token) else len(piece.removeprefix(WORD_START).encode())
            for token, piece in enumerate(pieces)
        ]

    def decode(self, tokens: Iterable[int]) -> str:
        """Tokens -> text, or its phonemes; special tokens and -1 (absent) are left out. Raises ValueError for unknown
        tokens."""
        found = [token for token in map(int, tokens) if token > PAD]
        if found and max(found) >= self.vocab_size:
            raise ValueError(f"text token {max(found)} is unknown; this tokenizer has 0..{self.vocab_size - 1}")
        runs = groupby(found, lambda token: token < self.num_pieces)
        return " ".join(
            self._pieces.decode(list(run)) if is_written else written(token - self.num_pieces for token in run)
            for is_written, run in runs
        )


def _in_one_line(error: str, vocab_size: int) -> str:
    """What sentencepiece says about a vocabulary size, for people."""
    if found := re.search(r"too high .* value <= (\d+)", error):
        return f"vocab_size {vocab_size} is more than this text supports; choose at most {found[1]}, or add text"
    if found := re.search(r"smaller than required_chars. -?\d+ vs (\d+)", error):
        return f"vocab_size {vocab_size} is too small for the characters of this text; choose at least {found[1]}"
    return f"no tokenizer with vocab_size {vocab_size} can be trained on this text ({error.splitlines()[0]})"
