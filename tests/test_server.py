"""inference/server: what a client gets over HTTP is what the model gives in Python, alone or beside others."""

import errno
import io
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile

import codeclm
from codeclm.data.text_tokenizer import TextTokenizer
from codeclm.inference.client import Client
from codeclm.inference.loading import EMBEDDED_MODEL, save_model
from codeclm.inference.passage import Passage, lines
from codeclm.inference.server import run
from codeclm.inference.server.refusal import Refusal, refusal_of
from codeclm.model.shapes import TextConfig

from .serving import process, served, wait_for, write_prompt

TOLERANCE = 2e-4  # a 16-bit sample, and float32 sums in another order


@pytest.fixture(scope="module")
def lm(tmp_path_factory, make_model, make_codec) -> codeclm.SpeechGenerator:
    folder, codec = tmp_path_factory.mktemp("served") / "model", make_codec(codebook_size=7)
    save_model(make_model(codec=codec, context_frames=40), codec, folder)
    return codeclm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def prompt(tmp_path_factory) -> Path:
    return write_prompt(tmp_path_factory.mktemp("prompt") / "prompt.wav")


@pytest.fixture(scope="module")
def address(lm):
    with process(lm.name, "--client-rate", "0", "--client-sessions", "100") as (address, _):
        yield address


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


