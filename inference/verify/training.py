"""Checks of what is trained: every code is scored, the loss is what it says, and its gradient reaches every parameter.

B rows, K codebooks, T columns (frames), V codebook size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...model.depth import num_silent
from ...model.lm import SpeechLM
from ...model.losses import Weights
from .agreement import CODE_AXES, TEXT_AXES, prefix_of
from .findings import Finding, NotApplicable, compare, worst
from .sequences import Rows, fullest_rows, rows_of, score_whole, walk_through

WHOLE = 10**9  # steps in a chunk of the depth loss: all
STEP = 1e-6  # how far parameters are moved to see the loss's slope


def check_every_code(model: SpeechLM) -> Finding:
    """Each code, EOS and text token that is present costs something, -log softmax(logits) at it; the rest nothing."""
    return worst(worst(scored_as_logits_say(model, rows), prefix_of(rows)) for rows in rows_of(model))


def scored_as_logits_say(model: SpeechLM, rows: Rows) -> Iterator[Finding]:
    output, nats = model(**rows.arguments(), return_logits=True), score_whole(model, rows)
    yield from agrees(nats.codes, output.logits, rows.codes, rows.scored_codes(model), CODE_AXES, "code")
    if rows.text is not None and model.predicts_text:
        yield from agrees(nats.text, output.text_logits, rows.text, rows.scored_text(model), TEXT_AXES, "text")
    free = rows.has_end(model) & (nats.end == 0)
    if free.any():
        free &= walk_through(model, rows).nats.end > 0
    yield Finding(problem=unscored(free, ("row",), "EOS"))


def agrees(
    nll: Tensor, logits: Tensor, values: Tensor, scored: Tensor, axes: Sequence[str], what: str
) -> Iterator[Finding]:
    """nll, values, scored [...] and logits [..., C]."""
    log_p = logits.log_softmax(dim=-1).gather(-1, values.clamp_min(0)[..., None])[..., 0]
    yield compare(nll, -log_p.masked_fill(~scored, 0.0), axes, f"{what} of ")
    yield Finding(problem=unscored(scored & (nll == 0) & (log_p < 0), axes, what))  # what is certain costs nothing


def unscored(missing: Tensor, axes: Sequence[str], what: str) -> str:
    places = missing.nonzero()
    if not len(places):
        return ""
    spot = ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, places[-1], strict=True))
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    return f"the {what} at {spot}{more} is not scored"


# --- the loss ---


def check_loss(model: SpeechLM) -> Finding:
    """The training loss is the mean of the nats, weighted as asked, however the depth decoder's steps are chunked."""

    def findings() -> Iterator[Finding]:
        for rows in rows_of(model):
            nats, count = score_whole(model, rows), rows.num_scored(model)
            of = [1 + 0.5 * k for k in range(model.num_codebooks)]
            weighted = sum(weight * nats.codes[:, k].sum() for k, weight in enumerate(of))
            expected = (weighted + of[0] * nats.end.sum() + 0.7 * nats.text.sum()) / count
            for chunk in (3, WHOLE):
                loss = model(**rows.arguments(), weights=Weights(of, 0.7), depth_chunk=chunk).loss
                yield compare(loss, expected, (), f"{prefix_of(rows)}the weighted loss")

    return worst(findings())


# --- its gradient ---


@torch.enable_grad()
def check_gradients(model: SpeechLM) -> Finding:
    """Every parameter that should learn gets a gradient, the same in chunks of steps as in one piece."""
    rows, parameters = fullest_rows(model), dict(model.named_parameters())
    whole, chunked = (gradients(model, rows, chunk, Weights()) for chunk in (WHOLE, 3))
    findings = [
        compare(chunked[name], whole[name], [""] * whole[name].ndim, f"gradient of {name} in chunks, at")
        for name in parameters
    ]
    for name, index, part in learning_parts(model):
        if not whole[name][index].any():
            findings.append(Finding(problem=f"{part} gets no gradient from the loss"))
    return worst(findings)


