"""Nothing is left on the CPU when a codec or a model is elsewhere (tests/fake_device.py); CUDA itself is not needed."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.data.preparation import open_or_prepare
from codeclm.inference.codec.contract import PROPERTIES, probe, stream
from codeclm.inference.codec.random_codecs import EVERY_KIND, load_tiny
from codeclm.inference.codec.roundtrip import roundtrip
from codeclm.inference.compress.codes import compress_codes, decompress_codes
from codeclm.inference.config import SamplingConfig
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.model.codecs import SpectralCodec
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.shapes import TextConfig
from codeclm.train.codec_losses import envelope_loss, loudness_losses, mel_loss
from codeclm.train.codec_trainer import pitch_error
from codeclm.train.discriminators import Discriminators, adversarial_losses, discriminator_loss
from codeclm.train.loop import Trainer
from codeclm.train.new_model import new_model

from .fake_device import ELSEWHERE, Elsewhere, Mixed, elsewhere
from .options import OPTIONS, WORDS, example
from .test_codec_training import RATE, TINY, voice
from .training import SHORT

pytestmark = pytest.mark.slow


def test_the_device_refuses_the_cpus_tensors_and_computes_the_same():
    a, b = torch.randn(3, 4), torch.randn(4)
    with elsewhere():
        there = a.to(ELSEWHERE)
        assert isinstance(there, Elsewhere) and there.device == ELSEWHERE
        assert torch.equal((there @ b.to(ELSEWHERE) + torch.tensor(1.0)).cpu(), a @ b + 1)
        assert isinstance(torch.zeros(3, device=there.device) + there[:, 0], Elsewhere)
        for mixed in (lambda: there @ b, lambda: torch.cat([there, a]), lambda: there[0].add_(b)):
            with pytest.raises(Mixed):
                mixed()


SLOW = {"mimi", "encodec 24 kHz", "encodec 48 kHz", "encodec 32 kHz"}  # many small operations, each run by Python


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in EVERY_KIND])
def test_a_codec_keeps_its_contract_on_another_device(name):
    codec = load_tiny(name)
    # autocast is of the devices that have it; files are read and written on the CPU; memory is the same anywhere
    here = {"float32", "fingerprint", "long file"}
    with elsewhere():
        codec.to(ELSEWHERE)
        for property in PROPERTIES.keys() - here:
            PROPERTIES[property](codec)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_streams_that_end_on_a_whole_frame_end_on_another_device(name):
    codec = load_tiny(name)
    with elsewhere():
        audio = probe(codec.to(ELSEWHERE), 30 * codec.hop_length)
        codes = stream(codec.streaming_encoder(), [audio])
        assert isinstance(codes, Elsewhere) and codes.shape[-1] == 30
        assert isinstance(stream(codec.streaming_decoder(), [codes]), Elsewhere)
        for coder in (codec.streaming_encoder(), codec.streaming_decoder()):
            assert isinstance(coder.flush(), Elsewhere)


def there(value: Any) -> Any:
    return value.to(ELSEWHERE) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scoring_and_learning_match_on_another_device(make_model, options):
    model = make_model(**options)
    inputs = example(model)
    expected = model(**inputs)
    expected.loss.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with elsewhere():
        model.to(ELSEWHERE)
        output = model(**{name: there(value) for name, value in inputs.items()})
        output.loss.backward()
        torch.testing.assert_close(output.nll.cpu(), expected.nll)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(None if parameter.grad is None else parameter.grad.cpu(), grad)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_generation_matches_on_another_device(make_model, options):
    model = make_model(**options)
    given = {name: value[0] for name, value in example(model).items()}
    if "user" in given:
        given["user"] = torch.cat([given["user"], given["user"]], dim=1)[:, :10]
    request = Request(4, draw_text=model.predicts_text, **given)
    expected = list(generate(model, request, [0, 1]))[-1]
    with elsewhere():
        found = list(generate(model.to(ELSEWHERE), request, [0, 1]))[-1]
        assert torch.equal(found.codes.cpu(), expected.codes)
        torch.testing.assert_close(found.nll.cpu(), expected.nll)


def test_every_setting_and_known_codes_match_on_another_device(make_model):
    model = make_model(text=TextConfig(WORDS))
    codes, text = (value[0] for value in example(model).values())
    known = torch.where(codes < 3, codes, ABSENT)  # still on the CPU, as a file gives them
    settings = [
        SamplingConfig((1.5, 0.5), repetition_share=0.1, guidance=2.0, stop_at_end=True),
        SamplingConfig(0.0, top_k=(3, 4), top_p=0.9, min_p=0.1),
    ]
    request = Request(6, codes, text, new_text=text, new_codes=known)
    for sampling in (settings, settings[0]):
        expected = list(generate(model.to("cpu"), request, [0, 1], sampling))[-1]
        with elsewhere():
            found = list(generate(model.to(ELSEWHERE), request, [0, 1], sampling))[-1]
            assert torch.equal(found.codes.cpu(), expected.codes) and torch.equal(found.end.cpu(), expected.end)
            torch.testing.assert_close(found.nll.cpu(), expected.nll)


def test_continued_speech_and_coded_files_match_on_another_device(make_model, make_codec, tmp_path):
    codec = make_codec()
    lm = SpeechGenerator(make_model(codec=codec), codec, "tiny")
    prompt = voice(110, 0.5, 0).astype(np.float32), RATE
    save_audio(tmp_path / "in.wav", *prompt)

    def outputs() -> list[np.ndarray]:
        spoken = lm.generate(prompt, duration_s=0.2)
        roundtrip(tmp_path / "in.wav", tmp_path / "out.wav", codec)
        store = open_or_prepare(tmp_path / "in.wav", tmp_path / codec.device.type, codec)
        return [spoken.codes, spoken.audio, load_audio(tmp_path / "out.wav", RATE), store.codes(0)]

    expected = outputs()
    with elsewhere():
        lm.model.to(ELSEWHERE)
        codec.to(ELSEWHERE)
        for found, value in zip(outputs(), expected, strict=True):
            np.testing.assert_allclose(found, value, atol=1e-4)


@pytest.mark.slow
def test_scored_and_coded_stores_match_on_another_device(make_model, make_codec, make_store, tmp_path):
    codec = make_codec()
    model = make_model(codec=codec)
    codes = [np.random.default_rng(seed).integers(0, 8, (20 + seed, 3), dtype=np.uint16) for seed in range(3)]
    store = make_store(tmp_path, codes, codec)
    expected = score_store(model, store, progress=False)
    rows = [torch.from_numpy(row.T.astype(np.int64)) for row in codes]
    payloads = compress_codes(model, rows)
    with elsewhere():
        model.to(ELSEWHERE)
        np.testing.assert_allclose(score_store(model, store, progress=False).nll, expected.nll)
        again = decompress_codes(model, compress_codes(model, rows), [row.shape[1] for row in rows])
    assert len(payloads) == 3 and all(torch.equal(found, row) for found, row in zip(again, rows, strict=True))


def test_training_matches_on_another_device(make_codec, make_store, tmp_path, monkeypatch):
    codec = make_codec(num_codebooks=2, codebook_size=4)
    rng = np.random.default_rng(0)
    store = make_store(tmp_path, [rng.integers(0, 4, (30, 2), dtype=np.uint16) for _ in range(12)], codec)

    def train() -> list[float]:
        trainer = Trainer(new_model(store, SHORT), codec, store, tmp_path / "run", SHORT)
        return [*(trainer.train_step()["loss"] for _ in range(3)), trainer.evaluate()]

    expected = train()
    monkeypatch.setattr(Accelerator, "device", property(lambda self: ELSEWHERE))
    with elsewhere():
        assert train() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_codec_losses_match_on_another_device():
    """Without gradients: those of a spectrum lose their shape in a tensor that Python made."""
    torch.manual_seed(0)
    codec, judges = SpectralCodec(TINY.codec).train(), Discriminators(TINY.discriminator_windows, (2, 3))
    audio = torch.from_numpy(np.stack([voice(110, 0.5, 0), voice(210, 0.5, 1)])).float()
    pitch = torch.tensor([[110.0], [210.0]]).repeat(1, audio.shape[1] // TINY.codec.trunk_hop)

    def losses(audio: Tensor, pitch: Tensor) -> list[float]:
        torch.manual_seed(1)
        output, read, quantized = codec(audio, pitch, 0.25, True)
        rate = TINY.codec.sample_rate
        found = [
            *loudness_losses(output, audio, rate), mel_loss(output, audio, rate), envelope_loss(output, audio, rate),
            pitch_error(read, pitch), quantized.commitment, discriminator_loss(judges(audio), judges(output)),
            *adversarial_losses(judges(audio), judges(output)),
        ]  # fmt: skip
        return [float(loss) for loss in found]

    copies = deepcopy(codec), deepcopy(judges)
    expected = losses(audio, pitch)
    codec, judges = copies
    with elsewhere():
        codec.to(ELSEWHERE)
        judges.to(ELSEWHERE)
        assert losses(audio.to(ELSEWHERE), pitch.to(ELSEWHERE)) == pytest.approx(expected, rel=1e-3)
