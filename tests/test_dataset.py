"""data/dataset.py: every frame once per epoch, and batches that depend on (seed, step) alone."""

import queue
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.ahead import Ahead
from codeclm.data.dataset import TokenBatches
from codeclm.data.grids import StoreGrids
from codeclm.data.rows import Rows
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.data.token_store import TokenStore
from codeclm.model.codec_reference import CodecReference
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, EPAD, PAD

INFO = CodecReference("tiny", "f" * 64, 16_000, 640, num_codebooks=2, codebook_size=65_536)
LENGTHS = [3, 90, 17, 1, 40, 250, 8, 8, 33, 61, 5, 120]


def make_store(
    folder: Path, lengths: list[int], names: list[str] | None = None, texts: Sequence[str | None] = ()
) -> TokenStore:
    """Codebook 0 counts the frames of the whole store, so that a frame is known by its code."""
    ends = np.cumsum(lengths)
    folder.mkdir(exist_ok=True)
    entries = [
        Utterance(names[i] if names else f"u{i}", n, np.stack([np.arange(end - n, end), np.full(n, i)], axis=1), text)
        for i, (n, end, text) in enumerate(zip_longest(lengths, ends, texts))
    ]
    half = len(entries) // 2
    shards = [write_shard(folder, number, part, INFO) for number, part in enumerate([entries[:half], entries[half:]])]
    commit_store(folder, INFO, shards)
    return TokenStore(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("store"), LENGTHS)


def epoch_of(batches: TokenBatches, epoch: int) -> list[Rows]:
    first = sum(len(batches.epoch_batches(earlier)) for earlier in range(epoch))
    return [batches.rows(first + i) for i in range(len(batches.epoch_batches(epoch)))]


def pieces_of(rows: Rows) -> list[Rows]:
    """The pieces of all rows, each a row of its own; the last one of a row with its padding."""
    documents = torch.zeros_like(rows.text) if rows.documents is None else rows.documents
    pieces = []
    for row, numbers in enumerate(documents):
        assert (numbers.diff() >= 0).all()
        for number in range(int(numbers[-1]) + 1):
            mine = numbers == number
            pieces.append(Rows(*(x[row : row + 1, ..., mine] for x in (rows.codes, rows.ends, rows.text)), None))
    return pieces


def are_equal(one: Rows, other: Rows) -> bool:
    both_packed = one.documents is not None and other.documents is not None
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("codes", "ends", "text"))
        and (one.documents is None) == (other.documents is None)
        and (not both_packed or torch.equal(one.documents, other.documents))  # pyright: ignore[reportArgumentType]
    )


PACKED = pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])


@PACKED
@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    max_frames=st.integers(1, 50),
    extra=st.integers(0, 200),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 2),
)
def test_every_frame_is_seen_exactly_once_per_epoch(tmp_path_factory, packed, lengths, max_frames, extra, seed, epoch):
    store = make_store(tmp_path_factory.mktemp("h"), lengths)
    batches = TokenBatches(store, max_frames + extra, max_frames, seed, packed=packed)
    seen = []
    for rows in epoch_of(batches, epoch):
        assert rows.text.numel() <= max_frames + extra and (packed or rows.documents is None)
        assert not packed or rows.text.shape[1] == batches.row_columns
        for piece in pieces_of(rows):
            codes = piece.codes[0]
            valid = codes[0] >= 0
            length = int(valid.sum())
            assert 0 < length <= max_frames and valid[:length].all() and (codes[:, length:] == -1).all()
            assert (codes[0, :length].diff() == 1).all() and (codes[1, :length] == codes[1, 0]).all()  # one utterance
            seen += codes[0, :length].tolist()
    assert sorted(seen) == list(range(sum(lengths))) and batches.num_frames == sum(lengths)


