"""Spelling as "speech": words a, b, c, d, each a code of codebook 0; the second codebook is the speaker's number."""

from collections.abc import Sequence

import numpy as np

from codeclm.data.config import FormShares
from codeclm.inference import SamplingConfig
from codeclm.model.shapes import TextLayout, TransformerConfig
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig, TextOptions, TrainConfig

LETTERS, WORDS, SPEAKERS = "abcd", 4, 4
BACKBONE = TransformerConfig(dim=64, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=128)
DEPTH = TransformerConfig(dim=32, num_layers=1, num_heads=4, num_kv_heads=4, ff_dim=64)
GREEDY = SamplingConfig(0.0, 0.0)
LEAD_S = 0.02  # at 100 frames a second; the usual seconds would be longer than a text
AHEAD = 3  # tokens, of the 7 of a text
TEXTS = ("a b c d", "d d a c", "c a b b")


def drawn_texts(count: int, rng: np.random.Generator, num_words: int = WORDS) -> list[str]:
    return [" ".join(LETTERS[i] for i in rng.integers(0, 4, num_words)) for _ in range(count)]


def spell(text: str, speaker: int, lengths: Sequence[int] | int = 1) -> np.ndarray:
    """Codes [T, 2]. lengths: frames of each word, or of all."""
    letters = np.repeat([LETTERS.index(word) for word in text.split()], lengths)
    return np.stack([letters, np.full(len(letters), speaker)], axis=1)


def names_of(texts: Sequence[str]) -> list[str]:
    """Utterances' names: text i is spelled by speaker i % SPEAKERS."""
    return [f"speaker{i % SPEAKERS}/{i}" for i in range(len(texts))]


def settings(layout: TextLayout, steps: int, frames_per_batch: int, max_frames: int, shares: FormShares) -> TrainConfig:
    """A run in which a small model learns to spell in a minute."""
    return TrainConfig(
        steps=steps,
        evaluate_every=steps,
        save_every=steps,
        bf16=False,
        canary=0,
        batch=BatchConfig(frames_per_batch=frames_per_batch, max_frames=max_frames, heldout_share=0.1, text=shares),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20, weight_decay=0.0),
        model=ModelConfig(backbone=BACKBONE, depth=DEPTH, text=TextOptions(layout, 269, LEAD_S, LEAD_S, AHEAD)),
    )
