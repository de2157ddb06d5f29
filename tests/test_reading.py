"""How far a reader has to go: the calls of ours and the changes of file that one generated frame takes."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from codeclm.inference.engine import generate
from codeclm.inference.grid import Request
from codeclm.inference.loading import load

ROOT = Path(__file__).parent.parent
TRANSFORMER = ("model/transformer.py", "model/attention.py")  # one network: what its blocks call is not counted
PRODUCTS = "inference/products.py"  # read like torch.mm: a product is not looked into


class Profile:
    """Calls of our functions while it is active; calls into another file, with the transformer as one."""

    def __init__(self) -> None:
        self.calls, self.changes = 0, Counter()

    def __enter__(self) -> "Profile":
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def note(self, frame, event: str, _: object) -> None:
        file = self.ours(frame)
        if event != "call" or not file or file == PRODUCTS:
            return
        self.calls += 1
        caller = frame.f_back
        while caller is not None and not self.ours(caller):
            caller = caller.f_back
        if caller is not None and self.ours(caller) != file and self.ours(caller) != TRANSFORMER[0]:
            self.changes[f"{self.ours(caller)} -> {file}"] += 1

    @staticmethod
    def ours(frame) -> str:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "tests") or ".venv" in path.parts:
            return ""
        name = path.relative_to(ROOT).as_posix()
        return TRANSFORMER[0] if name in TRANSFORMER else name


@pytest.fixture(scope="module")
def frame() -> tuple[int, Counter]:
    """(calls, changes of file) of a frame of the embedded model, one row: the difference of two lengths."""
    lm = load(device="cpu")
    found = []
    for num_frames in (4, 8, 12):  # the first one warms up
        with Profile() as profile:
            for _ in generate(lm.model, Request(num_frames, num_codes=lm.codec.codebook_size), [0]):
                pass
        found.append(profile)
    calls = (found[2].calls - found[1].calls) / 4
    changes = Counter({key: (found[2].changes[key] - found[1].changes[key]) / 4 for key in found[2].changes})
    return calls, changes


def test_a_frame_takes_at_most_half_the_calls_it_once_took(frame):
    calls, _ = frame
    assert 100 < calls <= 1216 / 2


def test_a_codebook_takes_at_most_four_changes_of_file(frame):
    _, changes = frame
    per_codebook = {key: count for key, count in changes.items() if count >= 7}  # of 8 codebooks, 7 are the decoder's
    assert len(per_codebook) <= 4 and sum(per_codebook.values()) / 8 <= 4, changes
    assert sum(changes.values()) / 8 <= 5, changes