@PACKED
def test_a_batch_is_a_pure_function_of_seed_and_step(store, packed):
    one, other, different = (TokenBatches(store, 200, 50, seed, packed=packed) for seed in (3, 3, 4))
    steps = list(range(2 * len(one.epoch_batches(0))))
    forward = [one.rows(step) for step in steps]
    backward = [other.rows(step) for step in reversed(steps)][::-1]
    assert all(map(are_equal, forward, backward))
    assert not all(are_equal(different.rows(step), rows) for step, rows in zip(steps, forward, strict=True))


@PACKED
def test_ranks_together_are_the_global_batch(store, packed):
    batches = TokenBatches(store, 200, 50, seed=0, packed=packed)
    for step in range(10):
        whole = batches.rows(step)
        assert whole.codes.dtype == whole.text.dtype == torch.int64 and whole.ends.dtype == torch.bool
        for world_size in (2, 3, 40):
            parts = [batches.rows(step, rank, world_size) for rank in range(world_size)]
            assert sum(map(len, parts)) == len(whole)
            for rank, part in enumerate(parts):
                expected = whole.take(slice(rank, None, world_size))
                assert part.codes.shape[1:] == whole.codes.shape[1:]
                assert all(torch.equal(getattr(part, x), getattr(expected, x)) for x in ("codes", "ends", "text"))
                if part.documents is not None and expected.documents is not None:
                    assert torch.equal(part.documents, expected.documents)
                else:  # a rank may have no row that is shared
                    assert part.documents is None and (expected.documents is None or not expected.documents.any())


def test_steps_count_on_across_epochs_and_cuts_move(store):
    batches = TokenBatches(store, 200, 50, seed=0)
    sizes = [len(batches.epoch_batches(epoch)) for epoch in range(3)]
    expected = [(epoch, i) for epoch, size in enumerate(sizes) for i in range(size)]
    assert [batches.locate(step) for step in range(sum(sizes))] == expected
    cuts = [
        {start for batch in batches.epoch_batches(e) for row in batch for u, start, _ in row.tolist() if u == 5}
        for e in range(3)
    ]
    assert cuts[0] != cuts[1] != cuts[2]
    with pytest.raises(ValueError, match="step is -1"):
        batches.locate(-1)


@pytest.mark.parametrize("packed, full", [(True, 0.95), (False, 0.93)], ids=["packed", "padded"])
def test_hardly_anything_is_padding(tmp_path, packed, full):
    lengths = np.random.default_rng(0).integers(5, 100, 600).tolist()
    batches = TokenBatches(make_store(tmp_path, lengths), 800, 100, seed=0, packed=packed)
    assert sum(lengths) / sum(rows.text.numel() for rows in epoch_of(batches, 0)) > full


@pytest.mark.parametrize("count", [41, 81, 401, 801])
def test_no_batch_is_a_mere_rest(tmp_path, count):
    """Every batch weighs the same in training; one utterance alone would weigh as much as twenty."""
    batches = TokenBatches(make_store(tmp_path, [10] * count), 200, 10, seed=0, packed=False)
    sizes = [len(batches.rows(step)) for step in range(len(batches.epoch_batches(0)))]
    assert sum(sizes) == count and max(sizes) <= 20 and min(sizes) >= 10


def test_packed_batches_have_one_shape_and_use_all_of_their_frames(store):
    batches = TokenBatches(store, 100, 40, seed=0)
    shapes = [tuple(batches.rows(step).text.shape) for step in range(len(batches.epoch_batches(0)))]
    assert set(shapes) <= {(2, 50), (1, 50)} and shapes.count((1, 50)) <= 1 and len(shapes) > 3
    few = TokenBatches(store, 300, 60, seed=0)  # 12 rows or 11
    sizes = [len(batch) for batch in few.epoch_batches(0)]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 5  # no small batch that would weigh as much as the others