def test_sessions_that_run_together_give_the_codes_they_give_alone(lm, client, address, prompt, tmp_path):
    lm.prefix(prompt).save(tmp_path / "voice.safetensors")
    asked = [
        dict(prompt=prompt, duration_s=0.5 + 0.1 * seed, seed=seed, temperature=(1.2, 0.9), top_k=0)
        for seed in range(6)
    ]
    asked += [dict(duration_s=0.7, seed=9), dict(prompt=tmp_path / "voice.safetensors", duration_s=0.9, seed=3)]
    alone = [client.generate(**one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as pool, Client(address) as other:
        together = list(pool.map(lambda one: other.generate(**one), asked))
    for one, found, expected in zip(asked, together, alone, strict=True):
        sampling = codeclm.inference.SamplingConfig(
            **{name: one[name] for name in ("temperature", "top_k") if name in one}
        )
        made = lm.generate(one.get("prompt"), one["duration_s"], one["seed"], sampling)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(found.codes, made.codes[:, made.num_prompt_frames :])
        np.testing.assert_allclose(found.audio, made.audio, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.nll, made.nll[:, made.num_prompt_frames :], rtol=0, atol=1e-3)
        assert found.finish_reason == "length"


@pytest.mark.parametrize("kind", ["wav", "pcm", "flac", "opus", "mp3"])
def test_every_format_holds_the_same_sound_whole_and_as_a_stream(client, prompt, kind):
    made = client.generate(prompt, 0.6, 1).audio
    for stream in ("false", "true"):
        files = {"audio": prompt.read_bytes()}
        values = {"duration": "0.6", "seed": "1", "format": kind, "stream": stream}
        reply = client.http.post("/v1/continuations", data=values, files=files)
        assert reply.status_code == 200 and reply.headers["x-sample-rate"] == "8000"
        assert ("content-length" in reply.headers) == (stream == "false" or kind == "flac")
        if kind == "pcm":
            found = np.frombuffer(reply.content, "<i2") / 32767
        else:
            found, rate = soundfile.read(io.BytesIO(reply.content))
            assert rate == 8000
        assert abs(len(found) - len(made)) <= (2500 if kind == "mp3" else 0)
        if kind in ("wav", "pcm", "flac"):
            np.testing.assert_allclose(found, made, rtol=0, atol=TOLERANCE)
        else:
            loudness = np.sqrt((np.mean(found**2), np.mean(made**2)))
            assert 0.5 < loudness[0] / loudness[1] < 2


def test_a_stream_begins_before_its_end_is_drawn(client, prompt):
    chunks = client.stream(prompt, 30.0, seed=1)
    joined = [next(chunks)]
    assert client.http.get("/health").json()["open"] == 1
    joined += [next(chunks) for _ in range(2)]
    chunks.close()
    assert 0 < sum(map(len, joined)) < 30 * 8000
    wait_for(lambda: client.http.get("/health").json()["open"] == 0)


def test_the_likelihood_is_that_of_evaluate(lm, client, prompt):
    found = client.likelihood(prompt)
    made = lm.generate(prompt, 0.1)
    given = made.num_prompt_frames
    np.testing.assert_array_equal(np.array(found["codes"]).T, made.codes[:, :given])
    np.testing.assert_allclose(np.array(found["bits"]).T, made.nll[:, :given] / np.log(2), rtol=0, atol=1e-3)
    assert found["bits_per_second"] == pytest.approx(np.sum(found["bits"]) / found["duration_s"], rel=1e-4)


def test_a_model_that_speaks_text_answers_as_openai_does_and_another_says_so(tmp_path, make_model, make_codec):
    tokenizer, codec = TextTokenizer.train(["the quick brown fox jumps"], 280), make_codec(codebook_size=7)
    save_model(make_model(codec=codec), codec, tmp_path / "wordless")
    with served(codeclm.load(tmp_path / "wordless", device="cpu")) as (address, _), Client(address) as other:
        refused = other.http.post("/v1/audio/speech", json={"model": "tts-1", "input": "hello", "voice": "default"})
        assert refused.status_code == 400 and "speaks no text" in refused.json()["error"]["message"]
    text = TextConfig(280, layout="first", tokenizer=tokenizer.fingerprint)
    save_model(make_model(codec=codec, text=text), codec, tmp_path / "speaker", tokenizer=tokenizer)
    lm = codeclm.load(tmp_path / "speaker", device="cpu")
    with served(lm) as (address, _), Client(address) as speaker:
        assert speaker.model()["speaks_text"] and speaker.http.get("/v1/models").json()["data"][0]["id"] == "codeclm"
        values = {"model": "x", "input": "the quick fox", "voice": "default", "response_format": "wav", "duration": 0.5}
        reply = speaker.http.post("/v1/audio/speech", json=values)
        assert reply.status_code == 200 and reply.headers["content-type"] == "audio/wav"
        found, _ = soundfile.read(io.BytesIO(reply.content))
        made = lm.generate(None, 0.5, 0, text="the quick fox")
        np.testing.assert_allclose(found, made.audio, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(speaker.speak("the quick fox", 0.5).audio, made.audio, rtol=0, atol=TOLERANCE)
        wrong = values | {"voice": "alloy"}
        assert "voice" in speaker.http.post("/v1/audio/speech", json=wrong).json()["error"]["message"]


def test_a_model_that_writes_text_answers_as_openai_does(tmp_path):
    """What it writes is what it writes in Python, in each format, with the times of its passages."""
    lm, path = codeclm.load(device="cpu"), tmp_path / "late.wav"
    speech, rate = soundfile.read(EMBEDDED_MODEL / "prompt.flac", dtype="float32")
    soundfile.write(path, np.concatenate([np.zeros(round(18.5 * rate), np.float32), speech[: 2 * rate]]), rate)
    passages = list(lm.passages(path))
    whole = passages[0].text
    assert len(passages) == 1 and 18 <= passages[0].start_s <= 18.5 and passages[0].end_s == 20.5 and len(whole) > 5
    with served(lm) as (address, _), Client(address, timeout_s=120) as client:
        assert client.model()["writes_text"] and client.transcribe(path) == whole

        def told(**values: str) -> httpx2.Response:
            files = {"file": ("long.wav", path.read_bytes(), "audio/wav")}
            return client.http.post("/v1/audio/transcriptions", files=files, data={"model": "whisper-1", **values})

        for kind in ("text", "srt", "vtt"):
            written = [whole] if kind == "text" else lines(passages, kind)
            assert told(response_format=kind).text == "".join(f"{line}\n" for line in written)
        found = told(response_format="verbose_json", language="en").json()
        assert (found["text"], found["language"], found["duration"]) == (whole, "en", 20.5)
        assert [Passage(one["start"], one["end"], one["text"]) for one in found["segments"]] == passages
        drawn = lm.transcribe(path, sampling=codeclm.inference.SamplingConfig(text_temperature=0.7))
        assert told(temperature="0.7").json()["text"] == drawn
        for values, line in (
            ({"response_format": "exe"}, "response_format: "),
            ({"prompt": "x"}, "prompt: Extra inputs"),
        ):
            assert told(**values).json()["error"]["message"].startswith(line)
        empty = client.http.post("/v1/audio/transcriptions", files={"model": (None, "x")})
        assert empty.status_code == 400 and "has a field file" in empty.json()["error"]["message"]


WRONG = {
    "duration: Input should be greater than 0 (given: ": dict(duration="-1"),
    "duration is 100 s; this server gives at most 60 s": dict(duration="100"),
    "duration: Input should be a finite number": dict(duration="nan"),
    "seed: ": dict(seed="1e9"),
    "top_k": dict(top_k="9" * 40),
    "temperature has 4 numbers": dict(temperature="1,1,1,1"),
    "temperature is -1.0": dict(temperature="-1"),
    "volume: Extra inputs are not permitted (given: ": dict(volume="11"),
    "format: Input should be 'wav', 'pcm'": dict(format="exe"),
    "model: cannot speak a given text": dict(text="hello"),
    "num_codebooks is 9": dict(num_codebooks="9"),
    "audio: cannot be read as audio": dict(audio=b"no sound at all" * 99),
    "audio: the file is empty": dict(audio=b""),
    "audio: send the bytes of a file": dict(audio="/etc/passwd"),
    "prefix: is not a whole safetensors file": dict(prefix=b"\x80\x04K\x01."),
    "audio and prefix: give one of them": dict(audio=b"1", prefix=b"2"),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_cannot_be_done_is_one_line_of_json(client, told):
    files = {name: value if isinstance(value, bytes) else (None, value) for name, value in WRONG[told].items()}
    reply = client.http.post("/v1/continuations", files=files)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and message.startswith(told), message
    assert len(message.splitlines()) == 1 and "Traceback" not in message


def test_metrics_and_openapi_and_the_page_are_there(client):
    client.generate(duration_s=0.1)
    text = client.http.get("/metrics").text
    assert 'codeclm_requests_total{path="/v1/continuations",status="200"}' in text
    assert 'codeclm_first_audio_seconds_bucket{le="+Inf"}' in text and "codeclm_underruns_total" in text
    paths = client.http.get("/openapi.json").json()["paths"]
    assert {"/v1/continuations", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/likelihood"} <= set(paths)
    page = client.http.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.http.get("/page/docs.js").status_code == 200
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd"):
        assert client.http.get(path).status_code == 404


def test_the_curl_lines_of_the_readme_run(address, prompt, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    page = (Path(run.__file__).parent / "README.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("curl ")]
    (tmp_path / "prompt.wav").write_bytes(prompt.read_bytes())
    for line in lines:
        command = ["bash", "-c", line.replace("http://127.0.0.1:8000", address)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, line
    assert {path for line in lines for path in re.findall(r"/v1/[\w/]+|/health|/metrics", line)} == {
        "/v1/continuations", "/v1/likelihood", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/model", "/health",
        "/metrics",
    }  # fmt: skip
    assert len(soundfile.read(tmp_path / "continued.wav")[0]) == 2 * 8000
    assert (tmp_path / "streamed.wav").stat().st_size == 44 + 2 * 2 * 8000
    assert json.loads((tmp_path / "lines.jsonl").read_text().splitlines()[-1])["finish_reason"] == "length"
    assert json.loads((tmp_path / "bits.json").read_text())["bits_per_second"] > 0
    assert "speaks no text" in (tmp_path / "speech.mp3").read_text()
    assert "writes no text" in (tmp_path / "written.json").read_text()


def test_a_server_that_is_to_end_lets_open_requests_end_and_takes_no_new_ones(lm, prompt):
    """As after SIGTERM, which tests/server_faults.py sends."""
    with served(lm) as (address, server), Client(address) as client:
        open_before = httpx2.Client(base_url=address, trust_env=False)
        assert open_before.get("/health").json()["status"] == "ok"
        chunks = client.stream(prompt, 2.0)
        first = next(chunks)
        server.should_exit = True
        wait_for(lambda: server.service.turnstile.is_draining)
        assert sum(map(len, [first, *chunks])) == 2 * 8000
        with pytest.raises(ConnectionError):
            client.model()
        with pytest.raises(Refusal, match="going down") as refused, server.service.turnstile.place("a"):
            pass
        assert refused.value.status == 503 and refused.value.retry_after


def test_the_client_tells_in_one_line_that_nobody_answers():
    with pytest.raises(ConnectionError, match="^http://127.0.0.1:9"), Client("http://127.0.0.1:9") as client:
        client.model()


@pytest.mark.parametrize("error, status", [
    (OSError(errno.ENOSPC, "No space left on device"), 507), (MemoryError(), 503), (ValueError("a\nb"), 400),
    (FloatingPointError("NaN"), 500), (KeyError("x"), 500), (RuntimeError("out of memory"), 503),
])  # fmt: skip
def test_every_error_has_its_status_and_one_line(error, status):
    refusal = refusal_of(error)
    assert refusal.status == status and refusal.message and len(refusal.message.splitlines()) == 1
    assert (refusal.retry_after is not None) == (status in (503, 507))
