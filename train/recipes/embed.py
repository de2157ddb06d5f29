"""Put trained weights where the package carries them: model/pretrained/.

    python -m codeclm.train.recipes.embed codec runs/codec/codec      # int8, before anything is tokenized with it
    python -m codeclm.train.recipes.embed model runs/lm               # bfloat16; with --int8 half as large
    python -m codeclm.train.recipes.embed ngram runs/embedded/texts/utterances.json
    python -m codeclm.train.recipes.embed prompt datasets/speech/heldout/allison_en/X.flac

Meant for a source checkout: the files written are committed. What is written is read back and checked.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from safetensors.torch import load_file
from tyro.conf import Positional

from ...data.ngram import NGRAM_FILE
from ...inference.loading import EMBEDDED_MODEL, is_embedded, load, save_model
from ...model.checksums import COVERED, write_checksums
from ...model.codecs import EMBEDDED_FILES, codec_folder, load_codec, load_spectral
from ...model.files import whole_folder
from ...model.weights import SCALE, WEIGHTS

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.model", NGRAM_FILE)
FILES = (*MODEL_FILES, *EMBEDDED_FILES)


def codec(trained: Positional[Path]) -> None:
    """Make a trained codec the embedded one, packed to int8 unless it is."""
    with TemporaryDirectory() as scratch:
        found = codec_folder(trained)
        packed = found if is_packed(found) else pack_codec(found, Path(scratch) / "codec")
        shutil.copyfile(packed / "config.json", EMBEDDED_MODEL / "codec.json")
        shutil.copyfile(packed / "model.safetensors", EMBEDDED_MODEL / "codec.safetensors")
    write_checksums(EMBEDDED_MODEL, FILES)
    print(f"embedded codec: {load_codec().fingerprint}")


def pack_codec(trained: Path, folder: Path) -> Path:
    """The codec in int8, in a new folder: another codec than it was, with a fingerprint of its own."""
    source = load_spectral(trained)
    with whole_folder(folder, replace=True) as partial:
        source.save(partial, packed=True)
    return folder


def is_packed(folder: Path) -> bool:
    return any(name.endswith(SCALE) for name in load_file(folder / WEIGHTS))


def model(trained: Positional[Path], int8: bool = False) -> None:
    """Make a trained speech LM the embedded one, in bfloat16 or, with --int8, in 8 bits a number."""
    lm = load(trained)
    if not is_embedded(lm.codec):
        raise ValueError(f"{trained}: was trained on another codec than the embedded one; embed its codec first")
    with TemporaryDirectory() as scratch:
        save_model(lm.model, lm.codec, Path(scratch) / "model", torch.bfloat16, lm.tokenizer, packed=int8)
        for name in MODEL_FILES:
            (EMBEDDED_MODEL / name).unlink(missing_ok=True)
            if (made := Path(scratch) / "model" / name).exists():
                shutil.copyfile(made, EMBEDDED_MODEL / name)
    write_checksums(EMBEDDED_MODEL, FILES)
    print(f"embedded model: {sum(p.numel() for p in load().model.parameters()) / 1e6:.1f} M parameters")


def ngram(texts: Positional[Path]) -> None:
    """Count in the texts that the recipe's voices read for training how the embedded model's words are spelled."""
    count_texts(EMBEDDED_MODEL, training_texts(texts), FILES)
    print(f"{EMBEDDED_MODEL / NGRAM_FILE}: {(EMBEDDED_MODEL / NGRAM_FILE).stat().st_size / 1e6:.1f} MB")


def training_texts(texts: Path) -> list[str]:
    """What is not held out in the file that the recipe's step "texts" writes; nothing where there is none."""
    sides = json.loads(texts.read_text()).values() if texts.is_file() else ()
    return [text for side in sides for text in side["train"]]


def count_texts(folder: Path, texts: list[str], files: Iterable[str] = COVERED) -> None:
    """Put an n-gram model of texts beside the tokenizer in a model's folder, if it has one. files: what its checksums
    are of. Raises ValueError if there is no text."""
    tokenizer = load(folder).tokenizer
    if tokenizer is not None:
        tokenizer.ngram = tokenizer.counted(texts)
        tokenizer.save(folder)
        write_checksums(folder, files)


def prompt(recording: Positional[Path]) -> None:
    """Bundle a recording as the demo's prompt."""
    shutil.copyfile(recording, EMBEDDED_MODEL / "prompt.flac")
    print(f"{EMBEDDED_MODEL / 'prompt.flac'}: from {recording}; say whose voice it is in NOTICE")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"codec": codec, "model": model, "ngram": ngram, "prompt": prompt})
