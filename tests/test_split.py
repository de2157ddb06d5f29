"""data/split.py: about the share of the seconds, whole recordings or speakers, and the same ones when a store grows."""

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeclm.data.split import balance_voices, first_by_hash, recordings, split_heldout
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.model.codec_reference import CodecReference

INFO = CodecReference("tiny", "f" * 64, 16_000, 640, num_codebooks=1, codebook_size=4)
MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="module")
def make_store(tmp_path_factory) -> MakeStore:
    def make(names: Sequence[str], lengths: Sequence[int] = (), speakers: Sequence[str | None] = ()) -> TokenStore:
        folder, lengths = tmp_path_factory.mktemp("store"), lengths or [10] * len(names)
        entries = [
            Utterance(name, 1, np.zeros((length, 1), int), speaker=speaker)
            for name, length, speaker in zip(names, lengths, speakers or [None] * len(names), strict=True)
        ]
        commit_store(folder, INFO, [write_shard(folder, 0, entries, INFO)])
        return TokenStore(folder)

    return make


def names_of(store: TokenStore, indices: np.ndarray) -> set[str]:
    return {store.names[i] for i in indices}


def seconds(store: TokenStore, indices: np.ndarray) -> float:
    """Share of the store's."""
    return store.num_frames[indices].sum() / store.num_frames.sum()


def test_heldout_recordings_stay_held_out_when_files_are_added(make_store):
    names = [f"speaker/{i}" for i in range(1000)]
    store, more = make_store(names), make_store(["new/a", *names, "new/b"])
    training, heldout = split_heldout(store, 0.1, seed=0)
    assert sorted([*training, *heldout]) == list(range(1000)) and 60 < len(heldout) < 140
    assert names_of(store, heldout) == names_of(more, split_heldout(more, 0.1, 0)[1]) - {"new/a", "new/b"}
    assert split_heldout(store, 0.1, seed=1)[1].tolist() != heldout.tolist()


def test_the_share_counts_seconds_and_few_long_recordings_do_not_spoil_it(make_store):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(5, 30, 55).tolist(), 900, 700, 800, 400, 600]
    store = make_store([str(i) for i in range(60)], lengths)
    for seed in range(20):
        assert 0.05 <= seconds(store, split_heldout(store, 0.1, seed)[1]) <= 0.2


def test_by_folder_the_sides_are_those_of_the_folders_and_what_is_in_others_is_on_neither(make_store):
    store = make_store(["train/a", "heldout/b", "new_voices/c", "train/d/heldout/e", "heldout/f"])
    for seed in range(3):
        training, heldout = split_heldout(store, 0.1, seed, "folder")
        assert (training.tolist(), heldout.tolist()) == ([0, 3], [1, 4])
    with pytest.raises(ValueError, match="no name begins with heldout/"):
        split_heldout(make_store(["train/a", "train/b"]), 0.1, 0, "folder")


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 1000), min_size=2, max_size=40),
    share=st.sampled_from([1e-9, 0.02, 0.3, 0.5, 1 - 1e-9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_sides_have_something_however_little_there_is(make_store, lengths, share, seed):
    store = make_store([str(i) for i in range(len(lengths))], lengths)
    training, heldout = split_heldout(store, share, seed)
    assert len(training) and len(heldout) and sorted([*training, *heldout]) == list(range(len(lengths)))


def test_pieces_and_copies_of_a_recording_are_held_out_together(make_store):
    names = [f"{file}#{piece}~{copy}" for file in range(50) for piece in range(4) for copy in range(2)]
    names += [f"x~{copy}" for copy in range(3)]
    store = make_store(names)
    _, heldout = split_heldout(store, 0.3, seed=0)
    files = {name.split("#")[0].split("~")[0] for name in names_of(store, heldout)}
    assert {name for name in names if name.split("#")[0].split("~")[0] in files} == names_of(store, heldout)


def test_a_single_recording_is_split_by_pieces_and_never_by_copies(make_store):
    names = [f"x#{piece}~{copy}" for piece in range(3) for copy in (0, 1)]
    store = make_store(names)
    sides = [{name.split("~")[0] for name in names_of(store, side)} for side in split_heldout(store, 0.3, seed=0)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(np.unique(recordings(store))) == 3


def test_a_speaker_is_on_one_side_and_stays_there(make_store):
    names, number = [], count()
    for speaker in range(60):
        names += [f"{speaker}/{next(number)}" for _ in range(1 + speaker % 5)]
    speakers = [name.split("/")[0] for name in names]
    store = make_store([*names, "nobody"], speakers=[*speakers, None])
    for seed in range(5):
        training, heldout = split_heldout(store, 0.2, seed, by="speaker")
        who = [{store.speaker(i) for i in side} for side in (training, heldout)]
        assert not who[0] & who[1] and 0.1 <= seconds(store, heldout) <= 0.4
    more = make_store([*names, "nobody", "a/new"], speakers=[*speakers, None, "a"])
    _, again = split_heldout(more, 0.2, seed, by="speaker")
    assert names_of(store, heldout) == names_of(more, again) - {"a/new"}


def test_a_split_by_speaker_needs_speakers(make_store):
    with pytest.raises(ValueError, match="does not say who speaks; hold out by recording"):
        split_heldout(make_store(["a", "b"]), 0.5, 0, by="speaker")
    with pytest.raises(ValueError, match=r"one speaker \('Ada'\) is not enough to train on and to hold out"):
        split_heldout(make_store(["a", "b"], speakers=["Ada", "Ada"]), 0.5, 0, by="speaker")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_outside_0_to_1_is_refused(make_store, share):
    with pytest.raises(ValueError, match="share"):
        split_heldout(make_store(["a", "b"]), share, seed=0)


def test_one_utterance_cannot_be_split(make_store):
    for names in (["a"], ["a~0", "a~1", "a~2"]):  # copies are no other utterances
        store = make_store(names)
        with pytest.raises(ValueError, match=rf"^{store.folder}: one utterance \('a(~0)?'\) is not enough"):
            split_heldout(store, 0.5, seed=0)


def test_the_first_by_hash_are_at_most_the_frames_asked_for_and_stay_the_first_of_more(make_store):
    lengths = [3, 90, 17, 1, 40, 250, 8, 8, 33, 61, 5, 120]
    store = make_store([f"u{i}" for i in range(12)], lengths)
    everything = list(range(len(store)))
    assert first_by_hash(store, everything, 0) == everything == first_by_hash(store, everything, 10**9)
    few, more = (first_by_hash(store, everything, share * store.num_frames.sum() // 4) for share in (1, 2))
    assert set(few) < set(more) < set(everything) and few == sorted(few)
    assert store.num_frames[few].sum() <= store.num_frames.sum() // 4
    assert len(first_by_hash(store, everything, 1)) == 1  # never none


@pytest.mark.parametrize("speakers", [(), ("Ada",) * 4 + ("Bob",)])
def test_small_voices_are_repeated_and_power_1_changes_nothing(make_store, speakers):
    folders = ["a", "b", "c", "d", "e"] if speakers else ["big"] * 4 + ["small"]  # a speaker counts before a folder
    store = make_store([f"{folder}/{i}" for i, folder in enumerate(folders)], [40, 40, 40, 40, 10], speakers)
    assert balance_voices(store, range(5), 1.0).tolist() == [0, 1, 2, 3, 4]
    assert balance_voices(store, range(5), 0.5).tolist() == [0, 1, 2, 3] + [4] * 4
    assert balance_voices(store, range(5), 0.0).tolist() == [0, 1, 2, 3] + [4] * 16
