"""`codeclm codec compress` and `decompress`: sizes are the model's likelihood, and codes come back on any machine."""

import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from codeclm.inference.compress import codes as compress
from codeclm.inference.compress.arithmetic import MARGIN, Distributions
from codeclm.inference.compress.codes import code_rows, compress_codes, decompress_codes, predicted_bits
from codeclm.inference.compress.container import HEADER, ClmFile
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.loading import EMBEDDED_MODEL, load, save_model
from codeclm.model import SpeechLM
from codeclm.model.check_inputs import check_inputs
from codeclm.model.shapes import DepthConfig, TextConfig
from codeclm.model.walk import Walk
from codeclm.train.cli import main

from .options import backbone

# every way in which codes can depend on each other, and the windows of long rows
MODELS = {
    "depth": {},
    "depth, delays": dict(delays=(0, 1, 3)),
    "delay": dict(pattern="delay", delays=(0, 1, 2)),
    "delay, also codebook 0": dict(pattern="delay", delays=(1, 2, 1)),
    "parallel": dict(pattern="parallel"),
    "flatten": dict(pattern="flatten"),
    "one codebook": dict(delays=(0,)),
    "text": dict(text=TextConfig(vocab_size=5)),
    "flatten, text": dict(pattern="flatten", text=TextConfig(vocab_size=5)),
    "as CSM": dict(
        text=TextConfig(vocab_size=5, predicted=False),
        end="zeros",
        depth=DepthConfig(dim=8, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=16, conditioning="prefix"),
    ),
    "as Moshi": dict(
        delays=(0, 1, 1),
        text=TextConfig(vocab_size=5),
        user_codebooks=3,
        end="never",
        gaps="bos",
        depth=DepthConfig(
            dim=8, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=16, first_codebook="depth", sees_text=True,
            embeddings="wide", weight_sets=(0, 1, 1), rope=False, final_norm=False,
        ),
    ),
    "no BOS": dict(delays=(0, 1, 1), bos=False),
    "groups": dict(
        delays=(0, 0, 1, 1),
        depth=DepthConfig(dim=8, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=16, group_size=2),
    ),
    "sliding window": dict(backbone=backbone(sliding_window=3), delays=(0, 1, 1)),
}  # fmt: skip
LENGTHS = (1, 26, 7)


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_model) -> SpeechLM:
    return make_model(codebook_size=32, context_frames=16, **MODELS[request.param])


