"""Checks that the likelihood is a probability: nothing is seen too early, everything sums to 1, every code is scored.

B rows, K codebooks, U codebooks of another speaker (user), T columns (frames), V codebook size.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...model.delay_pattern import ABSENT
from ...model.lm import SpeechLM
from ...model.speech_lm_config import SpeechLMConfig
from ...model.walk import TEXT
from .agreement import prefix_of
from .findings import Finding, compare, worst
from .sequences import Nats, Rows, make_rows, rows_of, score_whole, walked_end

MAX_CHANGES = 60  # tokens that the causality check changes in a layout
LEAST_MOVE = 1e-12  # nats in float64: a token that is seen moves another by more
MAX_SEQUENCES = 1000  # sequences that the distribution check adds up
MAX_TEXTS = 4096  # values of a text token that it adds up
MAX_ROWS = 512  # rows scored at a time


# --- causality ---


class Token(NamedTuple):
    """One token of a row, or its EOS."""

    slot: int  # TEXT, codebook 0..K-1, then those of the user
    column: int  # for EOS: the one after the last
    is_end: bool = False

    def describe(self, config: SpeechLMConfig) -> str:
        if self.is_end:
            return "EOS"
        if self.slot == TEXT:
            return f"the text of column {self.column}"
        if self.slot >= config.num_codebooks:
            return f"the user's codebook {self.slot - config.num_codebooks} at frame {self.column}"
        return f"codebook {self.slot} at frame {self.column}"


def rank(config: SpeechLMConfig, token: Token) -> tuple[int, int]:
    """A token's place in the model's factorisation, as (step, place in the step).

    A token may depend on those of lower rank and on no others; tokens of one rank do not see each other.
    """
    num_codebooks, delays = config.num_codebooks, config.delays
    if token.slot >= num_codebooks:  # another speaker is heard when the step is over
        return token.column + delays[token.slot - num_codebooks], num_codebooks + 1
    step = token.column if token.slot == TEXT else token.column + delays[token.slot]
    if config.pattern == "delay":  # all heads see the same context
        return step, 0
    if config.pattern == "depth" and token.slot > 0:  # the codebooks of a group see the same codes
        return step, 2 + (token.slot - 1) // config.depth.group_size
    return step, token.slot - TEXT  # text, then one codebook after the other


def check_causality(model: SpeechLM) -> Finding:
    """Another value of a token moves no token that comes before it or beside it, and moves a later one."""
    return worst(causality_of(model, rows.row(0)) for rows in rows_of(model))


def causality_of(model: SpeechLM, row: Rows) -> Finding:
    config, (changes, variants) = model.config, changed(model, row)
    scored, values = scored_values(model, variants)  # [1 + n, tokens]
    moved = torch.nan_to_num((values[1:] - values[0]).abs().double(), nan=float("inf"))
    ranks = torch.tensor([rank(config, token) for token in scored], device=moved.device)  # [tokens, 2]
    costs = values[0] != 0  # another check finds tokens that are not scored
    if not config.bos:
        costs &= ranks[:, 0] > 0  # the first step has equal probabilities: nothing moves them
    findings = []
    for token, distances in zip(changes, moved, strict=True):
        step, place = rank(config, token)
        after = (ranks[:, 0] > step) | ((ranks[:, 0] == step) & (ranks[:, 1] > place))
        itself = torch.tensor([other == token for other in scored], device=moved.device)
        leaks = distances.masked_fill(after | itself, 0.0)
        if not len(leaks):
            continue
        seen = int(leaks.argmax())
        name, other = token.describe(config), scored[seen].describe(config)
        same = "the current frame leaks into its own prediction" if ranks[seen, 0] == step else "the future is seen"
        findings.append(Finding(float(leaks[seen]), f"{name} moves {other}, which does not come after it: {same}"))
        if model.dtype == torch.float64:
            findings.append(Finding(problem=never_seen(config, token, ranks[costs], distances[costs])))
    return worst(findings, prefix_of(row))


def never_seen(config: SpeechLMConfig, token: Token, ranks: Tensor, distances: Tensor) -> str:
    """The problem if a token moves nothing that it should move; "" if there is none."""
    step, place = rank(config, token)
    name, later = token.describe(config), distances[ranks[:, 0] > step]
    if len(later) and not later.max() > LEAST_MOVE:
        return f"{name} moves nothing in the steps after it: it never becomes an input"
    finer = distances[(ranks[:, 0] == step) & (ranks[:, 1] > place)]
    is_code = 0 <= token.slot < config.num_codebooks
    if is_code and len(finer) and not finer.max() > LEAST_MOVE:
        return f"{name} moves no other codebook of its step: they are not told of it"
    return ""


def changed(model: SpeechLM, row: Rows) -> tuple[list[Token], Rows]:
    """Tokens, and the row followed by one variant for each, in which that token has another value."""
    streams = {TEXT: row.text, **{k: row.codes[:, k] for k in range(model.num_codebooks)}}
    if row.user is not None:
        streams |= {model.num_codebooks + k: row.user[:, k] for k in range(row.user.shape[1])}
    tokens = [
        Token(slot, column)
        for slot, stream in streams.items()
        if stream is not None and not (slot == TEXT and model.text_size == 1)
        for column in (stream[0] != ABSENT).nonzero().flatten().tolist()
    ]
    tokens = tokens[:: -(-len(tokens) // MAX_CHANGES)] if tokens else []
    variants = row.repeat(1 + len(tokens))
    for i, (slot, column, _) in enumerate(tokens, start=1):
        if slot == TEXT:
            assert variants.text is not None
            variants.text[i, column] = (variants.text[i, column] + 1) % model.text_size
        elif slot < model.num_codebooks:
            variants.codes[i, slot, column] = (variants.codes[i, slot, column] + 1) % model.codebook_size
        else:
            assert variants.user is not None
            own = variants.user[i, slot - model.num_codebooks]
            own[column] = (own[column] + 1) % model.codebook_size
    return tokens, variants


def scored_values(model: SpeechLM, rows: Rows) -> tuple[list[Token], Tensor]:
    """The tokens that are scored in every row (rows differ in values only), and their nats [B, tokens]."""
    nats = score_whole(model, rows)
    tokens = [Token(k, t) for k, t in rows.scored_codes(model)[0].nonzero().tolist()]
    texts = [Token(TEXT, t) for t in rows.scored_text(model)[0].nonzero().flatten().tolist()]
    values = [nats.codes[:, token.slot, token.column] for token in tokens]
    values += [nats.text[:, token.column] for token in texts]
    tokens += texts
    if rows.has_end(model)[0]:
        last = int((rows.codes[0, 0] != ABSENT).nonzero().max())
        tokens.append(Token(0, last + 1, is_end=True))
        values.append(nats.end)
    return tokens, torch.stack(values, dim=1) if values else nats.end[:, None][:, :0]


# --- a distribution ---


def check_distribution(model: SpeechLM) -> Finding:
    """The probabilities of all values of a token sum to 1; with a tiny vocabulary, those of all sequences do."""
    one = torch.ones((), dtype=torch.float64, device=model.device)
    totals = itertools.chain(totals_of_codes(model), totals_of_texts(model), totals_of_sequences(model))
    return worst(compare(total, one, (), f"the probabilities of all {what}") for what, total in totals)


def totals_of_codes(model: SpeechLM) -> Iterator[tuple[str, Tensor]]:
    """For codes (k, t): the sum over their values, each put in and scored; EOS counts as a value of codebook 0."""
    for row in example_rows(model, "audio", "first"):
        tokens = [Token(k, t) for k, t in row.scored_codes(model)[0].nonzero().tolist()]
        for slot, column, _ in tokens if is_tiny(model) else spread(tokens):
            variants = row.repeat(model.codebook_size)
            variants.codes[:, slot, column] = torch.arange(model.codebook_size, device=model.device)
            total = score_parts(model, variants).codes[:, slot, column].double().neg().exp().sum()
            if slot == 0 and may_end(model, column):
                total = total + end_probability(model, row, column)
            yield f"values of {Token(slot, column).describe(model.config)} in layout '{row.layout}'", total


def totals_of_texts(model: SpeechLM) -> Iterator[tuple[str, Tensor]]:
    """For text tokens beside codes: the sum over their values."""
    asked = model.predicts_text and model.text_size <= MAX_TEXTS
    for row in example_rows(model, "aligned") if asked else ():
        for column in row.scored_text(model)[0].nonzero().flatten().tolist()[:2]:
            variants = row.repeat(model.text_size)
            assert variants.text is not None
            variants.text[:, column] = torch.arange(model.text_size, device=model.device)
            total = score_parts(model, variants).text[:, column].double().neg().exp().sum()
            yield f"values of {Token(TEXT, column).describe(model.config)}", total


def totals_of_sequences(model: SpeechLM) -> Iterator[tuple[str, Tensor]]:
    """The sum over all sequences of up to `longest` frames: those that have ended, and those that go on."""
    size, num_codebooks = model.codebook_size, model.num_codebooks
    longest = max((t for t in (1, 2) if size ** (num_codebooks * t) <= MAX_SEQUENCES), default=0)
    row = make_rows(model, "audio").row(0)
    if not longest:
        return
    ends = model.config.end == "eos"
    total = end_probability(model, row, 0) if may_end(model, 0) else 0.0
    for columns in range(1, longest + 1) if ends else [longest]:
        short = shorten(row, columns)
        free = short.scored_codes(model)[0].flatten()  # [K * T]
        values = torch.tensor(list(itertools.product(range(size), repeat=int(free.sum()))), dtype=torch.long)
        variants = short.repeat(len(values))
        variants.codes.view(len(values), -1)[:, free] = values.to(model.device)
        nats = score_parts(model, replace(variants, ends=torch.ones_like(variants.ends)))
        reached = nats.codes.double().sum(dim=(1, 2)).neg().exp()
        ended = reached * nats.end.double().neg().exp() if ends else torch.zeros_like(reached)
        total = total + ended.sum()
        if columns == longest:
            total = total + (reached - ended).sum()
    yield f"sequences of up to {longest} frames", torch.as_tensor(total)


def example_rows(model: SpeechLM, *layouts: str) -> list[Rows]:
    """Rows to put values into; short ones of audio alone where there are many values."""
    if not is_tiny(model):
        return [shorten(make_rows(model, layouts[0]).row(0), 2)]
    return [make_rows(model, layout).row(1) for layout in layouts if layout == "audio" or model.text_size]


def is_tiny(model: SpeechLM) -> bool:
    return max(model.codebook_size, model.text_size) <= 32


def spread(tokens: list[Token]) -> list[Token]:
    """The first, the last and one in the middle."""
    return [tokens[i] for i in sorted({0, len(tokens) // 2, len(tokens) - 1})]


def shorten(row: Rows, columns: int) -> Rows:
    return replace(row, lengths=(columns,) * len(row.lengths)).row(0)


def score_parts(model: SpeechLM, rows: Rows) -> Nats:
    """Many rows, some at a time."""
    parts = []
    for start in range(0, len(rows.codes), MAX_ROWS):
        few = slice(start, start + MAX_ROWS)
        text, user = (None if x is None else x[few] for x in (rows.text, rows.user))
        parts.append(score_whole(model, replace(
            rows, codes=rows.codes[few], ends=rows.ends[few], lengths=rows.lengths[few], text=text, user=user
        )))  # fmt: skip
    return Nats(*(torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "end", "text")))


def may_end(model: SpeechLM, columns: int) -> bool:
    """Whether EOS may come after this many columns: something must come before it."""
    return model.config.end == "eos" and (model.config.bos or columns + model.config.delays[0] > 0)


def end_probability(model: SpeechLM, row: Rows, columns: int) -> Tensor:
    """The probability of EOS after this many columns."""
    short = replace(shorten(row, columns), ends=torch.ones_like(row.ends))
    if columns and (short.codes != ABSENT).any():
        return score_whole(model, short).end[0].double().neg().exp()
    # no audio yet that could end: SpeechLM does not score EOS there, so a walk does
    return walked_end(model, replace(short, codes=short.codes[:, :, :columns]))[0].double().neg().exp()
