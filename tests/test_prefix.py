"""inference/prefix.py: generation after a saved prefix is what it is after the recording, and bad files are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from codeclm.data.audio import load_audio
from codeclm.data.audio_out import save_audio
from codeclm.inference import SamplingConfig
from codeclm.inference.frame_step import is_supported
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.precision import set_weights
from codeclm.inference.prefix import Prefix
from codeclm.inference.scheduler import Scheduler
from codeclm.model.shapes import TextConfig
from codeclm.train.cli import main

from .options import WORDS, backbone
from .test_scheduler import MODELS

OTHERS = {
    "flatten": dict(pattern="flatten", context_frames=8),
    "own text": dict(text=TextConfig(WORDS), context_frames=8),
    "biases": dict(backbone=backbone(qkv_bias=True, head_dim=6, final_norm=False), delays=(0, 2, 1)),
}
FREE = SamplingConfig(temperature=1.0, top_k=0)


@pytest.fixture
def make_lm(make_model, make_codec):
    def make(seed: int = 0, codec_seed: int = 0, **options) -> SpeechGenerator:
        codec = make_codec(codebook_size=7, seed=codec_seed)
        return SpeechGenerator(make_model(codec=codec, seed=seed, **options), codec, "tiny")

    return make


def recording(lm: SpeechGenerator) -> tuple[np.ndarray, int]:
    samples = 0.1 * np.random.default_rng(0).standard_normal(30 * lm.codec.hop_length)
    return samples.astype(np.float32), lm.codec.sample_rate


def voice_of(lm: SpeechGenerator, num_frames: int) -> Prefix:
    return lm.prefix(recording(lm), num_frames / lm.codec.frame_rate)


@pytest.mark.parametrize("given", [1, 5, 8, 23])
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_codes_and_nats_after_a_saved_prefix_are_those_after_the_recording(make_lm, tmp_path, name, given):
    lm = make_lm(**(MODELS | OTHERS)[name])
    voice_of(lm, given).save(tmp_path / "voice.safetensors")
    sampling = replace(FREE, max_prompt_s=given / lm.codec.frame_rate)
    voice = lm.load_prefix(tmp_path / "voice.safetensors")
    assert (voice.caches is not None) == is_supported(lm.model) and voice.codes.shape[1] == given
    expected, found = (lm.generate_many(start, 0.3, [1, 2], sampling) for start in (recording(lm), voice))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        np.testing.assert_allclose(ours.nll, theirs.nll, rtol=0, atol=1e-9)
    chunks = list(lm.stream(tmp_path / "voice.safetensors", 0.3, 2, FREE))
    np.testing.assert_allclose(np.concatenate(chunks), expected[1].audio, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_join_after_a_prefix_are_as_they_are_alone(make_lm, name):
    lm = make_lm(**MODELS[name])
    voices = [voice_of(lm, given) for given in (3, 20)]
    scheduler, tickets, asked = Scheduler(lm, max_rows=2), [], []
    for number in range(6):
        asked.append((voices[number % 2], 0.1 + 0.05 * number, number, FREE))
        tickets.append(scheduler.submit(*asked[-1]))
        for _ in range(4):
            scheduler.step()
    for ticket, arguments in zip(tickets, asked, strict=True):
        alone = lm.generate(*arguments)
        frames = list(ticket.frames())
        np.testing.assert_array_equal(torch.stack([frame.codes for frame in frames], 1), alone.codes[:, -len(frames) :])
        nll = torch.stack([frame.nll for frame in frames], dim=1)
        np.testing.assert_allclose(nll, alone.nll[:, -len(frames) :], rtol=0, atol=1e-9)


def test_the_backbone_does_not_read_a_prefix_again(make_lm, monkeypatch):
    lm = make_lm()
    voice = voice_of(lm, 12)
    monkeypatch.setattr("codeclm.inference.stack.Stack.prefill", None)
    monkeypatch.setattr(type(lm.codec), "encode", None)
    assert lm.generate(voice, 0.1).codes.shape[1] == 22


def test_fewer_codebooks_take_only_the_codes_of_a_prefix(make_lm):
    lm = make_lm()
    few = replace(FREE, num_codebooks=2)
    expected, found = (lm.generate(start, 0.2, 0, few) for start in (recording(lm), voice_of(lm, 30)))
    np.testing.assert_array_equal(found.codes, expected.codes)


def test_a_prefix_of_another_model_or_codec_is_refused(make_lm, tmp_path):
    lm = make_lm()
    path = tmp_path / "voice.safetensors"
    voice = voice_of(lm, 5)
    voice.save(path)
    for other in make_lm(seed=1), make_lm(codec_seed=1), make_lm(bos=False):
        for start, name in (voice, "the prefix"), (path, str(path)):
            with pytest.raises(ValueError, match=rf"^{name}: was made with the model \w+, not with this one"):
                other.generate(start, 0.1)
    strange = replace(voice, owner=voice.owner | {"codec": "another"})
    with pytest.raises(ValueError, match="was made with the codec another, not with this one"):
        lm.generate(strange, 0.1)


def test_a_prefix_of_weights_in_another_precision_is_refused(make_lm):
    lm = make_lm(dtype=torch.float32)
    voice = voice_of(lm, 5)
    set_weights(lm.model, "int8")
    with pytest.raises(ValueError, match="made with the precision of weights float32, not with this one"):
        lm.generate(voice, 0.1)
    assert len(lm.generate(voice_of(lm, 5), 0.1).audio)


def broken_files(path: Path) -> dict[str, bytes]:
    whole = path.read_bytes()
    return {"empty": b"", "truncated": whole[:-9], "sound": b"RIFF" + whole[4:], "header": whole[: len(whole) // 9]}


@pytest.mark.parametrize("name", ["empty", "truncated", "sound", "header"])
def test_a_file_that_is_not_whole_is_refused_in_one_line(make_lm, tmp_path, name):
    lm, path = make_lm(), tmp_path / "voice.safetensors"
    voice_of(lm, 5).save(path)
    path.write_bytes(broken_files(path)[name])
    with pytest.raises(ValueError, match=rf"^{path}: is not a whole safetensors file \(.*\); make it again$"):
        lm.load_prefix(path)


def test_tensors_that_this_model_would_not_make_are_refused(make_lm, tmp_path):
    lm, path = make_lm(), tmp_path / "voice.safetensors"
    voice_of(lm, 5).save(path)
    tensors, owner = load_file(path), {"format": "codeclm prefix 1"} | voice_of(lm, 5).owner
    changes = [
        dict(codes=tensors["codes"] + 7), dict(codes=tensors["codes"].float()), dict(codes=tensors["codes"][:2]),
        dict(caches=tensors["caches"][:1]), dict(caches=tensors["caches"].float()), dict(nll=tensors["nll"][:, 1:]),
    ]  # fmt: skip
    for change in changes:
        save_file({name: tensor.contiguous() for name, tensor in (tensors | change).items()}, path, owner)
        with pytest.raises(ValueError, match=rf"^{path}: .*; make it again$"):
            lm.load_prefix(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="holds no prefix; make one with codeclm prefix"):
        lm.load_prefix(path)
    with pytest.raises(FileNotFoundError, match="no such file; codeclm prefix"):
        lm.generate(tmp_path / "missing.safetensors")


def test_a_voice_is_kept_by_one_command_and_spoken_by_the_next(make_lm, tmp_path, monkeypatch, capsys):
    lm = make_lm(dtype=torch.float32)
    lm.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    save_audio("voice.wav", recording(lm)[0], lm.codec.sample_rate)
    main(["prefix", "voice.wav", "--out", "voice.safetensors", "--model", "model", "--max-prompt-s", "0.2"])
    assert "voice.safetensors: 0.20 s" in capsys.readouterr().out
    for start, out in ("voice.wav", "a.wav"), ("voice.safetensors", "b.wav"):
        main(["generate", start, "--out", out, "--duration", "0.2", "--model", "model", "--max-prompt-s", "0.2"])
    first, second = (load_audio(name, lm.codec.sample_rate, check_speech=False) for name in ("a.wav", "b.wav"))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-3)


BAD = {
    "prefix missing.wav": "missing.wav: no such file",
    "prefix voice.wav --out voice.wav": "--out voice.wav: a prefix is a .safetensors file",
    "prefix voice.wav --max-prompt-s 0": "--max-prompt-s",
    "generate missing.safetensors": "missing.safetensors: no such file",
    "generate broken.safetensors": "broken.safetensors: is not a whole safetensors file",
    "generate broken.safetensors --keep-codebooks 1": "--keep-codebooks needs a recording",
}


@pytest.mark.parametrize("line", BAD)
def test_a_voice_that_cannot_be_is_told_in_one_line(line, make_lm, tmp_path, monkeypatch, capsys):
    lm = make_lm(dtype=torch.float32)
    lm.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    save_audio("voice.wav", recording(lm)[0], lm.codec.sample_rate)
    Path("broken.safetensors").write_bytes(b"broken")
    with pytest.raises(SystemExit) as stopped:
        main([*line.split(), "--model", "model"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and told.startswith("codeclm: ") and BAD[line] in told


def test_a_request_after_one_whose_numbers_overflow_gets_what_it_gets_alone(make_lm):
    lm = make_lm()
    good, scheduler = voice_of(lm, 9), Scheduler(lm, max_rows=2)
    assert good.caches is not None
    broken = scheduler.submit(replace(good, caches=torch.full_like(good.caches, torch.inf)), 0.2, 1, FREE)
    with pytest.raises(FloatingPointError, match="NaN"):
        list(broken.frames())
    found = [frame.codes.numpy() for frame in scheduler.submit(good, 0.2, 2, FREE).frames()]
    np.testing.assert_array_equal(np.stack(found, axis=1), lm.generate(good, 0.2, 2, FREE).codes[:, 9:])


def test_a_prefix_with_numbers_that_are_none_is_refused(make_lm, tmp_path):
    lm = make_lm()
    voice = voice_of(lm, 9)
    assert voice.caches is not None
    replace(voice, caches=voice.caches * torch.nan).save(tmp_path / "voice.safetensors")
    with pytest.raises(ValueError, match="NaN or infinite"):
        lm.load_prefix(tmp_path / "voice.safetensors")