def some_codes(model: SpeechLM, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = model.num_codebooks
    return [torch.randint(model.codebook_size, (shape, length), generator=generator) for length in lengths]


def test_every_code_is_coded_with_the_probability_that_scoring_gives_it(model, monkeypatch):
    def exact(logits: np.ndarray) -> Distributions:
        return Distributions(torch.from_numpy(logits).log_softmax(-1).numpy() / np.log(2), np.ones(len(logits), bool))

    def coder(row: int, k: int, frame: int, source: Distributions, index: int) -> int:
        code = int(utterances[row][k, frame])
        bits[row] -= source.frequencies[index, code]
        return code

    monkeypatch.setattr(compress, "distributions", exact)
    utterances, bits = some_codes(model), [0.0] * len(LENGTHS)
    code_rows(model, list(LENGTHS), coder)
    assert bits == pytest.approx([predicted_bits(model, codes) for codes in utterances], abs=1e-8)


def test_sizes_are_the_models_bits_and_codes_come_back_in_other_batches(model):
    utterances = some_codes(model)
    payloads = compress_codes(model, utterances, batch_size=2)
    for codes, payload in zip(utterances, payloads, strict=True):
        bits = predicted_bits(model, codes)
        assert 0.995 * bits - 1 <= 8 * len(payload) <= 1.005 * bits + 16
    for batch_size in (1, 3):
        back = decompress_codes(model, payloads, LENGTHS, batch_size)
        assert all(torch.equal(codes, decoded) for codes, decoded in zip(utterances, back, strict=True))


def test_the_predicted_bits_are_those_of_evaluate(make_codec, make_model, make_store, tmp_path):
    codec = make_codec()
    model = make_model(codec=codec, context_frames=16)
    utterances = some_codes(model)
    store = make_store(tmp_path / "tokens", [codes.T.numpy() for codes in utterances], codec)
    nats = score_store(model, store, progress=False).nll.sum(axis=1)
    assert [predicted_bits(model, codes) for codes in utterances] == pytest.approx(list(nats / np.log(2)))


def moved(amount: float) -> Callable[[Walk, int], Tensor]:
    """Logits as another machine computes them: each off by up to `amount`."""
    generator, exact = torch.Generator().manual_seed(1), Walk.logits

    def logits(walk: Walk, slot: int) -> Tensor:
        right = exact(walk, slot)
        return right + amount * (2 * torch.rand(right.shape, generator=generator, dtype=right.dtype) - 1)

    return logits


def test_codes_come_back_on_a_machine_that_rounds_otherwise(make_model, monkeypatch):
    model = make_model(codebook_size=1000)
    utterances = some_codes(model)
    payloads = compress_codes(model, utterances)
    monkeypatch.setattr(Walk, "logits", moved(MARGIN / 2))
    back = decompress_codes(model, payloads, LENGTHS, batch_size=2)
    assert all(torch.equal(codes, decoded) for codes, decoded in zip(utterances, back, strict=True))
    monkeypatch.setattr(Walk, "logits", moved(1e-3))
    try:
        back = decompress_codes(model, payloads, LENGTHS)
    except ValueError:
        return
    assert not all(torch.equal(codes, decoded) for codes, decoded in zip(utterances, back, strict=True))


def test_logits_of_float64_differ_far_less_between_batches_than_is_allowed_for(make_model, monkeypatch):
    model, seen, exact = make_model(codebook_size=64), {1: [], 4: []}, Walk.logits

    def spy(walk: Walk, slot: int) -> Tensor:
        logits = exact(walk, slot)
        seen[walk.batch].append(logits[0])
        return logits

    monkeypatch.setattr(Walk, "logits", spy)
    codes = some_codes(model, (20,))[0]
    compress_codes(model, [codes])
    compress_codes(model, [codes] * 4, batch_size=4)
    assert len(seen[1]) == len(seen[4]) == 60
    assert max(float((a - b).abs().max()) for a, b in zip(seen[1], seen[4], strict=True)) < MARGIN / 100


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.99])
def test_damaged_bytes_are_refused_or_give_other_codes(make_model, share):
    model = make_model(codebook_size=64)
    codes = some_codes(model, (30,))[0]
    payload = compress_codes(model, [codes])[0]
    damaged = bytearray(payload)
    damaged[int(share * len(payload))] ^= 0x55
    for bad in (bytes(damaged), payload[: int(share * len(payload))]):
        try:
            decoded = decompress_codes(model, [bad], [30])[0]
        except ValueError as error:
            assert "the coded data are" in str(error)
        else:
            assert decoded.shape == codes.shape and not torch.equal(decoded, codes)
            check_inputs(model.config, decoded[None])


def test_bytes_that_say_that_a_row_ends_early_are_damaged(make_model):
    model, noise = make_model(codebook_size=2), np.random.default_rng(0).bytes(50)
    with pytest.raises(ValueError, match="the coded data are damaged"):
        decompress_codes(model, [noise], [30])


