"""Every part that scores or generates refuses what would give a number or a sound that means nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from codeclm.data.token_store import TokenStore
from codeclm.inference.compress.codes import compress_codes, decompress_codes
from codeclm.inference.engine import generate
from codeclm.inference.evaluate.score import evaluate, score_store
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.grid import Request
from codeclm.model import SpeechLM

CODES = torch.randint(0, 8, (3, 6), generator=torch.Generator().manual_seed(0))
BAD_CODES = {
    "codes beyond the codebook": (CODES + 3, "codes span 3..10; this model has 0..7"),
    "codes below -1": (CODES - 3, "codes span -3"),
    "two codebooks": (CODES[:2], "codes have 2 codebooks; this model has 3"),
    "no frame": (CODES[:, :0], "no frame"),
    "floats": (CODES.float(), "must be integers"),
}
PARTS: dict[str, Callable[[SpeechLM, torch.Tensor], object]] = {
    "forward": lambda model, codes: model(codes[None]),
    "generate": lambda model, codes: list(generate(model, Request(2, codes), [0])),
    "compress": lambda model, codes: compress_codes(model, [codes]),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bad", BAD_CODES)
def test_codes_that_are_not_the_models_are_refused(make_model, part, bad):
    codes, message = BAD_CODES[bad]
    with pytest.raises(ValueError, match=message):
        PARTS[part](make_model(codebook_size=8), codes)


# --- weights that are not numbers ---


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_codec()


@pytest.fixture(scope="module")
def store(make_store, codec, tmp_path_factory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("store"), [CODES.T.numpy().astype(np.int64)] * 3, codec)


USES: dict[str, Callable[[SpeechLM, TokenStore], object]] = {
    "score": lambda model, store: score_store(model, store, progress=False),
    "evaluate": lambda model, store: evaluate(model, store, "0" * 64),
    "generate": lambda model, store: list(generate(model, Request(2), [0])),
    "generate greedily": lambda model, store: list(generate(model, Request(2, CODES), [0])),
    "compress": lambda model, store: compress_codes(model, [CODES]),
    "decompress": lambda model, store: decompress_codes(model, [b"\x00" * 40], [6]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("options", [{}, {"pattern": "flatten"}, {"pattern": "delay"}])
def test_weights_that_are_not_numbers_are_noticed(make_model, codec, store, use, options):
    model = make_model(codec=codec, **options)
    with torch.no_grad():
        model.backbone.blocks[0].up.weight[3, 2] = float("nan")
    with pytest.raises((FloatingPointError, ValueError), match="NaN|not numbers|finite"):
        USES[use](model, store)


# --- another codec's ---


def test_codes_of_another_codec_are_refused_everywhere(make_model, make_codec, codec, store):
    stranger = make_model(codec=make_codec(seed=5))
    for use in (lambda: score_store(stranger, store, progress=False), lambda: evaluate(stranger, store, "0" * 64)):
        with pytest.raises(ValueError, match="codec"):
            use()
    with pytest.raises(ValueError, match="trained on codec"):
        SpeechGenerator(stranger, codec, "stranger")


def test_one_frame_is_enough_for_every_part(make_model, make_store, codec, tmp_path):
    model, one = make_model((0, 1, 2), codec=codec), CODES[:, :1]
    assert torch.isfinite(model(one[None]).nll).all()
    assert list(generate(model, Request(1, one), [0]))[-1].codes.shape == (1, 3, 2)
    (payload,) = compress_codes(model, [one])
    assert torch.equal(decompress_codes(model, [payload], [1])[0], one)
    store = make_store(tmp_path / "one", [one.T.numpy().astype(np.int64)] * 2, codec)
    assert np.isfinite(score_store(model, store, progress=False).nll).all()
