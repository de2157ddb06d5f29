"""data/rows.py: rows of several pieces give the numbers of the same pieces in rows of their own."""

from itertools import zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeclm.data.dataset import TokenBatches
from codeclm.data.rows import Piece, can_be_packed, pack, stack
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.model import SpeechLM
from codeclm.model.shapes import TextConfig
from codeclm.train.config import BatchConfig, TrainConfig
from codeclm.train.identity import identity
from codeclm.train.loop import Trainer

from .options import OPTIONS, SIZE

LENGTHS = [5, 12, 1, 7, 30, 7, 3, 19, 44]
LAYOUTS = ("first", "last", "aligned", "mixed")


@given(lengths=st.lists(st.integers(1, 60), max_size=60), num_columns=st.integers(0, 50))
def test_pieces_are_packed_once_each_into_rows_that_they_fit_into(lengths, num_columns):
    rows = pack(lengths, num_columns)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    totals = [sum(lengths[piece] for piece in row) for row in rows]
    assert all(total <= num_columns or len(row) == 1 for row, total in zip(rows, totals, strict=True))
    assert sum(total * 2 <= num_columns for total in totals) <= 1  # two such would be one row


def test_rows_hold_their_pieces_and_padding_goes_with_the_last():
    text, codes = np.array([4, 5, -1]), np.arange(6).reshape(2, 3)
    one, two = Piece(text, codes, 2), Piece(text[:2], codes[:, :2], None)
    rows = stack([[two, one], [one]], 2, 6)
    assert rows.text.tolist() == [[4, 5, 4, 5, -1, -1], [4, 5, -1, -1, -1, -1]]
    assert rows.codes[:, 0].tolist() == [[0, 1, 0, 1, 2, -1], [0, 1, 2, -1, -1, -1]]
    assert rows.ends.nonzero().tolist() == [[0, 4], [1, 2]]
    assert rows.documents is not None and rows.documents.tolist() == [[0, 0, 1, 1, 1, 1], [0] * 6]
    assert rows.given is None
    heard = stack([[one, two._replace(given=np.array([True, False]))]], 2, 6).given
    assert heard is not None and heard.nonzero().tolist() == [[0, 3]]
    assert rows.lengths() == [2, 4, 6] and stack([[one], [two]], 2, 3).lengths() == [3, 3]
    assert stack([[one], [two]], 2, 3).documents is None and stack([], 2, 3).codes.shape == (0, 2, 3)


def test_the_model_decides_whether_rows_are_packed(make_model, make_store, make_codec, tmp_path):
    codec = make_codec()
    store = make_store(tmp_path / "store", [np.zeros((n, 3), int) for n in LENGTHS], codec)
    config = TrainConfig(bf16=False, batch=BatchConfig(100, 50, heldout_share=0.2))
    kinds = {}
    for name, options in {"default": {}, "no bos": {"bos": False}}.items():
        model = make_model(codec=codec, **options)
        with Trainer(model, codec, store, tmp_path / name, config) as trainer:
            assert (trainer.batches.rows(0).documents is not None) == can_be_packed(model.config)
            kinds[name] = identity(trainer)["rows"]  # a run does not go on with the other kind
    assert kinds == {"default": "packed", "no bos": "padded"}
    settings = make_model().config
    settings._attn_implementation_internal = "flash_attention_2"
    assert not can_be_packed(settings)


# --- the same numbers as in rows of their own ---


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the quick brown fox jumps over the lazy dog"], vocab_size=290)


def both_kinds(store, **options) -> list[TokenBatches]:
    """An epoch in one batch, packed and padded."""
    return [TokenBatches(store, 4 * sum(LENGTHS), 60, seed=0, packed=packed, **options) for packed in (True, False)]