def test_what_cannot_be_compressed_is_refused(make_model):
    model = make_model()
    codes = some_codes(model, (5,))[0]
    with pytest.raises(ValueError, match="the model is in torch.float32; compression needs float64"):
        compress_codes(make_model(dtype=torch.float32), [codes])
    with pytest.raises(ValueError, match="the model is in torch.float32; compression needs float64"):
        decompress_codes(make_model(dtype=torch.float32), [b""], [5])
    for wrong, message in (
        (codes[:2], "codes have 2 codebooks; this model has 3"),
        (codes[:, :0], "codes hold no frame"),
        (codes + 7, "codes span .*; this model has 0..6"),
        (codes.masked_fill(codes == codes[0, 0], -1), r"codes hold -1 \(absent\), which cannot be compressed"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_codes(model, [codes, wrong], batch_size=2)
    with torch.no_grad():
        model.head_0.weight[3, 3] = np.nan
    with pytest.raises(FloatingPointError, match="the model gave NaN or infinite logits"):
        compress_codes(model, [codes])


def codeclm(*args: object) -> None:
    main([str(arg) for arg in args])


@pytest.mark.slow
def test_real_speech_becomes_as_small_as_the_embedded_model_says_and_comes_back(tmp_path, capsys):
    audio, small, back = tmp_path / "prompt.wav", tmp_path / "prompt.clm", tmp_path / "back.wav"
    samples, rate = soundfile.read(EMBEDDED_MODEL / "prompt.flac")
    soundfile.write(audio, samples[: 2 * rate + 5], rate)
    codeclm("codec", "compress", audio, small)
    out = capsys.readouterr().out
    predicted = float(re.search(r"the model predicts ([\d.]+) ", out)[1])
    size = small.stat().st_size
    assert out.startswith(f"{small}: {size} bytes for 2.00 s, ") and HEADER.size < 100
    assert size - HEADER.size == pytest.approx(predicted / 8, rel=0.01)
    codeclm("codec", "decompress", small, back)
    codeclm("codec", "roundtrip", audio, tmp_path / "roundtrip.wav")
    assert back.read_bytes() == (tmp_path / "roundtrip.wav").read_bytes()


def test_real_codes_compressed_three_at_a_time_come_back_one_at_a_time():
    lm, lengths = load(), (9, 20, 14)
    codes = lm.encode(EMBEDDED_MODEL / "prompt.flac")
    utterances = [codes[:, 3 * length : 4 * length] for length in lengths]
    payloads = compress_codes(lm.model.double(), utterances, batch_size=3)
    back = decompress_codes(lm.model, payloads, lengths, batch_size=1)
    assert all(torch.equal(codes, decoded) for codes, decoded in zip(utterances, back, strict=True))


@pytest.fixture(scope="module")
def folders(make_codec, make_model, tmp_path_factory) -> list[Path]:
    """Two models with one codec."""
    codec, folder = make_codec(), tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        save_model(make_model(codec=codec, seed=seed, dtype=torch.float32), codec, folder / name)
    return [folder / "a", folder / "b"]


@pytest.fixture
def speech(tmp_path) -> Path:
    soundfile.write(tmp_path / "speech.wav", 0.1 * np.sin(np.arange(3999) ** 1.3), 8000)
    return tmp_path / "speech.wav"


def refused(capsys, *args: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        codeclm(*args)
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and error.startswith("codeclm: ")
    return error


def test_a_file_that_cannot_come_back_is_refused_in_one_line(folders, speech, tmp_path, capsys):
    small, back = tmp_path / "speech.clm", tmp_path / "back.wav"
    codeclm("codec", "compress", speech, small, "--model", folders[0])
    decompress = ("codec", "decompress", small, back, "--model", folders[0])
    assert "speech.clm: was compressed with model" in refused(capsys, *decompress[:-1], folders[1])
    assert "is not a .clm file" in refused(capsys, "codec", "decompress", speech, *decompress[3:])
    good = small.read_bytes()
    small.write_bytes(good[:-1])
    assert "speech.clm: is cut off" in refused(capsys, *decompress)
    small.write_bytes(good[:-1] + b"x")
    assert "speech.clm: is damaged" in refused(capsys, *decompress)
    small.write_bytes(good)
    assert not back.exists()
    codeclm(*decompress)
    assert soundfile.info(back).frames == 3999


@pytest.mark.parametrize("amount", [3e-3, 3.0])
def test_a_machine_with_other_probabilities_says_so(folders, speech, tmp_path, capsys, monkeypatch, amount):
    small = tmp_path / "speech.clm"
    codeclm("codec", "compress", speech, small, "--model", folders[0])
    monkeypatch.setattr(Walk, "logits", moved(amount))
    error = refused(capsys, "codec", "decompress", small, tmp_path / "back.wav", "--model", folders[0])
    assert "speech.clm: did not come out as it went in, because this machine computes other" in error
    assert not (tmp_path / "back.wav").exists() and ClmFile.read(small).num_frames == 50


def test_what_cannot_be_read_or_written_is_refused_and_leaves_nothing(folders, speech, tmp_path, capsys):
    for verb in ("compress", "decompress"):
        missing = ("codec", verb, tmp_path / "missing", tmp_path / "out", "--model", folders[0])
        assert "missing: no such file" in refused(capsys, *missing)
        assert "is a folder" in refused(capsys, "codec", verb, speech, tmp_path, "--model", folders[0])
    assert not (tmp_path / "out").exists()


def test_a_claim_of_any_number_of_frames_takes_no_memory(make_model):
    model = make_model((0, 1, 1))
    payload = bytes(range(200))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="the coded data are"):
        decompress_codes(model, [payload], [2**32 - 1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_frames_that_no_payload_could_hold_are_refused_before_any_work(make_codec, tmp_path):
    codec, path = make_codec(), tmp_path / "crafted.clm"
    content = ClmFile("ab" * 32, codec.fingerprint, 3, 8, 2**32 - 1, (2**32 - 1) * 80, 0, bytes(1000))
    content.write(path)
    with pytest.raises(ValueError, match="crafted.clm: was not written by codeclm: its header contradicts itself"):
        ClmFile.read(path).require(path, "ab" * 32, codec, "default")
    likeliest = ClmFile("ab" * 32, codec.fingerprint, 3, 8, 10**6, 80 * 10**6, 0, b"")  # the least that a code can cost
    likeliest.require(path, "ab" * 32, codec, "default")
