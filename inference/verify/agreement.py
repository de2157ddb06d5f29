"""Checks that the likelihood is the same however it is computed: at once, in steps, chunks, batches, packed rows.

Each takes a model in the dtype that it is to be checked in.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ...model.delay_pattern import ABSENT
from ...model.layout import arrange
from ...model.lm import SpeechLM
from ...model.transformer import KVCache
from ...model.walk import Walk
from ..frame_step import FrameStep, is_supported
from .findings import Finding, NotApplicable, compare, worst
from .sequences import Nats, Rows, Walked, rows_of, score_whole, walk_through

CODE_AXES, TEXT_AXES, END_AXES = ("row", "codebook", "frame"), ("row", "column"), ("row",)


def check_steps(model: SpeechLM) -> Finding:
    """Step by step with caches == all at once, by the walk and by the frame step."""
    kinds = (Walk, FrameStep) if is_supported(model) else (Walk,)
    return worst(
        compare_walk(model, rows, walk_through(model, rows, kind=kind)) for rows in rows_of(model) for kind in kinds
    )


def check_chunks(model: SpeechLM) -> Finding:
    """The backbone fed in pieces onto its cache, and steps after known pieces == all at once."""

    def findings() -> Iterator[Finding]:
        for rows in rows_of(model):
            for pieces in ({0: 2, 3: 5}, {1: 4}):
                yield compare_walk(model, rows, walk_through(model, rows, pieces))
            yield compare_contexts(model, rows)

    return worst(findings())


def compare_walk(model: SpeechLM, rows: Rows, walked: Walked) -> Finding:
    whole, nats = score_whole(model, rows), walked.nats
    findings = [
        compare(nats.codes, whole.codes, CODE_AXES, seen=walked.codes_seen.expand_as(whole.codes)),
        compare(nats.end, whole.end, END_AXES, "EOS of ", walked.end_seen),
        compare(nats.text, whole.text, TEXT_AXES, "text of ", walked.text_seen.expand_as(whole.text)),
    ]
    return worst(findings, prefix_of(rows))


def compare_contexts(model: SpeechLM, rows: Rows) -> Finding:
    """What the backbone gives when it is fed 1, 2 and all other positions."""
    steps = arrange(model.config, **rows.arguments())
    flat = model.pattern == "flatten"
    told = steps.inputs, steps.text_inputs, steps.recent_inputs
    x = model.slot_embedding.inputs(steps) if flat else model.embed_frames(*told)
    cache = KVCache(model.config.backbone, len(x), x.shape[1], x)
    pieces = [model.backbone(x[:, cut], cache) for cut in (slice(0, 1), slice(1, 3), slice(3, None))]
    return compare(torch.cat(pieces, dim=1), model.backbone(x), ("row", "position", "hidden value"), prefix_of(rows))


def check_padding(model: SpeechLM) -> Finding:
    """A row of a padded batch == the row alone, and padding costs nothing."""

    def findings() -> Iterator[Finding]:
        for rows in rows_of(model):
            batch = score_whole(model, rows)
            for i, cut in enumerate(rows.lengths):
                alone, longest = score_whole(model, rows.row(i)), rows.codes.shape[2]
                own = Nats(batch.codes[i : i + 1], batch.end[i : i + 1], batch.text[i : i + 1])
                padding = 0, longest - cut
                expected = Nats(F.pad(alone.codes, padding), alone.end, F.pad(alone.text, padding))
                yield worst(compare_nats(own, expected), f"{prefix_of(rows)}{cut} frames padded to {longest}: ")

    return worst(findings())


def check_packing(model: SpeechLM) -> Finding:
    """Documents packed into one row == each alone."""
    if not model.config.bos:
        raise NotApplicable("the model has no BOS, so documents cannot share a row")
    return worst(worst(packed(model, rows), prefix_of(rows)) for rows in rows_of(model))


def packed(model: SpeechLM, rows: Rows) -> Iterator[Finding]:
    """All rows in one, the longest in between."""
    documents = [rows.row(i) for i in (1, 0, 2, 3)]
    codes = torch.cat([document.codes for document in documents], dim=2)
    numbers = torch.cat([torch.full((d.lengths[0],), n, device=codes.device) for n, d in enumerate(documents)])
    text = None if rows.text is None else torch.cat([d.text for d in documents if d.text is not None], dim=1)
    user = None if rows.user is None else torch.cat([d.user for d in documents if d.user is not None], dim=2)
    ends = torch.zeros_like(codes[:, 0], dtype=torch.bool)
    alone = [score_whole(model, document) for document in documents]
    first = 0
    for document in documents:
        present = (document.codes[0, 0] != ABSENT).nonzero().flatten()
        if document.ends.item() and len(present):
            ends[0, first + int(present[-1])] = True
        first += document.lengths[0]
    output = model(codes, ends=ends, text=text, user=user, documents=numbers[None])
    yield compare(output.nll, torch.cat([nats.codes for nats in alone], dim=2), CODE_AXES)
    yield compare(output.eos_nll, torch.stack([nats.end for nats in alone], dim=1), ("row", "document"), "EOS of ")
    if output.text_nll is not None:
        yield compare(output.text_nll, torch.cat([nats.text for nats in alone], dim=1), TEXT_AXES, "text of ")


def compare_nats(got: Nats, expected: Nats) -> list[Finding]:
    return [
        compare(got.codes, expected.codes, CODE_AXES),
        compare(got.end, expected.end, END_AXES, "EOS of "),
        compare(got.text, expected.text, TEXT_AXES, "text of "),
    ]


def prefix_of(rows: Rows) -> str:
    return "" if rows.layout == "audio" else f"layout '{rows.layout}': "