def test_only_the_chosen_utterances_are_used(store):
    batches = TokenBatches(store, 200, 50, seed=0, indices=[1, 4])
    assert {int(piece.codes[0, 1, 0]) for rows in epoch_of(batches, 0) for piece in pieces_of(rows)} == {1, 4}
    assert batches.num_frames == LENGTHS[1] + LENGTHS[4]


def test_what_leaves_nothing_to_use_is_an_error(store):
    with pytest.raises(ValueError, match="no utterance"):
        TokenBatches(store, 200, 50, 0, indices=[])
    with pytest.raises(ValueError, match="0..11"):
        TokenBatches(store, 200, 50, 0, indices=[12])
    with pytest.raises(ValueError, match="would not fit"):
        TokenBatches(store, 40, 50, 0)
    with pytest.raises(ValueError, match="rank 2"):
        TokenBatches(store, 200, 50, 0).rows(0, 2, 2)


@PACKED
def test_a_piece_ends_where_its_recording_does(tmp_path: Path, packed):
    """Not where a row is full, nor where a piece of a longer recording stops."""
    goes_on = [False, True, True, False, True]
    entries = [
        Utterance(f"u{i}", 1, np.stack([np.arange(i * 100, i * 100 + n), np.full(n, i)], axis=1), goes_on=more)
        for i, (n, more) in enumerate(zip([30, 45, 8, 61, 20], goes_on, strict=True))
    ]
    commit_store(tmp_path, INFO, [write_shard(tmp_path, 0, entries, INFO)])
    store = TokenStore(tmp_path)
    batches = TokenBatches(store, 60, 20, seed=0, packed=packed)
    ended = [rows.codes[:, 0][rows.ends] for rows in epoch_of(batches, 0)]
    assert sorted(torch.cat(ended).tolist()) == [29, 360]  # the last frames of u0 and u3


# --- with text ---

LAYOUTS = ("first", "last", "aligned", "mixed")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the quick brown fox jumps over the lazy dog"], vocab_size=290)


@PACKED
@settings(max_examples=60)
@given(
    utterances=st.lists(
        st.tuples(st.integers(1, 60), st.none() | st.text("the dog", min_size=1, max_size=40)), min_size=1, max_size=15
    ),
    layout=st.sampled_from(LAYOUTS[:3]),
    max_frames=st.integers(1, 70),
    extra=st.integers(0, 200),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 1),
)
def test_pieces_have_their_text_where_it_is_right(
    tmp_path_factory, tokenizer, packed, utterances, layout, max_frames, extra, seed, epoch
):
    lengths, texts = [length for length, _ in utterances], [text for _, text in utterances]
    store = make_store(tmp_path_factory.mktemp("h"), lengths, texts=texts)
    first_frame = np.cumsum(lengths) - lengths
    text = TextConfig(layout=layout)
    batches = TokenBatches(store, max_frames + extra, max_frames, seed, None, tokenizer, text, packed)
    seen, aligned_text = [], {}
    for piece in (piece for rows in epoch_of(batches, epoch) for piece in pieces_of(rows)):
        row, row_codes = piece.text[0], piece.codes[0]
        audio = (row_codes[0] >= 0).nonzero().flatten()
        frames, i = row_codes[0, audio], int(row_codes[1, audio[0]])
        assert (audio.diff() == 1).all() and (frames.diff() == 1).all() and (row_codes[1, audio] == i).all()
        seen += frames.tolist()
        begin, stop = int(frames[0]) - first_frame[i], int(frames[-1]) + 1 - first_frame[i]
        assert piece.ends[0].nonzero().flatten().tolist() == ([audio[-1]] if stop == lengths[i] else [])
        tokens = tokenizer.encode(texts[i] or "")
        own = len(tokens) + 1
        if layout == "aligned":
            kept = bool(tokens) and len(tokens) <= lengths[i]
            assert audio[0] == 0 and (row[: len(audio)] >= 0).all() == kept and (row[len(audio) :] == -1).all()
            aligned_text.setdefault(i, {}).update(zip(range(begin, stop), row.tolist(), strict=False))
            continue
        room = begin == 0 and own < max_frames if layout == "first" else own + lengths[i] <= max_frames
        expected = [*tokens, EOS] if tokens and room else []
        start = 0 if layout == "first" else len(audio)
        assert row[start : start + len(expected)].tolist() == expected and (row >= 0).sum() == len(expected)
        assert audio[0] == (len(expected) if layout == "first" else 0) and len(expected) + len(audio) <= max_frames
    assert sorted(seen) == list(range(sum(lengths)))
    for i, by_frame in aligned_text.items():  # the parts of an utterance together are its whole text
        whole = [by_frame[frame] for frame in range(lengths[i])]
        tokens = tokenizer.encode(texts[i] or "")
        kept = len(tokens) <= lengths[i]
        assert [token for token in whole if token not in (PAD, EPAD, -1)] == (tokens if kept else [])


