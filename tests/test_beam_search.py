"""inference/beam_search.py: the likeliest text is found, and rows that change places go on as those they are."""

from itertools import product

import numpy as np
import pytest
import torch

from codeclm.data.ngram import Ngram
from codeclm.inference import beam_search
from codeclm.inference.beam_search import likeliest_text
from codeclm.inference.config import BeamConfig
from codeclm.inference.frame_step import FrameStep, is_supported
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.flatten import TEXT
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, PAD, WRITE
from codeclm.model.walk import Walk

from .options import WORDS, backbone

CASES = {
    "timed": dict(text=TextConfig(WORDS, layout="timed", lookahead=3), backbone=backbone(sliding_window=5)),
    "last": dict(text=TextConfig(WORDS, layout="last")),
    "delays": dict(text=TextConfig(WORDS, layout="last"), pattern="delay", delays=(0, 1, 2)),
    "flat": dict(text=TextConfig(WORDS, layout="last"), pattern="flatten"),
    "no beginning": dict(text=TextConfig(WORDS, layout="last"), bos=False),
}
FRAMES, AFTER = 3, 2  # with audio, and columns after it


def heard(model: SpeechLM) -> Request:
    """A recording beside which, or after which, a text is to be written."""
    draw = torch.Generator().manual_seed(4)
    codes = torch.randint(0, model.codebook_size, (model.num_codebooks, FRAMES), generator=draw)
    if model.config.text.layout != "timed":
        return Request(4, codes, draw_codes=False, draw_text=True, text_end=EOS)
    new = torch.nn.functional.pad(codes, (0, AFTER), value=ABSENT)
    before = torch.full_like(codes[:, :1], ABSENT)
    return Request(
        FRAMES + AFTER, before, torch.tensor([WRITE]), draw_codes=False, draw_text=True, text_end=EOS, new_codes=new
    )


def text_heard(model: SpeechLM, told: tuple[int, ...]) -> float:
    """ln of the probability that the columns of a timed model tell this, EOS last."""
    request = heard(model)
    assert request.codes is not None and request.new_codes is not None
    codes = torch.cat([request.codes, request.new_codes], dim=1)[None, :, : 1 + len(told)]
    return -float(model(codes, text=torch.tensor([[WRITE, *told]])).text_nll[0, 1:].sum())


def without_memory(model: SpeechLM) -> SpeechLM:
    """What was told changes nothing: then all ways to tell a text go on alike, and the search is exact."""
    for table in (model.text_embedding, model.text_recent_embedding):
        torch.nn.init.zeros_(table.weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("weight, bonus", [(0.0, 0.0), (0.7, 0.0), (0.5, 1.5)])
def test_the_text_with_the_best_score_is_found(make_model, weight, bonus):
    """All texts of a small vocabulary in all ways of telling them, one by one."""
    model = without_memory(make_model(**CASES["timed"]))
    num_pieces, choices = PAD + 4, (PAD, PAD + 1, PAD + 2, PAD + 3)
    ngram = Ngram.count([[4, 5], [4, 5, 6], [5], [4, 4]], WORDS)
    scores: dict[tuple[int, ...], float] = {}
    for columns in range(FRAMES, FRAMES + AFTER):
        for told in product(choices, repeat=columns):
            tokens = tuple(token for token in told if token != PAD)
            scores[tokens] = float(np.logaddexp(scores.get(tokens, -np.inf), text_heard(model, (*told, EOS))))
    for tokens in scores if weight else ():
        state, nats = ngram.start, 0.0
        for token in (*tokens, EOS):
            nats += float(ngram.log_probabilities(state)[token])
            state = ngram.next(state, token)
        scores[tokens] += weight * nats + bonus * len(tokens)
    beam = BeamConfig(len(choices) ** (FRAMES + AFTER), weight, bonus)
    found = likeliest_text(model, heard(model), num_pieces, beam, ngram if weight else None)
    assert tuple(found) == max(scores, key=scores.__getitem__)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_frame_step_finds_what_the_walk_finds(make_model, name, monkeypatch):
    texts, ngram = set(), Ngram.count([[4, 5], [4, 5, 6], [5], [4, 4]], WORDS)
    for seed in range(4):
        model = make_model(seed=seed, **CASES[name])
        for size in (1, 3, 8):
            how = WORDS, BeamConfig(size, token_bonus=2.5), ngram
            found = likeliest_text(model, heard(model), *how)
            with monkeypatch.context() as patch:
                patch.setattr(beam_search, "is_supported", lambda model: False)
                assert found == likeliest_text(model, heard(model), *how)
            texts.add(tuple(found))
    assert len(texts) > 1


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_rows_that_change_places_go_on_as_they_were(make_model, name):
    """Rows that told different texts are chosen, twice and not at all: the next logits are those of their texts."""
    model, rows = make_model(**CASES[name]), [2, 0, 0]
    codes = torch.randint(0, model.codebook_size, (1, model.num_codebooks, 7))
    before = torch.randint(PAD + 1, WORDS, (3, 7))
    given = codes[:, :, :2], torch.full((1, 2), ABSENT)
    walks = [Walk(model, 3, 12)] + ([FrameStep(model, 3, 12)] if is_supported(model) else [])
    for walk in walks:
        walk.prefill(*(x.expand(3, *x.shape[1:]) for x in given))
        logits = []
        for column in range(2, 7):

            def choose(slot, found, column=column, walk=walk, logits=logits):
                assert slot == TEXT
                logits.append(found.clone())
                if column == 4:
                    walk.select(rows)
                return before[rows if column >= 4 else [0, 1, 2], column]

            walk.step(choose, {k: codes[0, k, column].expand(3) for k in range(model.num_codebooks)})
        text = torch.cat([given[1].expand(3, -1), before[rows, 2:]], dim=1)
        steps = codes.expand(3, -1, -1).clone()
        plain = Walk(model, 3, 12)
        plain.prefill(steps[:, :, :6], text[:, :6])
        torch.testing.assert_close(logits[-1], plain.logits(TEXT), rtol=0, atol=1e-9)


@torch.no_grad()
def test_numbers_that_are_none_are_refused(make_model):
    model = make_model(**CASES["last"])
    model.text_head.weight[5, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        likeliest_text(model, heard(model), WORDS, BeamConfig(2))
    for name, value in ("beam_size", 0), ("ngram_weight", -1.0), ("token_bonus", float("nan")):
        with pytest.raises(ValueError, match=name):
            BeamConfig(**{name: value})
