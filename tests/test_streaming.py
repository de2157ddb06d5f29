"""inference/streaming.py: a stream joins to what `generate` gives, comes while it is made, and fits into a pipe."""

import io
import subprocess
import sys
import wave

import numpy as np
import pytest

from codeclm.data.audio_out import audio_to
from codeclm.inference import SamplingConfig
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load
from codeclm.inference.streaming import LARGEST
from codeclm.model.pretrained import PROMPT

from .options import backbone

MODELS = {
    "depth": dict(),
    "delay": dict(delays=(0, 1, 2), pattern="delay"),
    "never": dict(delays=(0, 1, 2), end="never", gaps="bos"),
    "windows": dict(context_frames=8),
    "flatten": dict(pattern="flatten"),
    "sliding window": dict(delays=(0, 1, 1), backbone=backbone(sliding_window=5)),
}
ENDS = SamplingConfig(temperature=3.0, stop_at_end=True, top_k=0)


@pytest.fixture(scope="module")
def embedded() -> SpeechGenerator:
    return load(device="cpu")


def assert_streams(lm: SpeechGenerator, *args, **kwargs) -> list[np.ndarray]:
    whole = lm.generate(*args, **kwargs).audio
    chunks = list(lm.stream(*args, **kwargs))
    joined = np.concatenate([*chunks, np.zeros(0, np.float32)])
    assert joined.shape == whole.shape and all(len(chunk) for chunk in chunks)
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-4)
    return chunks


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_joins_to_the_audio_that_is_made_at_once(make_model, make_codec, name):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec, **MODELS[name]), codec, name)
    prompt = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), codec.sample_rate)
    for given in (None, prompt):
        assert_streams(lm, given, 0.5, seed=1)
    ended = [assert_streams(lm, prompt, 0.6, seed=seed, sampling=ENDS) for seed in range(4)]
    lengths = {sum(map(len, chunks)) for chunks in ended}
    assert len(lengths) > 1 or name == "never"  # some end before others


def test_the_embedded_model_streams_its_continuation_without_a_seam(embedded):
    chunks = assert_streams(embedded, PROMPT, 2.0, seed=3)
    frame = embedded.codec.hop_length
    assert len(chunks[0]) <= 3 * frame and max(map(len, chunks)) <= (LARGEST + 2) * frame and len(chunks) > 9


def test_the_first_chunk_comes_before_the_rest_is_drawn(embedded, monkeypatch):
    taken = []
    real = embedded.codec.streaming_decoder

    def decoder():
        inner = real()
        push = inner.push
        inner.push = lambda codes: taken.append(codes.shape[-1]) or push(codes)
        return inner

    monkeypatch.setattr(embedded.codec, "streaming_decoder", decoder)
    chunks = embedded.stream(PROMPT, 60.0)
    next(chunks)
    chunks.close()  # a listener who has heard enough
    assert sum(taken) < 130  # of 1,600 frames


def test_what_cannot_be_generated_is_refused_before_the_first_chunk(embedded):
    for arguments, message in ((dict(duration_s=0), "duration"), (dict(text=" "), "nothing of the text")):
        with pytest.raises(ValueError, match=message):
            embedded.stream(PROMPT, **arguments)


def test_a_pipe_gets_a_wav_header_or_none_and_every_sample(embedded):
    chunks = [np.array([0.0, 0.5]), np.array([2.0])]
    with_header, bare = io.BytesIO(), io.BytesIO()
    audio_to(with_header, chunks, 8000)
    audio_to(bare, chunks, 8000, with_header=False)
    assert np.frombuffer(bare.getvalue(), "<i2").tolist() == [0, 16384, 32767]
    assert with_header.getvalue()[44:] == bare.getvalue()
    with wave.open(io.BytesIO(with_header.getvalue())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)


@pytest.mark.slow
def test_the_command_streams_into_a_pipe_and_ends_quietly_when_it_is_closed(embedded, tmp_path):
    command = [sys.executable, "-m", "codeclm", "generate", str(PROMPT), "--duration", "1", "--stream"]
    done = subprocess.run([*command, "pcm"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heard = np.frombuffer(done.stdout, "<i2") / 32767
    np.testing.assert_allclose(heard, np.clip(embedded.generate(PROMPT, 1.0).audio, -1, 1), rtol=0, atol=2e-4)
    assert list(tmp_path.iterdir()) == []
    with subprocess.Popen(
        [*command[:6], "inf", "--stream", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4) == b"RIFF"
        process.stdout.close()
        assert process.wait(60) == 141 and b"Traceback" not in process.stderr.read()
    wrong = subprocess.run([*command, "mp3"], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "--stream is 'mp3'; give - (WAV)" in wrong.stderr


def test_a_stream_does_not_wait_for_nats_of_its_prompt_that_nobody_reads(make_model, make_codec, monkeypatch):
    codec = make_codec()
    for options in dict(context_frames=20), dict(pattern="flatten"):
        lm = SpeechGenerator(make_model(codec=codec, **options), codec, "tiny")
        prompt = (0.1 * np.random.default_rng(0).standard_normal(3000).astype(np.float32), codec.sample_rate)
        expected = lm.generate(prompt, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr("codeclm.inference.engine.score_window", None)
            streamed = np.concatenate(list(lm.stream(prompt, 0.3)))
        np.testing.assert_allclose(streamed, expected.audio, rtol=0, atol=1e-4)
        assert (expected.nll[:, : expected.num_prompt_frames] > 0).all()