@PACKED
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_too_is_a_pure_function_of_seed_and_step(tmp_path, tokenizer, layout, packed):
    texts = [None if i % 4 == 3 else "the lazy dog " * (1 + i % 3) for i in range(len(LENGTHS))]
    store = make_store(tmp_path, LENGTHS, texts=texts)
    one, other = (TokenBatches(store, 200, 50, 3, None, tokenizer, TextConfig(layout=layout), packed) for _ in range(2))
    backward = [other.rows(step) for step in reversed(range(8))][::-1]
    forward = [one.rows(step) for step in range(8)]
    assert all(map(are_equal, forward, backward)) and sum(bool((rows.text >= 0).any()) for rows in forward) >= 3


def test_without_a_tokenizer_there_is_no_text(store):
    rows = TokenBatches(store, 200, 50, 0).rows(0)
    assert (rows.text == -1).all() and rows.text.shape == rows.codes[:, 0].shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_columns_of_an_utterance_have_its_whole_text_beside_its_audio(tmp_path, tokenizer, layout):
    texts = ["the dog", None, "the quick brown fox", "over", "the lazy dog"]
    store = make_store(tmp_path, [30, 9, 17, 3, 80], texts=texts)
    grids = StoreGrids(store, tokenizer, TextConfig(layout=layout))
    for i, wanted in enumerate(texts):
        text, codes = grids.columns(i, 0, grids.length(i))
        assert len(text) == codes.shape[1] == grids.length(i)
        np.testing.assert_array_equal(codes[:, codes[0] >= 0].T, store.codes(i))
        assert (codes[0] >= 0).nonzero()[0][-1] == grids.last_audio_column(i)
        assert tokenizer.decode(text) == ((wanted or "") if grids.has_text[i] else "")
    assert grids.has_text.tolist() == [
        True,
        False,
        True,
        layout != "aligned" or len(tokenizer.encode("over")) < 4,
        True,
    ]


