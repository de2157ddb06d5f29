"""Two ranks take the step that one would: their losses are divided by what the whole batch scores, for every model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.layout import num_scored
from codeclm.model.losses import Weights
from codeclm.model.random_bits import row_keys
from codeclm.model.transformer import Block

from .options import OPTIONS, example

LENGTHS = (12, 3, 9, 2, 7)


def padded_batch(model: SpeechLM) -> dict[str, Tensor]:
    """Rows of different lengths; some end."""
    batch = example(model, len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        for values in batch.values():
            values[row, ..., length:] = ABSENT
    return batch | {"ends": torch.tensor([True, False, True, True, False])}


def gradient(model: SpeechLM, batch: dict[str, Tensor], ranks: int, **options: Any) -> Tensor:
    """The mean over ranks, of losses scaled as the trainer scales them."""

    def count(rows: dict[str, Tensor]) -> int:
        return int(num_scored(model.config, rows["codes"], rows["ends"], rows.get("text")))

    model.zero_grad()
    for rank in range(ranks):
        rows = {name: values[rank::ranks] for name, values in batch.items()}
        keys = row_keys(0, 5, range(rank, len(LENGTHS), ranks))
        (model(**rows, row_keys=keys, **options).loss * (ranks * count(rows) / count(batch)) / ranks).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("option", [*OPTIONS, "no bos, text"])
def test_the_gradient_of_two_ranks_is_that_of_one(make_model, option):
    options = OPTIONS["text"] | {"bos": False} if option == "no bos, text" else OPTIONS[option]
    model = make_model(**options)
    batch = padded_batch(model)
    one, two = gradient(model, batch, 1), gradient(model, batch, 2)
    assert (one - two).norm() <= 1e-9 * one.norm() and one.norm() > 0


@pytest.mark.parametrize("option", OPTIONS)
def test_two_ranks_draw_frames_and_dropout_as_one_does(make_model, option):
    model = make_model(**OPTIONS[option]).train()
    for block in model.modules():
        if isinstance(block, Block):
            block.dropout = 0.3
    batch, drawn = padded_batch(model), dict(depth_fraction=0.5, input_dropout=0.2, depth_chunk=3)
    drawn["frame_dropout"] = 0.0 if model.pattern == "flatten" else 0.2
    drawn["weights"] = Weights(z_loss=1e-2)
    one, two = gradient(model, batch, 1, **drawn), gradient(model, batch, 2, **drawn)
    assert (one - two).norm() <= 1e-9 * one.norm() and one.norm() > 0
    assert (one - gradient(model, batch, 1)).norm() > 0.1 * one.norm()  # it was drawn
