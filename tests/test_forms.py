"""data/forms.py and data/grids.py: the forms that utterances take in the layout "mixed", and what of them is scored.

A code tells where it is from: codebook 0 counts the frames of the whole store, codebook 1 is the utterance.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.config import FormShares
from codeclm.data.dataset import TokenBatches
from codeclm.data.forms import Voices
from codeclm.data.grids import StoreGrids
from codeclm.data.mixture import MixedBatches
from codeclm.data.rows import Piece
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.data.token_store import TokenStore
from codeclm.inference.config import EvaluateConfig
from codeclm.inference.evaluate.score import score_store
from codeclm.model.codec_reference import CodecReference
from codeclm.model.shapes import TextConfig
from codeclm.model.text_tokens import EOS, SAY, WRITE

INFO = CodecReference("tiny", "f" * 64, 16_000, 8_000, num_codebooks=2, codebook_size=65_536)  # 2 frames a second
SHARES = FormShares(0.3, 0.3, 0.2, voice_s=4.0)
MIXED = TextConfig(layout="mixed")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the quick brown fox jumps over the lazy dog"], vocab_size=290)


def make_store(folder, lengths, texts, speakers, names=None) -> TokenStore:
    ends = np.cumsum(lengths)
    entries = [
        Utterance(
            names[i] if names else f"u{i}", n,
            np.stack([np.arange(ends[i] - n, ends[i]), np.full(n, i)], axis=1), texts[i], speaker=speakers[i],
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    commit_store(folder, INFO, [write_shard(folder, 0, entries, INFO)])
    return TokenStore(folder)


def pieces_of(batches: TokenBatches, epoch: int) -> list[Piece]:
    plan = batches.epoch_batches(epoch)
    return [plan.grids.piece(*segment) for segment in plan.segments.tolist()]


def form_of(piece: Piece) -> str:
    says, writes = (piece.text == SAY).any(), (piece.text == WRITE).any()
    return "write" if writes else "alone" if not says else "say" if piece.text[0] == SAY else "voice"


UTTERANCES = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.none() | st.text("the dog", min_size=1, max_size=20),
        st.none() | st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(
    UTTERANCES, st.integers(1, 60), st.integers(0, 100), st.integers(0, 1000), st.integers(0, 2), st.booleans(),
    st.sets(st.integers(0, 11)),
)  # fmt: skip
def test_every_frame_is_scored_once_and_only_tags_and_voices_are_given(
    tmp_path_factory, tokenizer, utterances, max_frames, extra, seed, epoch, packed, some
):
    lengths, texts, speakers = zip(*utterances, strict=True)
    store = make_store(tmp_path_factory.mktemp("h"), lengths, texts, speakers)
    chosen = sorted(i for i in some if i < len(store)) or None
    sizes = max_frames + extra, max_frames, seed, chosen
    batches = TokenBatches(store, *sizes, tokenizer, MIXED, packed, shares=SHARES)
    used = set(range(len(store)) if chosen is None else chosen)
    scored = []
    for piece in pieces_of(batches, epoch):
        assert piece.given is not None and len(piece.text) == piece.codes.shape[1] <= max_frames
        own = piece.codes[:, ~piece.given]
        audio = own[:, own[0] >= 0]
        scored += audio[0].tolist()
        i = int(audio[1, 0])
        assert (audio[1] == i).all()
        voice = piece.codes[:, piece.given & (piece.codes[0] >= 0)]
        form = form_of(piece)
        tokens = tokenizer.encode(texts[i] or "")
        tag = {"alone": [], "write": [WRITE]}.get(form, [SAY])
        expected = [*tag, *tokens, EOS] if tag else []
        assert piece.text[piece.text >= 0].tolist() == expected and (not tag or tokens)
        assert piece.text[piece.given & (piece.text >= 0)].tolist() == tag
        assert (form == "voice") == bool(voice.size)
        if voice.size:
            lender = int(voice[1, 0])
            assert lender != i and lender in used and speakers[lender] == speakers[i] is not None
            assert (voice[1] == lender).all() and (np.diff(voice[0]) == 1).all()
            assert voice[0, -1] == np.cumsum(lengths)[lender] - 1  # its end
            assert min(2, lengths[lender]) <= voice.shape[1] <= 8  # frames: 1 s to voice_s
            assert audio.shape[1] == lengths[i]
    expected = [frame for i in used for frame in range(sum(lengths[:i]), sum(lengths[: i + 1]))]
    assert sorted(scored) == sorted(expected)
    rows = [batches.rows(step) for step in range(2)]
    again = TokenBatches(store, *sizes, tokenizer, MIXED, packed, shares=SHARES)
    for step in (1, 0):
        assert torch.equal(again.rows(step).codes, rows[step].codes)
        assert torch.equal(again.rows(step).text, rows[step].text)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> TokenStore:
    """Two speakers of 150 utterances, one of a single utterance, an utterance of nobody, and one without a text."""
    speakers = ["a", "b"] * 150 + ["c", None, "a"]
    texts = ["the dog"] * 302 + [None]
    return make_store(tmp_path_factory.mktemp("large"), [20] * 303, texts, speakers)


def forms_in(store: TokenStore, tokenizer: TextTokenizer, shares: FormShares, epoch: int, seed: int = 0) -> list[str]:
    """Of each utterance."""
    grids = StoreGrids(store, tokenizer, MIXED, 60).of_epoch(shares, seed, epoch)
    return [form_of(grids.piece(i, 0, 20)) for i in range(len(store))]


def test_the_shares_are_met_and_drawn_anew_in_each_epoch(large, tokenizer):
    found = [forms_in(large, tokenizer, FormShares(0.3, 0.2, 0.4), epoch)[:300] for epoch in range(2)]
    for epoch in found:
        counts = Counter(epoch)
        for form, share in (("say", 0.3), ("voice", 0.2), ("write", 0.4), ("alone", 0.1)):
            assert counts[form] / 300 == pytest.approx(share, abs=0.08)
    assert 0.2 < np.mean([one == other for one, other in zip(*found, strict=True)]) < 0.4
    assert forms_in(large, tokenizer, FormShares(0.3, 0.2, 0.4), 0, seed=1)[:300] not in found


def test_what_has_no_text_is_alone_and_what_has_no_other_of_its_voice_is_said_without(large, tokenizer):
    for form in forms_in(large, tokenizer, FormShares(0.0, 1.0, 0.0), 3)[300:302]:
        assert form == "say"
    only = forms_in(large, tokenizer, FormShares(0.0, 1.0, 0.0), 3)
    assert Counter(only[:300]) == {"voice": 300} and only[302] == "alone"
    assert Counter(forms_in(large, tokenizer, FormShares(0.0, 0.0, 1.0), 0)) == {"write": 302, "alone": 1}


def test_every_other_utterance_of_a_voice_is_heard_about_equally_often(tmp_path):
    """Not the copies of one's own recording; where nobody is named, the first folder is the voice."""
    names = ["ann/x", "ann/x~1", "ann/y", "ann/z", "bob/x", "c"]
    store = make_store(tmp_path, [5] * 6, [None] * 6, [None] * 6, names)
    voices = Voices(store, np.arange(6))
    luck = (np.arange(600) + 0.5) / 600
    drawn = np.stack([voices.drawn(np.full(6, value)) for value in luck])
    assert Counter(drawn[:, 0].tolist()) == Counter(drawn[:, 1].tolist()) == {2: 300, 3: 300}
    assert Counter(drawn[:, 2].tolist()) == {0: 200, 1: 200, 3: 200}
    assert (drawn[:, 4:] == -1).all()
    assert Counter(Voices(store, np.array([0, 2])).drawn(np.zeros(6)).tolist()) == {2: 1, 0: 1, -1: 4}


