"""inference/evaluate/adapter.py: any model that gives nats stands in the tables of `evaluate`."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import codeclm
from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference.config import EvaluateConfig, PairsConfig
from codeclm.inference.evaluate.flattened_llama import FlattenedLlama
from codeclm.inference.evaluate.items import read_items
from codeclm.inference.evaluate.suite import evaluate_pairs
from codeclm.inference.loading import save_model
from codeclm.model.codec_reference import CodecReference
from codeclm.train.cli import main

PROMPT = Path(__file__).parent.parent / "model/pretrained/prompt.flac"
RATE, K, V = 8000, 3, 8


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Six recordings of a quarter of a second, cut from a voice, and three pairs of them."""
    folder, voice = tmp_path_factory.mktemp("speech"), load_audio(PROMPT, RATE)
    for number in range(6):
        start = 1700 * number
        save_audio(folder / f"{number}.wav", voice[start : start + RATE // 4 + 300 * number], RATE)
    lines = [{"better": f"{n}.wav", "worse": f"{n + 1}.wav", "span": [800, 1600]} for n in (0, 2, 4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def llama(codec, seed: int = 0, most: int = 4096) -> FlattenedLlama:
    """Two tokens before the codes; those of a codebook lie 11 after those of the one before."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=most, initializer_range=0.5,
    )  # fmt: skip
    table = 5 + 11 * torch.arange(K)[:, None] + torch.arange(V)
    return FlattenedLlama(LlamaForCausalLM(config).double(), codec, table, [1, 4])


@torch.no_grad()
def test_bits_per_second_of_a_flattened_llama_are_those_of_a_few_lines(speech, make_codec):
    codec = make_codec()
    adapter = llama(codec)
    report = codeclm.Adapted(adapter).evaluate(speech, progress=False, frames_per_batch=50)
    nats = seconds = 0.0
    for path in sorted(speech.glob("*.wav")):
        codes = codec.encode(torch.from_numpy(load_audio(path, RATE))[None, None])[0]  # [K, T]
        tokens = [1, 4] + [5 + 11 * k + int(code) for frame in codes.T for k, code in enumerate(frame)]
        logits = adapter.model(torch.tensor([tokens])).logits[0]
        for place, token in enumerate(tokens[2:], 2):
            first = 5 + 11 * ((place - 2) % K)
            nats -= float(logits[place - 1, first : first + V].log_softmax(0)[token - first])
        seconds += codes.shape[1] / 100
    assert report.model.bits_per_second == pytest.approx(nats / math.log(2) / seconds, rel=1e-5)
    assert (report.num_utterances, report.duration_s) == (6, pytest.approx(seconds))
    assert report.checkpoint_hash == adapter.fingerprint() != llama(codec, seed=1).fingerprint()
    assert report.codec_fingerprint == codec.fingerprint and "the adapter's" in report.context


def test_equal_logits_cost_the_raw_rate(speech, make_codec):
    adapter = llama(make_codec())
    torch.nn.init.zeros_(adapter.model.lm_head.weight)
    report = codeclm.Adapted(adapter).evaluate(speech, progress=False)
    assert report.model.bits_per_second == pytest.approx(report.raw_bits_per_second, rel=1e-6)
    assert report.raw_bits_per_second == 100 * K * math.log2(V)


def test_a_context_that_is_too_short_is_windows_that_know_the_half_before(make_codec):
    adapter, rng = llama(make_codec(), most=2 + 8 * K), np.random.default_rng(0)
    assert adapter.most_frames == 8
    codes = rng.integers(0, V, (K, 20))
    whole, start, later = adapter.nats([codes, codes[:, :8], codes[:, 4:12]])
    np.testing.assert_allclose(whole[:, :8], start, rtol=1e-9)
    np.testing.assert_allclose(whole[:, 8:12], later[:, 4:], rtol=1e-9)


class Ours:
    """A model of ours as somebody else would adapt it."""

    name = "ours"

    def __init__(self, lm: codeclm.SpeechGenerator):
        self.lm, self.codec = lm, CodecReference.of(lm.codec)

    def fingerprint(self) -> str:
        return self.lm.fingerprint

    def encode(self, audio: np.ndarray) -> np.ndarray:
        return self.lm.codec.encode(torch.from_numpy(audio)[None, None])[0].numpy()

    @torch.inference_mode()
    def nats(self, codes):
        return [self.lm.model(torch.from_numpy(each)[None]).nll[0].numpy() for each in codes]


@pytest.fixture(scope="module")
def lm(tmp_path_factory, make_model, make_codec) -> codeclm.SpeechGenerator:
    folder, codec = tmp_path_factory.mktemp("lm") / "model", make_codec()
    save_model(make_model((0, 0, 0), codec=codec, end="never"), codec, folder)
    return codeclm.load(str(folder), device="cpu")


def test_a_model_of_ours_has_the_same_numbers_through_an_adapter(lm, speech, tmp_path):
    adapted, config = codeclm.Adapted(Ours(lm)), EvaluateConfig(bootstrap_samples=50)
    reports = [each.evaluate(speech, config=config, progress=False) for each in (lm, adapted)]
    own, other = (report.model for report in reports)
    assert own.bits_per_second == pytest.approx(other.bits_per_second, rel=1e-5)
    assert reports[0].bigram == reports[1].bigram and reports[0].data_hash == reports[1].data_hash
    pairs = PairsConfig(window_s=0.1)
    for each, out in ((lm, tmp_path / "own"), (adapted, tmp_path / "other")):
        evaluate_pairs(each, speech / "pairs.jsonl", out, None, pairs, config, progress=False)
    for one, two in zip(read_items(tmp_path / "own"), read_items(tmp_path / "other"), strict=True):
        for part in ("whole", "local", "alone"):
            np.testing.assert_allclose(getattr(one.model, part), getattr(two.model, part), rtol=1e-4)
        assert (one.name, one.window, one.bigram) == (two.name, two.window, two.bigram)


MODULE = """
import numpy as np
from codeclm.model.codec_reference import CodecReference

class Fair:
    name = "fair dice"
    codec = CodecReference("dice", "0" * 64, 8000, 80, 2, 6)
    def fingerprint(self): return "f" * 64
    def encode(self, audio): return np.random.default_rng(0).integers(0, 6, (2, -(-len(audio) // 80)))
    def nats(self, codes): return [np.full(each.shape, np.log(6)) for each in codes]

class Short(Fair):
    def encode(self, audio): return super().encode(audio)[:, 1:]

class Negative(Fair):
    def nats(self, codes): return [-nats for nats in super().nats(codes)]

class Thin(Fair):
    def nats(self, codes): return [nats[:1] for nats in super().nats(codes)]

class Dumb:
    name = "dumb"
"""


def test_the_command_imports_an_adapter_of_the_users_own(speech, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_dice.py").write_text(MODULE)
    main(["evaluate", str(speech), "--model", "my_dice:Fair", "--json", "dice.json"])
    report = json.loads(Path("dice.json").read_text())
    assert report["model"]["bits_per_second"] == pytest.approx(100 * 2 * math.log2(6))
    assert report["checkpoint_hash"] == "f" * 64 and report["codec"] == "dice"
    main(["evaluate", str(speech / "pairs.jsonl"), "--model", "my_dice:Fair", "--out", "pairs"])
    assert "local" in capsys.readouterr().out and len(read_items(Path("pairs"))) == 3
    for name, told in {
        "Short": "dice: made codes [2, 2999] of audio for which [K, T] is (2, 3000)",
        "Negative": "fair dice: gave nats that are negative, infinite or NaN",
        "Thin": "fair dice: gave nats [1, ",
        "Dumb": "has no 'codec'; an adapter has name, codec, fingerprint, encode, nats",
    }.items():
        with pytest.raises(SystemExit):
            main(["evaluate", str(speech), "--model", f"my_dice:{name}"])
        assert told in capsys.readouterr().err


def test_what_an_adapter_decides_is_refused_as_an_option(lm, speech):
    for settings in ({"bf16": True}, {"context_frames": 20}, {"num_codebooks": 2}):
        with pytest.raises(ValueError, match="of no use with the adapter 'ours', which decides"):
            codeclm.Adapted(Ours(lm)).evaluate(speech, **settings)
    with pytest.raises(ValueError, match="only encodes"):
        codeclm.Adapted(Ours(lm)).codec.decode(torch.zeros(1, 3, 2, dtype=torch.int64))
