"""Checkpoints of the original `encodec` package: read by renaming keys, the same network to the bit, tensors alone.

The comparison needs the package, which is no dependency (its registry release is not for commercial use, and it needs
torchaudio, which is stubbed here): it runs in a process of its own when CODECLM_ENCODEC names a folder that holds it:

    pip install --no-deps --target /tmp/encodec encodec einops
    CODECLM_ENCODEC=/tmp/encodec pytest tests/test_encodec_original.py
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from codeclm.model.codecs import load_codec
from codeclm.model.codecs.encodec import EncodecCodec
from codeclm.model.codecs.encodec_package import load_original, rename

PACKAGE = os.environ.get("CODECLM_ENCODEC")
needs_package = pytest.mark.skipif(
    not PACKAGE, reason="CODECLM_ENCODEC does not name a folder with the encodec package"
)
SCRIPT = """
import sys, types
sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # only file input and output use it
import torch
from encodec import EncodecModel
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)
kind, folder = sys.argv[1:]
model = getattr(EncodecModel, f"encodec_model_{kind}")(pretrained=False).eval()
with torch.no_grad():
    audio = 0.2 * torch.randn(1, model.channels, int(1.5 * model.sample_rate))
    audio = audio[..., : audio.shape[-1] // 320 * 320]
    residual = model.encoder(audio[..., : model.sample_rate])
    for layer in model.quantizer.vq.layers:
        frames = residual[0].T[torch.randint(residual.shape[-1], (1024,))]
        layer._codebook.embed.copy_(frames + 0.1 * residual.std() * torch.randn_like(frames))
        residual = residual - layer.decode(layer.encode(residual))
    model.set_target_bandwidth(24.0)
    found = model.encode(audio)
    decoded = model.decode(found)
torch.save(model.state_dict(), f"{folder}/{kind}.th")
tensors = {"audio": audio, "decoded": decoded}
for number, (codes, scale) in enumerate(found):
    tensors[f"codes.{number}"] = codes.contiguous()
    if scale is not None:
        tensors[f"scale.{number}"] = scale
save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{folder}/{kind}.safetensors")
"""


@pytest.fixture(scope="module", params=["24khz", "48khz"])
def original(request, tmp_path_factory) -> tuple[EncodecCodec, dict[str, Tensor]]:
    """The codec read from the package's checkpoint, and what the package itself computed."""
    folder = tmp_path_factory.mktemp("encodec")
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, request.param, str(folder)]
    subprocess.run(command, env=environment, check=True)
    return load_original(folder / f"{request.param}.th"), load_file(folder / f"{request.param}.safetensors")


@needs_package
@torch.no_grad()
def test_codes_and_audio_are_those_of_the_package_to_the_bit(original):
    codec, theirs = original
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = codec.model.encode(theirs["audio"], bandwidth=24.0, return_dict=True)
        decoded = codec.model.decode(
            found.audio_codes, found.audio_scales, last_frame_pad_length=found.last_frame_pad_length, return_dict=True
        ).audio_values
    finally:
        torch.set_num_threads(threads)
    for number, codes in enumerate(found.audio_codes):
        expected = theirs[f"codes.{number}"]
        assert torch.equal(codes[..., : expected.shape[-1]], expected) and len(expected.unique()) > 200
        if codec.has_loudness:
            assert torch.equal(found.audio_scales[number], theirs[f"scale.{number}"])
    assert torch.equal(decoded[..., : theirs["decoded"].shape[-1]], theirs["decoded"])


@needs_package
def test_the_codec_gives_the_packages_codes_and_a_saved_copy_is_the_same_codec(original, tmp_path):
    codec, theirs = original
    stereo = theirs["audio"].shape[1] == 2
    assert (codec.sample_rate, codec.num_codebooks) == ((48_000, 17) if stereo else (24_000, 32))
    if not stereo:
        codes = codec.encode(theirs["audio"])
        assert (codes != theirs["codes.0"]).float().mean() < 1e-3
        error = (codec.decode(theirs["codes.0"]) - theirs["decoded"]).abs().max()
        assert error < 1e-4 * theirs["decoded"].abs().max()
    codec.save(tmp_path)
    assert load_codec(tmp_path).fingerprint == codec.fingerprint


def test_every_part_of_a_name_is_renamed():
    names = {
        "encoder.model.0.conv.conv.weight_g": "encoder.layers.0.conv.parametrizations.weight.original0",
        "decoder.model.3.convtr.convtr.weight_v": "decoder.layers.3.conv.parametrizations.weight.original1",
        "encoder.model.1.block.1.conv.norm.weight": "encoder.layers.1.block.1.norm.weight",
        "decoder.model.3.convtr.norm.bias": "decoder.layers.3.norm.bias",
        "encoder.model.13.lstm.weight_ih_l0": "encoder.layers.13.lstm.weight_ih_l0",
        "quantizer.vq.layers.31._codebook.embed": "quantizer.layers.31.codebook.embed",
    }
    assert list(rename(dict.fromkeys(names, torch.zeros(1)))) == list(names.values())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def write_bomb(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"encoder": Bomb()}, file)


@pytest.mark.parametrize(
    "write, words",
    [
        (write_bomb, "is not a file of tensors alone"),
        (lambda path: torch.save({"encoder": Bomb()}, path), "is not a file of tensors alone"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "is not a file of tensors alone"),
        (lambda path: torch.save([torch.zeros(1)], path), "is not the state dict of an encodec model"),
        (lambda path: torch.save({"encoder.model.0.conv.conv.weight_g": torch.zeros(1)}, path), "tensor '.*' is"),
    ],
)
def test_a_file_that_is_no_encodec_checkpoint_is_refused_in_one_line_and_runs_nothing(
    write, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.th")
    with pytest.raises(ValueError, match=words) as caught:
        load_codec(tmp_path / "model.th")
    assert len(str(caught.value).splitlines()) == 1 and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.th: no such file"):
        load_codec(tmp_path / "model.th")