def test_other_voices_than_its_own_are_said_after_a_voice_prompt_or_not_at_all(large, tmp_path, tokenizer, caplog):
    counts = Counter()
    for i, form in enumerate(forms_in(large, tokenizer, FormShares(0.6, 0.2, 0.1, own_voice="a"), 1)):
        counts[large.speaker(i), form] += 1
    assert not any(form == "say" and speaker != "a" for speaker, form in counts)
    assert counts["a", "say"] / 150 == pytest.approx(0.6, abs=0.12)
    assert counts["b", "voice"] / 150 == pytest.approx(0.8, abs=0.12) and counts["b", "write"]
    assert not caplog.records
    lone = make_store(tmp_path, [20] * 40, ["the dog"] * 40, [f"v{i}" for i in range(40)])
    assert Counter(forms_in(lone, tokenizer, FormShares(1.0, 0.0, 0.0, own_voice="a"), 0)) == {"alone": 40}
    assert "nobody is called 'a'" in caplog.text
    assert Counter(forms_in(lone, tokenizer, FormShares(1.0, 0.0, 0.0), 0)) == {"say": 40}
    long = make_store(tmp_path / "long", [62] * 4, ["the dog"] * 4, ["b"] * 4)  # no room for a voice
    grids = StoreGrids(long, tokenizer, MIXED, 70).of_epoch(FormShares(1.0, 0.0, 0.0, own_voice="a"), 0, 0)
    assert (grids.num_columns == 0).all() and not grids.has_text.any()
    assert all((piece := grids.piece(i, 0, 62)).codes.shape[1] == 62 and form_of(piece) == "alone" for i in range(4))


