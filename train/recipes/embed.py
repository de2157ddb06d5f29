"""Put trained weights where the package carries them: model/pretrained/.

    python -m codeclm.train.recipes.embed codec runs/codec/codec      # int8, before anything is tokenized with it
    python -m codeclm.train.recipes.embed model runs/lm               # bfloat16
    python -m codeclm.train.recipes.embed prompt datasets/speech/heldout/allison_en/X.flac

Meant for a source checkout: the files written are committed. What is written is read back and checked.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from tyro.conf import Positional

from ...inference.loading import EMBEDDED_MODEL, load, save_model
from ...model.checksums import write_checksums
from ...model.codecs import EMBEDDED_FILES, load_codec
from ...model.codecs.spectral import SpectralCodec

FILES = ("config.json", "model.safetensors", *EMBEDDED_FILES)


def codec(trained: Positional[Path]) -> None:
    """Pack a trained codec to int8 and make it the embedded one."""
    source = load_codec(trained)
    assert isinstance(source, SpectralCodec)
    with TemporaryDirectory() as scratch:
        source.save(Path(scratch), packed=True)
        shutil.copyfile(Path(scratch) / "config.json", EMBEDDED_MODEL / "codec.json")
        shutil.copyfile(Path(scratch) / "model.safetensors", EMBEDDED_MODEL / "codec.safetensors")
    write_checksums(EMBEDDED_MODEL, FILES)
    print(f"embedded codec: {load_codec().fingerprint}")


def model(trained: Positional[Path]) -> None:
    """Make a trained speech LM the embedded one, in bfloat16."""
    lm = load(trained)
    with TemporaryDirectory() as scratch:
        save_model(lm.model, lm.codec, Path(scratch) / "model", torch.bfloat16)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(Path(scratch) / "model" / name, EMBEDDED_MODEL / name)
    write_checksums(EMBEDDED_MODEL, FILES)
    print(f"embedded model: {sum(p.numel() for p in load().model.parameters()) / 1e6:.1f} M parameters")


def prompt(recording: Positional[Path]) -> None:
    """Bundle a recording as the demo's prompt."""
    shutil.copyfile(recording, EMBEDDED_MODEL / "prompt.flac")
    print(f"{EMBEDDED_MODEL / 'prompt.flac'}: from {recording}; say whose voice it is in NOTICE")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"codec": codec, "model": model, "prompt": prompt})