def loss_and_gradient(model: SpeechLM, batches: TokenBatches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, nats of EOS, gradient) of the only batch; the utterances fit into a row, so nothing is cut."""
    assert len(batches.epoch_batches(0)) == 1
    rows = batches.rows(0)
    assert (rows.documents is not None) == batches.packed
    model.zero_grad()
    text = rows.text if model.text_size else None
    output = model(rows.codes, ends=rows.ends, text=text, documents=rows.documents, given=rows.given)
    output.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return output.loss.detach(), output.eos_nll.sum().detach(), gradient


def assert_equal_either_way(model: SpeechLM, store, **options) -> None:
    packed, padded = (loss_and_gradient(model, batches) for batches in both_kinds(store, **options))
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert padded[2].norm() > 0


PACKABLE = [name for name in OPTIONS if name != "no bos" and "text" not in name]


@pytest.mark.parametrize("option", PACKABLE)
def test_a_packed_batch_has_the_loss_and_the_gradient_of_the_padded_one(
    make_model, make_codec, make_store, tmp_path, option
):
    codec, rng = make_codec(codebook_size=SIZE + 1), np.random.default_rng(0)
    store = make_store(tmp_path, [rng.integers(0, SIZE, (length, 3)) for length in LENGTHS], codec)
    assert_equal_either_way(make_model(codec=codec, **OPTIONS[option]), store)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["depth", "flatten"])
def test_so_it_has_with_text(make_model, make_codec, make_store, tmp_path, tokenizer, layout, pattern):
    codec, rng = make_codec(codebook_size=SIZE + 1), np.random.default_rng(0)
    texts = [text for text, _ in zip_longest(["the dog", "", "fox", "over the", "the lazy dog"], LENGTHS, fillvalue="")]
    store = make_store(tmp_path, [rng.integers(0, SIZE, (length, 3)) for length in LENGTHS], codec, texts=texts)
    model = make_model(codec=codec, text=TextConfig(tokenizer.vocab_size, layout=layout), pattern=pattern)
    assert_equal_either_way(model, store, tokenizer=tokenizer, text=model.config.text)


@pytest.mark.parametrize("frames_per_batch", [1, 20, 100, 1000])
@pytest.mark.parametrize("context_frames", [0, 8])
def test_packed_scores_are_those_of_padded_rows(
    make_model, make_codec, make_store, tmp_path, tokenizer, monkeypatch, frames_per_batch, context_frames
):
    codec, rng = make_codec(codebook_size=SIZE + 1), np.random.default_rng(0)
    texts = [["", "the dog", "fox"][i % 3] for i in range(len(LENGTHS))]
    store = make_store(tmp_path, [rng.integers(0, SIZE, (length, 3)) for length in LENGTHS], codec, texts=texts)
    model = make_model((0, 1, 1), codec=codec, text=TextConfig(tokenizer.vocab_size))
    shapes, forward = [], model.forward

    def seen(codes: torch.Tensor, *args, **kwargs):
        shapes.append((codes.shape[0], codes.shape[2], kwargs["documents"] is not None))
        return forward(codes, *args, **kwargs)

    monkeypatch.setattr(model, "forward", seen)
    config = EvaluateConfig(frames_per_batch, context_frames)
    packed = score_store(model, store, config, progress=False, tokenizer=tokenizer)
    assert all(rows * columns <= frames_per_batch or rows == 1 for rows, columns, _ in shapes)
    assert any(documents for *_, documents in shapes) == (frames_per_batch > 1)
    monkeypatch.setattr("codeclm.inference.evaluate.score.can_be_packed", lambda config: False)
    columns = sum(rows * columns for rows, columns, _ in shapes)
    shapes.clear()
    padded = score_store(model, store, config, progress=False, tokenizer=tokenizer)
    assert not any(documents for *_, documents in shapes)
    assert columns <= sum(rows * columns for rows, columns, _ in shapes)
    for name in ("nll", "eos_nll", "text_nll", "num_tokens"):
        np.testing.assert_allclose(getattr(packed, name), getattr(padded, name), rtol=0, atol=1e-9)