def test_a_mixture_of_stores_has_the_forms_of_each_ones_epoch(large, tmp_path, tokenizer):
    small = make_store(tmp_path, [20] * 8, ["the dog"] * 8, ["a"] * 8)
    parts = [TokenBatches(store, 120, 60, 0, None, tokenizer, MIXED, shares=SHARES) for store in (large, small)]
    batches, found = MixedBatches(parts, [1, 1]), set()
    for step in range(12):
        pieces = [grids.piece(*segment) for grids, row in batches.batch(step) for segment in row.tolist()]
        found |= {form_of(piece) for piece in pieces if piece.codes[1, -1] == 0 or piece.codes[1, 0] == 0}
        assert int((batches.rows(step).text >= 0).sum()) == sum(int((piece.text >= 0).sum()) for piece in pieces)
    assert len(found) > 2  # the small one has come to new epochs


def test_speech_is_scored_as_audio_alone_and_then_its_text_or_given_its_text(large, tokenizer, make_model):
    text = TextConfig(tokenizer.vocab_size, layout="mixed")
    model = make_model((0, 1), 65_536, text=text, context_frames=40)
    model.config.codec = INFO
    some = [0, 1, 300, 302]

    def score(given_text=False, tokenizer=None):
        return score_store(model, large, EvaluateConfig(given_text=given_text), some, False, tokenizer)

    alone, then, after = score(), score(tokenizer=tokenizer), score(True, tokenizer)
    np.testing.assert_allclose(then.nll, alone.nll, rtol=0, atol=1e-9)
    np.testing.assert_allclose(then.eos_nll, alone.eos_nll, rtol=0, atol=1e-9)
    count = len(tokenizer.encode("the dog")) + 1
    assert then.num_tokens.tolist() == after.num_tokens.tolist() == [count] * 3 + [0]
    assert (np.abs(after.nll - alone.nll)[:3] > 1e-3).all() and not alone.num_tokens.any()
    np.testing.assert_allclose(after.nll[3], alone.nll[3], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "shares, words",
    [
        (dict(say=0.9), "all together at most 1"),
        (dict(write=-0.1), "each must be at least 0"),
        (dict(say=float("nan")), "each must be at least 0"),
        (dict(voice_s=0.5), "voice_s is 0.5"),
    ],
)
def test_shares_that_are_none_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        FormShares(**shares)
