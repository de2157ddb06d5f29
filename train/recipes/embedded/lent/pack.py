"""What goes to the other machine, and what comes back: a run without its codec.

there   tokens/ (packed_store.py), tokenizer.model where there is text, first/: a model to go on from
back    config.json, metrics.jsonl, run.html, model/
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .....data.store_writer import join_stores
from .....data.text_times import known_times, times_file, write_times
from .....data.text_tokenizer import TextTokenizer
from .....data.token_store import TokenStore
from .....inference.loading import is_embedded, load, load_speech_lm, load_tokenizer, save_model
from .....model.codecs import load_codec
from .....model.files import whole_folder
from .....model.strict import read_object, strict
from .....model.weights import WEIGHTS
from ....config import TrainConfig
from ....new_model import new_tokenizer
from ....run_folder import CONFIG, METRICS
from ....run_page import PAGE
from .packed_store import pack_store, unpack_store
from .parcel import MANIFEST, receive, send

TOKENS, STORE, FIRST = "tokens", "store", "first"
SETTINGS = "settings.json"  # beside the parts, so that it can be changed
MIB = 1 << 20
PART_BACK = 15 * MIB  # a file that comes back has at most 16 MiB
MOST_BACK = 60 * MIB  # of 64 MiB together
log = logging.getLogger(__name__)


def pack(out: Path, to: Path, config: TrainConfig, first: Path | None, part_bytes: int) -> None:
    """OUT/tokens of the recipe, and the weights of the run `first`, in 8 bits -> parts and settings.json in `to`."""
    with TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        pack_store(out / TOKENS, folder / TOKENS)
        if first is not None:
            lm = load(first, device="cpu")
            TokenStore(out / TOKENS).require_model(lm.model.config)
            assert lm.tokenizer is None or isinstance(lm.tokenizer, TextTokenizer)
            save_model(lm.model, None, folder / FIRST, tokenizer=lm.tokenizer, packed=True)
        elif (tokenizer := new_tokenizer([TokenStore(out / TOKENS)], config.model.text, config.batch)) is not None:
            tokenizer.save(folder)
        parts = send(folder, to, part_bytes)
    (to / SETTINGS).write_text(json.dumps(asdict(config), indent=2) + "\n")
    begun = "new weights" if first is None else f"the weights of {first}"
    sizes = ", ".join(f"{part.stat().st_size / MIB:.1f}" for part in parts)
    log.info(f"{to}: {len(parts)} parts of {sizes} MiB, {SETTINGS}; it begins with {begun}")


def newest_run(out: Path) -> Path | None:
    """The run of the recipe whose weights were written last: that of the step `model`, or one that was joined."""
    weights = [run / "model" / WEIGHTS for run in (out / "model", *out.glob("lent-*"))]
    found = [path for path in weights if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime).parent.parent if found else None


def unpack(parcel: Path, folder: Path) -> TokenStore:
    """Everything of the parcel in `folder`, whole or not at all, with the tokens as FOLDER/store. Again is fine.

    A folder of PARCEL that is a parcel itself has hours that came later: their tokens are in that store, too.
    """
    if not folder.is_dir():
        with whole_folder(folder) as partial, TemporaryDirectory(dir=folder.parent) as scratch:
            receive(parcel, partial)
            stores = [unpack_store(partial / TOKENS, Path(scratch) / STORE)]
            shutil.rmtree(partial / TOKENS)
            for number, later in enumerate(sorted(path.parent for path in parcel.glob(f"*/{MANIFEST}"))):
                place = Path(scratch) / str(number)
                place.mkdir()
                receive(later, place)
                stores.append(unpack_store(place / TOKENS, place / STORE))
            joined(stores, partial / STORE)
    return TokenStore(folder / STORE)


def joined(stores: Sequence[TokenStore], folder: Path) -> None:
    """The stores as one, with the times of their texts."""
    join_stores([store.folder for store in stores], folder)
    if any(times_file(store).is_file() for store in stores):
        write_times(TokenStore(folder), list(chain(*map(known_times, stores))))


def read_settings(parcel: Path) -> TrainConfig:
    try:
        return strict(TrainConfig, read_object(parcel / SETTINGS))
    except ValueError as error:
        raise ValueError(f"{parcel / SETTINGS}: {error}") from None


def send_back(run: Path, to: Path, folder: Path) -> None:
    """A run with the best weights so far -> parts in `to`: bfloat16 where that may travel, else 8 bits."""
    model = load_speech_lm(run / "model")
    tokenizer = load_tokenizer(run / "model", model)
    for packed in (False, True):
        shutil.rmtree(folder, ignore_errors=True)
        save_model(model, None, folder / "model", torch.bfloat16, tokenizer, packed=packed)
        for name in (CONFIG, METRICS, PAGE):
            if (run / name).is_file():
                shutil.copyfile(run / name, folder / name)
        parts = send(folder, to, PART_BACK)
        size = sum(part.stat().st_size for part in parts)
        log.info(f"{to}: {len(parts)} parts, {size / MIB:.1f} MiB, weights in {'8 bits' if packed else 'bfloat16'}")
        if size <= MOST_BACK:
            return


def join(parcel: Path, run: Path, codec: Path | None) -> None:
    """What came back -> a run folder whose model/ has its codec and loads anywhere.

    codec: None for the embedded one. Raises ValueError if the model was trained on another, FileExistsError if `run`
    is there.
    """
    coder = load_codec(codec or "spectral")
    with whole_folder(run) as partial:
        receive(parcel, partial)
        load_speech_lm(partial / "model").config.codec.require(coder, str(parcel))
        if not is_embedded(coder):
            coder.save(partial / "model/codec")
