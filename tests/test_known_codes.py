"""inference/generator.py: codes of a recording kept, gaps filled, durations left to the model, too little memory."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference import SamplingConfig
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import save_model
from codeclm.inference.request import CONTINUATION_S, LONGEST_S
from codeclm.train.cli import main

RATE, HOP = 8000, 80
FREE = SamplingConfig(temperature=1.0, top_k=0)


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture(scope="module", params=["eos", "never"])
def lm(make_model, codec, request) -> SpeechGenerator:
    options = dict(end="eos") if request.param == "eos" else dict(end="never", gaps="bos", delays=(0, 1, 2))
    return SpeechGenerator(make_model(codec=codec, dtype=torch.float32, context_frames=40, **options), codec, "tiny")


def speech(num_frames: float, seed: int = 0) -> tuple[np.ndarray, int]:
    noise = np.random.default_rng(seed).standard_normal(round(num_frames * HOP))
    return (0.1 * noise).astype(np.float32), RATE


def test_the_coarsest_codebooks_of_a_recording_are_kept_and_the_others_are_drawn(lm):
    audio = speech(60.5)
    codes = lm.encode(audio, 10.0).numpy()
    for keep in (1, 2):
        made, other = (lm.regenerate(audio, keep, seed, FREE) for seed in (0, 1))
        assert made.codes.shape == codes.shape == (3, 60) and len(made.audio) == 60 * HOP
        assert np.array_equal(made.codes[:keep], codes[:keep]) and not np.array_equal(made.codes[keep:], codes[keep:])
        assert not np.array_equal(made.codes[keep:], other.codes[keep:]) and (made.nll[:keep] > 0).all()
    for keep in (0, 3, -1):
        with pytest.raises(ValueError, match=f"{keep} codebooks are to be kept; it must be 1 to 2"):
            lm.regenerate(audio, keep)


def test_of_the_leading_codebooks_some_are_kept_and_some_drawn(lm):
    leading = SamplingConfig(num_codebooks=2)
    made = lm.regenerate(speech(20), 1, sampling=leading)
    assert made.codes.shape == (2, 20) and np.array_equal(made.codes[0], lm.encode(speech(20), 10.0)[0].numpy())
    assert lm.fill(speech(20), speech(12, 1), 0.1, sampling=leading).codes.shape == (2, 20 + 10 + 12)
    with pytest.raises(ValueError, match="2 codebooks are to be kept; it must be 1 to 1"):
        lm.regenerate(speech(20), 2, sampling=leading)


def test_all_of_a_recording_is_regenerated_however_long_a_prompt_may_be(lm):
    made = lm.regenerate(speech(120), sampling=SamplingConfig(max_prompt_s=0.2, stop_at_end=True))
    assert made.codes.shape[1] == 120 and made.finish_reason == "length"


def test_a_gap_is_followed_by_all_codes_of_what_comes_after(lm):
    before, after = speech(20), speech(25, 1)
    made = lm.fill(before, after, 0.1, 3, FREE)
    assert made.num_prompt_frames == 20 and made.codes.shape[1] == 20 + 10 + 25
    assert np.array_equal(made.codes[:, :20], lm.encode(before, 10.0).numpy())
    assert np.array_equal(made.codes[:, 30:], lm.encode(after, 10.0).numpy())
    assert len(made.audio) == 35 * HOP and len(made.prompt_audio) == 20 * HOP and (made.nll[:, 30:] > 0).all()


def test_the_gap_is_drawn_without_knowing_what_follows(lm):
    gaps = [lm.fill(speech(20), speech(25, after), 0.1, 3, FREE).codes for after in (1, 2)]
    # codebooks that lag see what comes after them in the leading ones
    lag = max(lm.model.config.delays)
    assert np.array_equal(gaps[0][:, : 30 - lag], gaps[1][:, : 30 - lag])


def test_the_best_of_several_gaps_makes_what_follows_likeliest(lm):
    before, after = speech(20), speech(25, 1)
    each = [lm.fill(before, after, 0.1, seed, FREE) for seed in range(3, 8)]
    costs = [made.nll[:, 30:].sum() for made in each]
    best = lm.fill(before, after, 0.1, 3, FREE, best_of=5)
    assert best.seed == 3 + int(np.argmin(costs)) and len(set(costs)) == 5
    assert np.array_equal(best.codes, each[int(np.argmin(costs))].codes)
    with pytest.raises(ValueError, match="best_of is 0"):
        lm.fill(before, after, 0.1, best_of=0)


def test_without_a_duration_the_model_ends_by_itself_but_not_after_a_prompt_alone(lm):
    hot = SamplingConfig(temperature=1.5, top_k=0)
    ends = lm.model.config.end != "never"
    nothing = lm.generate_many(None, seeds=range(4), sampling=hot)
    assert {made.finish_reason for made in nothing} == ({"eos"} if ends else {"length"})
    longest = round((LONGEST_S if ends else CONTINUATION_S) * lm.codec.frame_rate)
    assert all(made.codes.shape[1] < longest if ends else made.codes.shape[1] == longest for made in nothing)
    after = lm.generate(speech(20), sampling=hot)
    assert after.finish_reason == "length" and len(after.audio) == round(CONTINUATION_S * RATE)
    stopped = lm.generate(speech(20), sampling=SamplingConfig(temperature=1.5, top_k=0, stop_at_end=True))
    assert (len(stopped.audio) < len(after.audio)) == ends


def test_a_duration_that_is_given_is_kept(lm):
    hot = SamplingConfig(temperature=1.5, top_k=0)
    assert all(len(made.audio) == RATE for made in lm.generate_many(None, 1.0, range(4), hot))


@pytest.mark.parametrize("num_frames", [10, 60, 200])
def test_a_prompt_may_be_a_frame_or_longer_than_the_context(lm, num_frames):
    for seconds in (0.001, 0.01, 60.0):  # no more than a frame at least, of what is there
        made = lm.generate(speech(num_frames), 0.1, sampling=SamplingConfig(max_prompt_s=seconds))
        assert made.num_prompt_frames == (num_frames if seconds == 60 else 1) and len(made.audio) == 10 * HOP
        assert np.isfinite(made.nll).all()


def test_guidance_without_a_text_is_refused_before_anything_is_encoded(lm):
    with pytest.raises(ValueError, match="guidance is 2.0: it weighs the text, and none is given"):
        lm.generate("missing.wav", sampling=SamplingConfig(guidance=2.0))


def test_the_command_regenerates_and_fills_as_python_does(lm, tmp_path, capsys):
    save_model(lm.model, lm.codec, tmp_path / "model")
    for name, seed in (("a", 0), ("b", 1)):
        save_audio(tmp_path / f"{name}.wav", speech(20, seed)[0], RATE)
    a, b, out = (tmp_path / name for name in ("a.wav", "b.wav", "out.wav"))
    command = ["generate", str(a), "--model", str(tmp_path / "model"), "--out", str(out), "--temperature", "1.2,0.9"]
    sampling = SamplingConfig(temperature=(1.2, 0.9))
    main([*command, "--keep-codebooks", "2", "--seed", "4"])
    check_same(out, lm.regenerate(a, 2, 4, sampling).audio)
    main([*command, "--then", str(b), "--duration", "0.1", "--best-of", "3"])
    best = lm.fill(a, b, 0.1, 0, sampling, best_of=3)
    check_same(out, best.audio)
    assert (
        f"out.wav: 0.30 s, {best.surprise_bits[20:].mean() * 100:.0f} bits/s, seed {best.seed}"
        in capsys.readouterr().out
    )
    main([*command, "--then", str(b), "--duration", "0.1", "--best-of", "3", "--with-prompt"])
    check_same(out, np.concatenate([best.prompt_audio, best.audio]))


def check_same(path, audio: np.ndarray) -> None:
    written = load_audio(path, RATE, check_speech=False)
    np.testing.assert_allclose(written, np.clip(audio, -1, 1), rtol=0, atol=1e-3)


STARVED = """
import resource, sys
from codeclm.inference import load

lm = load(sys.argv[1])
lm.generate(None, 0.1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
for seconds, rows in ((1000, 64), (80_000, 2)):
    try:
        lm.generate_many(None, seconds, range(rows))
    except MemoryError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc for the memory in use")
def test_too_little_memory_is_told_with_the_batch_that_would_fit(make_model, codec, tmp_path):
    save_model(make_model(codec=codec, dtype=torch.float32), codec, tmp_path / "model")
    command = [sys.executable, "-c", STARVED, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    many, long = done.stdout.splitlines()
    fits = re.fullmatch(r"64 rows at once need more memory than there is; (\d+) would fit", many)
    assert fits and 1 <= int(fits[1]) <= 16, many
    assert long.startswith("2 x 8000000 frames need more memory than there is, and so does one row: generate a shorter")
