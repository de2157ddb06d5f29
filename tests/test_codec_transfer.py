"""A model reads another codec's codes: here the same codes under other numbers, so that nothing need be lost."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codeclm.inference.loading import load, save_model
from codeclm.model.codec_reference import CodecReference
from codeclm.model.lm import SpeechLM
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train.cli import main
from codeclm.train.codec_transfer import transferred
from codeclm.train.runs import finetune

K, V, N = 3, 16, 4000


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    """[K, N], each codebook in an order of its own that the others do not tell."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, V, (K, N)))


@pytest.fixture(scope="module")
def renumbered(codes: torch.Tensor) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.stack([torch.from_numpy(rng.permutation(V))[row] for row in codes])


def model_of(**settings) -> SpeechLM:
    torch.manual_seed(0)
    model = SpeechLM(SpeechLMConfig(num_codebooks=K, codebook_size=V, **settings)).eval()
    for weight in model.parameters():  # as sure of itself as one that was trained
        if weight.ndim > 1:
            weight.data *= 4
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pattern": "delay"},
        {"depth": {"first_codebook": "depth", "embeddings": "wide"}},
        {"depth": {"embeddings": "shared"}},
        {"depth": {"group_size": 2}},
    ],
)
def test_codes_under_other_numbers_cost_what_they_cost_before(make_codec, codes, renumbered, settings):
    model = model_of(**settings)
    codec = make_codec(num_codebooks=K, codebook_size=V)
    found = transferred(model, codec, codes, renumbered).eval()
    with torch.no_grad():
        before, wrong, after = (
            m(c[None, :, :200]).nll for m, c in ((model, codes), (model, renumbered), (found, renumbered))
        )
    assert (after - before).abs().mean() < 0.1 * (wrong - before).abs().mean()
    assert found.config.codec.fingerprint == codec.fingerprint


def test_a_codebook_may_have_another_size(make_codec, codes):
    codec = make_codec(num_codebooks=K, codebook_size=V // 2)
    found = transferred(model_of(), codec, codes, codes // 2)
    assert found(codes[None, :, :20] // 2, return_logits=True).logits.shape == (1, K, 20, V // 2 + 1)


def test_the_command_makes_a_model_that_can_be_tuned(make_codec, audio: Path, tmp_path: Path, capsys):
    own, other = make_codec(K, V), make_codec(K, 2 * V, seed=1)
    own.save(tmp_path / "own")
    other.save(tmp_path / "other")
    save_model(SpeechLM(SpeechLMConfig(K, V, codec=CodecReference.of(own))), own, tmp_path / "model")
    for codec in ("own", "other"):
        main(["prepare", str(audio), str(tmp_path / f"by-{codec}"), "--codec", str(tmp_path / codec)])
    given = [str(tmp_path / name) for name in ("model", "by-own", "by-other")]
    main(["codec", "transfer", *given, "--codec", str(tmp_path / "other"), "--out", str(tmp_path / "moved")])
    lm = load(tmp_path / "moved", device="cpu")
    assert lm.codec.fingerprint == other.fingerprint and lm.model.codebook_size == 2 * V
    assert lm.evaluate(tmp_path / "by-other", progress=False).num_utterances == 4
    finetune(lm, tmp_path / "by-other", tmp_path / "run", steps=2, evaluate_every=1, bf16=False)
    capsys.readouterr()

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["codec", "transfer", *arguments, "--out", str(tmp_path / "new")])
        return capsys.readouterr().err

    assert "holds tokens of codec" in refused(given[0], given[2], given[2], "--codec", str(tmp_path / "other"))
    assert "holds tokens of codec" in refused(given[0], given[1], given[1], "--codec", str(tmp_path / "other"))
    main(["prepare", str(audio), str(tmp_path / "by-mulaw"), "--codec", "mulaw"])
    assert "both must be the same" in refused(given[0], given[1], str(tmp_path / "by-mulaw"), "--codec", "mulaw")
    main(["prepare", str(audio / "0.wav"), str(tmp_path / "0"), "--codec", str(tmp_path / "own")])
    main(["prepare", str(audio / "1.wav"), str(tmp_path / "1"), "--codec", str(tmp_path / "other")])
    apart = given[0], str(tmp_path / "0"), str(tmp_path / "1")
    assert "no utterance in common" in refused(*apart, "--codec", str(tmp_path / "other"))
    assert not (tmp_path / "new").exists()