def gradients(model: SpeechLM, rows: Rows, chunk: int, weights: Weights) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = model(**rows.arguments(), weights=weights, depth_chunk=chunk).loss
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def learning_parts(model: SpeechLM) -> Iterator[tuple[str, slice | int, str]]:
    """(parameter, which rows of it, what to call them) of all that should learn."""
    rows = model.codebook_size + 1
    for name, parameter in model.named_parameters():
        if name in ("frame_embedding.weight", "depth_embedding.weight"):
            for k in range((len(parameter) - 1) // rows):
                yield name, slice(k * rows, (k + 1) * rows), f"{name} of codebook {k}"
        elif parameter.ndim == 3:
            for i in range(len(parameter)):
                if not is_idle(model, name, i):
                    yield name, i, f"{name}[{i}]"
        elif not is_idle(model, name, None):
            yield name, slice(None), name


def is_idle(model: SpeechLM, name: str, weight_set: int | None) -> bool:
    """Whether no prediction depends on a parameter of the depth decoder (or on one of its sets of weights)."""
    if not name.startswith(("depth_decoder.", "project.")):
        return False
    depth, silent = model.config.depth_config, num_silent(model) and not model.depth_is_first
    num_positions = depth.num_positions(model.num_codebooks)
    own = [p for p in range(num_positions) if weight_set is None or depth.weight_sets[p] == weight_set]
    if model.num_codebooks == 1 and not model.depth_is_first:
        return True
    if name.startswith("project."):  # the context alone is projected, at position 0
        return depth.conditioning == "prefix" and depth.embeddings == "own" and 0 not in own
    if own != [0]:
        return False
    if ".attention.query" in name or (num_positions == 1 and ".attention.key" in name):
        return True  # position 0 sees itself alone: whatever the query, it attends to it
    last = name.startswith(f"depth_decoder.blocks.{depth.num_layers - 1}.")
    read_by_others = ".attention.key." in name or ".attention.value." in name
    return bool(silent) and last and not read_by_others  # what position 0 gives at last predicts nothing


@torch.enable_grad()
def check_slope(model: SpeechLM) -> Finding:
    """Each part of the loss changes as its gradient says, when all parameters are moved a little."""
    if model.dtype != torch.float64:
        raise NotApplicable("a slope needs float64")
    rows, count = fullest_rows(model), fullest_rows(model).num_scored(model)
    generator = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
        for name, parameter in model.named_parameters()
    }
    moved = [parts_of_loss(model, rows, direction, sign * STEP) for sign in (1, -1)]
    findings = []
    for number, part in enumerate(part_names(model)):
        only = Weights([float(k == number) for k in range(model.num_codebooks)], float(part == "text"))
        found = gradients(model, rows, 3, only)
        slope = sum((found[name] * direction[name]).sum() for name in found)
        size = sum(gradient.square().sum() for gradient in found.values()) ** 0.5
        expected = (moved[0][number] - moved[1][number]) / (2 * STEP * count)
        scale = torch.as_tensor(size + expected.abs())
        findings.append(compare(slope / scale, expected / scale, (), f"the slope of the loss of {part}, relative"))
    return worst(findings)


def part_names(model: SpeechLM) -> list[str]:
    return [f"codebook {k}" for k in range(model.num_codebooks)] + ["text"] * model.predicts_text


@torch.no_grad()
def parts_of_loss(model: SpeechLM, rows: Rows, direction: dict[str, Tensor], step: float) -> list[Tensor]:
    """The nats of each codebook (EOS among codebook 0's) and of the text, with all parameters moved."""
    moved = {name: parameter + step * direction[name] for name, parameter in model.named_parameters()}
    output = torch.func.functional_call(model, moved, kwargs=rows.arguments())
    parts = [output.nll[:, k].sum() for k in range(model.num_codebooks)]
    parts[0] = parts[0] + output.eos_nll.sum()
    return [*parts, output.text_nll.sum()] if model.predicts_text else parts