class Counting(TextTokenizer):
    """Remembers which texts it was given."""

    def encode_words(self, text: str) -> list[list[int]]:
        vars(self).setdefault("texts", []).append(text)
        return super().encode_words(text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_texts_of_utterances_that_are_asked_for_are_tokenized(tmp_path, tokenizer, layout):
    texts = ["the dog", "the quick brown fox", "over", "the lazy dog"]
    store, counting = make_store(tmp_path, [30, 17, 9, 80], texts=texts), Counting(tokenizer.model)
    text = TextConfig(layout=layout)
    grids, whole = StoreGrids(store, counting, text, indices=[1, 3, 1]), StoreGrids(store, tokenizer, text)
    assert vars(counting)["texts"] == [texts[1], texts[3]]
    for i in (1, 3):
        assert grids.has_text[i] and grids.length(i) == whole.length(i)
        for one, other in zip(grids.columns(i, 0, 12), whole.columns(i, 0, 12), strict=True):
            np.testing.assert_array_equal(one, other)
    counting = Counting(tokenizer.model)
    TokenBatches(store, 200, 100, 0, [0, 2], counting, text)
    assert vars(counting)["texts"] == [texts[0], texts[2]]


def test_a_text_is_kept_up_to_the_last_column_that_there_is(tmp_path, tokenizer):
    num_tokens = len(tokenizer.encode("the lazy dog"))
    store = make_store(tmp_path, [num_tokens, num_tokens - 1], texts=["the lazy dog"] * 2)
    assert StoreGrids(store, tokenizer, TextConfig(layout="aligned")).has_text.tolist() == [True, False]
    for layout, least in (("first", num_tokens + 2), ("last", 2 * num_tokens + 1)):  # with EOS and audio
        assert StoreGrids(store, tokenizer, TextConfig(layout=layout), least).has_text[0]
        assert not StoreGrids(store, tokenizer, TextConfig(layout=layout), least - 1).has_text[0]


def test_an_unknown_layout_is_refused(store):
    with pytest.raises(ValueError, match="layout 'middle' is unknown; choose one of first, last, aligned"):
        TextConfig(layout="middle")  # pyright: ignore


# --- fewer codebooks ---


@pytest.mark.parametrize("packed", [True, False])
def test_a_share_of_the_rows_keeps_its_first_codebooks_only(store, packed):
    whole = TokenBatches(store, 200, 50, seed=0, packed=packed)
    some, again = (TokenBatches(store, 200, 50, seed=0, packed=packed, codebook_dropout=0.5) for _ in range(2))
    kept = []
    for step in range(40):
        rows, full = some.rows(step), whole.rows(step)
        assert torch.equal(rows.codes, again.rows(step).codes) and torch.equal(rows.ends, full.ends)
        assert torch.equal(rows.codes[:, 0], full.codes[:, 0])
        fine = (rows.codes[:, 1] == full.codes[:, 1]).all(dim=1)
        assert (rows.codes[~fine, 1] == -1).all()
        kept += fine.tolist()
        for rank in range(3):  # the same rows on however many processes
            part = [row for row in again.rows(step, rank, 3).codes]
            assert all(torch.equal(row, rows.codes[rank + 3 * i]) for i, row in enumerate(part))
    assert 0.35 < np.mean(kept) < 0.65


@pytest.mark.parametrize("num_codebooks, left", [(1, {1}), (2, {1}), (5, {1, 2, 3, 4})])
def test_at_least_one_codebook_is_kept_and_never_all_of_several(store, monkeypatch, num_codebooks, left):
    batches = TokenBatches(store, 200, 50, seed=0, codebook_dropout=1.0)
    monkeypatch.setattr(batches, "num_codebooks", num_codebooks)
    assert {kept for step in range(20) for kept in batches.codebooks_left(step, 4)} == left


# --- reading ahead ---


def test_steps_that_were_read_ahead_are_those_asked_for_in_any_order(store):
    batches, alone = (TokenBatches(store, 100, 50, seed=3) for _ in range(2))
    ahead = Ahead(batches.rows, stop=40)
    for step in [*range(12), 30, 31, 5, 6, 39, 40]:  # over the end of epochs, and as a resumed run goes on
        assert torch.equal(ahead(step).codes, alone.rows(step).codes)
    ahead.close()


def test_the_next_step_is_read_before_it_is_asked_for_and_none_after_the_last():
    read: queue.Queue[int] = queue.Queue()
    ahead = Ahead(read.put, stop=2)
    ahead(0)
    assert [read.get(timeout=60) for _ in range(2)] == [0, 1]
    ahead(1)
    ahead.close()
    assert read.empty()


def test_what_reading_raises_comes_where_its_step_is_asked_for():
    ahead = Ahead(lambda step: 1 // (step - 1), stop=9)
    assert ahead(0) == -1
    with pytest.raises(ZeroDivisionError):
        ahead(1)
    assert ahead(2) == 1
    ahead.close()
