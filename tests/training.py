"""What tests of training share: a source of known entropy, a short run on its codes, and what a run leaves behind.

Codebook 0 of the source is a Markov chain, codebook 1 a noisy function of codebook 0. The fixtures `one_thread`,
`codec` and `store` that go with it are in conftest.py.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codeclm.data.token_store import TokenStore
from codeclm.model.shapes import TransformerConfig
from codeclm.train.checkpoint import latest_checkpoint, load_tensors
from codeclm.train.config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig
from codeclm.train.loop import train
from codeclm.train.new_model import new_model

SIZE = 4
SHAPE = ModelConfig(
    backbone=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=32),
    depth=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=32),
)
SHORT = TrainConfig(
    steps=12,
    depth_fraction=0.5,
    evaluate_every=6,
    save_every=4,
    bf16=False,
    batch=BatchConfig(frames_per_batch=128, max_frames=32, heldout_share=0.2),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3, schedule="cosine"),
    model=SHAPE,
)


@dataclass(frozen=True)
class Source:
    """Codebook 0 moves on by 0, 1, 2 or 3 (mod 4) with these probabilities; codebook 1 is codebook 0 plus 1 with
    probability `faithful`, else any of the three others. Everything starts uniform, so it stays uniform."""

    moves: tuple[float, ...] = (0.08, 0.8, 0.1, 0.02)
    faithful: float = 0.9

    @property
    def bits_per_frame(self) -> float:
        """The entropy rate."""
        move = -sum(p * math.log2(p) for p in self.moves)
        noise = 1 - self.faithful
        return move - self.faithful * math.log2(self.faithful) - noise * math.log2(noise / 3)

    def draw(self, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        """Codes [T, 2]."""
        moves = rng.choice(SIZE, num_frames, p=self.moves)
        moves[0] = rng.integers(SIZE)
        coarse = moves.cumsum() % SIZE
        wrong = rng.random(num_frames) > self.faithful
        return np.stack([coarse, (coarse + 1 + wrong * rng.integers(1, SIZE, num_frames)) % SIZE], axis=1)

    def bits(self, codes: np.ndarray) -> float:
        """What these codes cost whoever knows the source."""
        moves = np.diff(codes[:, 0]) % SIZE
        right = codes[:, 1] == (codes[:, 0] + 1) % SIZE
        likelihood = np.where(right, self.faithful, (1 - self.faithful) / 3)
        return 2 - np.log2(np.array(self.moves)[moves]).sum() - np.log2(likelihood).sum()


SOURCE = Source()


def draw(source: Source, lengths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [source.draw(length, rng) for length in lengths]


def run(store: TokenStore, codec, out: Path, config: TrainConfig = SHORT) -> dict[str, torch.Tensor]:
    """Train (or resume) -> the weights and optimizer state of the last checkpoint."""
    train(new_model(store, config), codec, store, out, config)
    return state_of(out, config.steps)


def state_of(out: Path, steps: int) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(out)
    assert checkpoint is not None and checkpoint.name == f"step-{steps:08d}"
    optimizer = {f"optimizer.{key}": tensor for key, tensor in load_tensors(checkpoint, "optimizer").items()}
    return load_tensors(checkpoint, "model") | optimizer


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


def metrics(out: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


# --- a run of its own process ---

PROGRAM = """
import os, signal
from pathlib import Path
import torch
from codeclm.data.token_store import TokenStore
from codeclm.model.codecs import load_codec
from codeclm.model.shapes import *
from codeclm.train.config import *
from codeclm.train import loop
from codeclm.train.new_model import new_model

torch.set_num_threads(1)
config, store = {config!r}, TokenStore({store!r})
model = new_model(store, config)
{before}
loop.train(model, load_codec({codec!r}), store, Path({out!r}), config)
"""


def program(store: TokenStore, codec, out: Path, config: TrainConfig, before: str) -> Path:
    codec.save(out.parent / "codec")
    path = out.parent / f"{out.name}.py"
    path.write_text(
        PROGRAM.format(
            config=config, store=str(store.folder), codec=str(out.parent / "codec"), out=str(out), before=before
        )
    )
    return path
