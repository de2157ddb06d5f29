"""inference/generator.py: audio in, audio out, and what is drawn but not kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.inference.config import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.inference.loading import save_model
from codeclm.train.cli import main


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.mark.parametrize("end", ["never", "zeros"])
def test_a_model_without_eos_gives_what_a_longer_run_gives(make_model, codec, end):
    """Its lagging codebooks see the leading ones of the frames beyond, as they do everywhere else."""
    lm = SpeechGenerator(make_model((0, 1, 2), codec=codec, end=end, dtype=torch.float32), codec, "tiny")
    shorter, longer = (lm.generate(None, duration, 3) for duration in (0.07, 0.12))
    assert shorter.codes.shape == (3, 7) and longer.codes.shape == (3, 12)
    assert (shorter.codes == longer.codes[:, :7]).all() and shorter.finish_reason == "length"
    assert len(shorter.audio) == 7 * codec.hop_length


def test_a_model_with_eos_draws_no_frame_beyond(make_model, codec):
    model = make_model((0, 1, 2), codec=codec, dtype=torch.float32)
    made = SpeechGenerator(model, codec, "tiny").generate(None, 0.07, 3)
    *_, state = generate(model, Request(7), [3], SamplingConfig())
    assert (made.codes == state.codes[0].numpy()).all()


@pytest.fixture(scope="module")
def silent_model(make_model, codec, tmp_path_factory) -> Path:
    """A model folder whose model ends every utterance before its first frame."""
    model = make_model((0, 0, 0), codec=codec, dtype=torch.float32)
    with torch.no_grad():
        first = model.backbone(model.embed_frames(torch.full((1, 3, 1), model.bos)))[0, 0]
        model.head_0.weight[model.eos] = 100 * first
    folder = tmp_path_factory.mktemp("silent") / "model"
    save_model(model, codec, folder)
    return folder


@pytest.mark.filterwarnings("error")
def test_an_end_at_once_is_one_line_and_writes_nothing(silent_model, tmp_path, capsys):
    out = tmp_path / "out.wav"
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", str(silent_model), "--duration", "0.1", "--stop-at-end", "--out", str(out)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "the model ended at once" in error and "nan" not in error
    assert not out.exists()


def test_a_continuation_that_ends_at_once_is_empty_in_python(silent_model, tmp_path):
    from codeclm.inference import load

    made = load(silent_model).generate(None, 0.1, sampling=SamplingConfig(stop_at_end=True))
    assert made.finish_reason == "eos" and made.audio.shape == (0,) and made.codes.shape == (3, 0)
    assert np.isfinite(made.surprise_bits).all()
    with pytest.raises(ValueError, match="nothing to write"):
        made.save(tmp_path / "out.wav", with_prompt=True)


def test_a_warm_up_leaves_nothing_behind(make_model, codec):
    lm = SpeechGenerator(make_model((0, 1, 2), codec=codec, bos=False, dtype=torch.float32), codec, "tiny")
    prompt = np.random.default_rng(0).uniform(-0.3, 0.3, 4000).astype(np.float32), 8000
    expected = lm.generate(prompt, 0.1, 3)
    lm.warmup(rows=2)
    assert np.array_equal(lm.generate(prompt, 0.1, 3).codes, expected.codes)
