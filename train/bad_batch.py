"""A batch whose loss is not finite: the utterances that it is made of, or those of them that are to blame."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..data.dataset import Batches
from ..data.rows import Rows
from ..model.lm import SpeechLM

if TYPE_CHECKING:
    from .trainer import Trainer

MOST = 5  # names in a message


def blamed(trainer: "Trainer") -> str:
    """The pieces of this rank's rows whose own loss is not finite, in words; if none or all are so, that is said."""
    machine = trainer.accelerator
    mine = trainer.step, machine.process_index, machine.num_processes
    own, rows = trainer.aside(lambda: (list(pieces(trainer.batches, *mine)), trainer.batches.rows(*mine)))
    with trainer.whole() as model, trainer.autocast():
        each = [rows.take(slice(row, row + 1)).to(machine.device) for row in range(len(rows))]
        finite = [finite_columns(model, row)[0] for row in each]
    bad = [name for row, columns, name in own if not finite[row][columns].all()]
    if not bad:
        return f"each of its {len(own)} pieces alone has a finite loss: " + listed([name for _, _, name in own])
    blame = "all of its pieces" if len(bad) == len(own) > 1 else f"{len(bad)} of its {len(own)} pieces"
    return f"{blame}: {listed(bad)}"


def pieces(batches: Batches, step: int, rank: int, world_size: int) -> Iterator[tuple[int, slice, str]]:
    """(row, its columns, name and frames) of each piece of an utterance in a rank's rows of a step."""
    for row, (grids, segments) in enumerate(batches.batch(step)[rank::world_size]):
        first = 0
        for (utterance, start, stop), length in zip(segments.tolist(), grids.lengths(segments), strict=True):
            yield row, slice(first, first + int(length)), f"{grids.store.names[utterance]} ({start}..{stop})"
            first += int(length)


@torch.no_grad()
def finite_columns(model: SpeechLM, rows: Rows) -> torch.Tensor:
    """[B, T], whether what a column costs is finite."""
    text = rows.text if model.text_size else None
    output = model(rows.codes, ends=rows.ends, text=text, documents=rows.documents, given=rows.given)
    finite = output.nll.isfinite().all(dim=1)
    return finite if output.text_nll is None else finite & output.text_nll.isfinite()


def listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
