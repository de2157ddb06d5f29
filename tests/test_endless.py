"""Generation without end: the grid drops what is over, the codes stay the same, and the memory does not grow."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from codeclm.inference import SamplingConfig, grid
from codeclm.inference.engine import generate
from codeclm.inference.frame_step import FrameStep
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request, State
from codeclm.inference.windows import NO_END
from codeclm.model.shapes import TextConfig

from .options import WORDS, backbone

FREE = SamplingConfig(temperature=1.0, text_temperature=1.0, top_k=0)
MODELS = {
    "windows": dict(context_frames=8),
    "windows, delays": dict(context_frames=8, delays=(0, 1, 3)),
    "sliding": dict(context_frames=8, backbone=backbone(sliding_window=5)),
    "sliding, delays": dict(context_frames=8, backbone=backbone(sliding_window=5), pattern="delay", delays=(0, 1, 2)),
    "sliding, flatten": dict(context_frames=8, backbone=backbone(sliding_window=5), pattern="flatten"),
    "sliding, own text": dict(context_frames=8, backbone=backbone(sliding_window=5), text=TextConfig(WORDS)),
    "windows, own text": dict(context_frames=8, text=TextConfig(WORDS)),
}


@pytest.fixture(params=MODELS)
def model(make_model, request):
    return make_model(**MODELS[request.param])


def frames(states, count: int) -> tuple[Tensor, Tensor, list[State]]:
    """Codes and nats of the first `count` frames, taken when they were complete, and the states."""
    codes, nll, seen, found = [], [], 0, []
    for state in states:
        new = slice(seen - state.num_dropped, state.frame)
        codes.append(state.codes[:, :, new].clone())
        nll.append(state.nll[:, :, new].clone())
        seen = state.num_dropped + state.frame
        found.append(state)
        if seen >= count:
            break
    return torch.cat(codes, dim=2)[:, :, :count], torch.cat(nll, dim=2)[:, :, :count], found


@pytest.mark.parametrize("given", [1, 6, 30])
def test_a_grid_that_drops_columns_gets_the_codes_and_nats_of_one_that_keeps_all(model, given, monkeypatch):
    monkeypatch.setattr(grid, "SPARE", 7)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(model.codebook_size, (model.num_codebooks, given), generator=draw)
    request = Request(100, codes, draw_text=model.predicts_text)
    *_, whole = generate(model, request, [0, 1], FREE)
    short_codes, short_nll, states = frames(generate(model, request, [0, 1], FREE, keep=False), given + 100)
    assert states[-1].num_frames <= max(given, 8 + 3 + 7) + 7 and states[-1].num_dropped > 50
    assert torch.equal(short_codes, whole.codes) and torch.equal(short_nll[:, :, given:], whole.nll[:, :, given:])
    if whole.text is not None:
        last = states[-1].text[:, : states[-1].frame]
        assert torch.equal(last, whole.text[:, -last.shape[1] :])


@pytest.mark.parametrize("window", [0, 5])
def test_repetitions_are_counted_in_columns_that_would_have_been_dropped(make_model, monkeypatch, window):
    monkeypatch.setattr(grid, "SPARE", 7)
    model = make_model(context_frames=8, backbone=backbone(sliding_window=window))
    wary = SamplingConfig(temperature=1.0, top_k=0, repetition_share=0.2, repetition_frames=20)
    *_, whole = generate(model, Request(120), [0, 1], wary)
    *_, careless = generate(model, Request(120), [0, 1], FREE)
    short, _, states = frames(generate(model, Request(120), [0, 1], wary, keep=False), 120)
    assert torch.equal(short, whole.codes) and not torch.equal(short, careless.codes)
    assert states[-1].num_dropped > 50


def test_a_row_ends_in_a_grid_that_drops_columns_where_it_ends_in_one_that_keeps_all(make_model, monkeypatch):
    monkeypatch.setattr(grid, "SPARE", 7)
    model = make_model(context_frames=8, backbone=backbone(sliding_window=5))
    with torch.no_grad():
        model.head_0.weight[model.eos] *= 0.1
    stopping = SamplingConfig(temperature=1.0, top_k=0, stop_at_end=True)
    *_, whole = generate(model, Request(200), range(20), stopping)
    *_, short = generate(model, Request(200), range(20), stopping, keep=False)
    assert torch.equal(short.end + short.num_dropped, whole.end) and short.num_dropped > 0
    assert len(set(whole.end.tolist())) > 5


FRAMES = 15_000  # of ten minutes, at 25 a second


@pytest.mark.slow
def test_every_tensor_of_a_state_keeps_its_size_for_ten_minutes(make_model):
    model = make_model(dtype=torch.float32, backbone=backbone(sliding_window=20, num_layers=1))
    sizes = set()
    for state in itertools.islice(generate(model, Request(NO_END), [0], FREE, keep=False), FRAMES):
        assert isinstance(state.walk, FrameStep)
        tensors = [*vars(state).values(), *vars(state.walk).values(), *vars(state.walk.backbone).values()]
        sizes.add(sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, Tensor)))
    assert len(sizes) == 1 and state.num_dropped + state.frame == FRAMES


SCRIPT = f"""
import itertools, math, resource, sys
import codeclm

lm = codeclm.load(sys.argv[1], device="cpu")
length, peaks = 0, []
for chunk in lm.stream(duration_s=math.inf, seed=1):
    length += len(chunk)
    if length > len(peaks) * {FRAMES} * lm.codec.hop_length / 10:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if len(peaks) == 11:
        print(peaks[-1] / peaks[1])
        break
"""


@pytest.mark.slow
def test_the_peak_memory_of_a_process_is_flat_from_one_minute_to_ten(make_model, make_codec, tmp_path):
    codec = make_codec()
    model = make_model(codec=codec, dtype=torch.float32, backbone=backbone(sliding_window=50))
    SpeechGenerator(model, codec, "sliding").save_pretrained(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.02
