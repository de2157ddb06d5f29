"""The two runs of a language model, from speech and a model's name to weights: `train` a new one, or `finetune` one.

Both do what the verbs of these names do; the run itself is loop.py.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.config import PrepareConfig, with_settings
from ..inference.generator import SpeechGenerator
from ..inference.loading import load
from ..model.codecs import Codec, load_codec
from .checkpoint import tensors_sha256
from .config import FINETUNE, RunConfig, TrainConfig
from .loop import for_small_data
from .loop import train as run
from .new_model import new_model, new_tokenizer
from .processes import Data, open_stores
from .run_folder import LANGUAGE_MODEL, claim

PIECES = PrepareConfig(max_utterance_s=20.0)  # so that one long recording can be split into training and held-out parts


def train(
    data: Data | Sequence[Data],
    out: str | Path,
    codec: str | Path | Codec = "spectral",
    config: TrainConfig = TrainConfig(),
    init_from: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train a new speech LM on `data` -> the folder of its best weights, which `codeclm.load` reads.

    data, out, settings and errors: as for `finetune`. codec: a name or folder as `load_codec` takes it, or a codec; a
    token store must be of this codec. init_from: a Llama or Qwen text model (a folder, a hub id or a .gguf file) that
    becomes the backbone; without it the weights are random, a matter of `seed`.
    """
    out, config = Path(out), with_settings(config, settings)
    with claim(out, LANGUAGE_MODEL):
        coder = load_codec(codec) if isinstance(codec, str | Path) else codec
        stores = open_stores(data, out, coder, PIECES, config.device)
        tokenizer = new_tokenizer(stores, config)
        model = new_model(stores[0], config, tokenizer, None if init_from is None else Path(init_from))
        # random weights are a matter of the seed; their last digits differ from one processor to another
        start = tensors_sha256(model.backbone.state_dict()) if init_from else "random"
        return run(model, coder, stores, out, config, tokenizer, start)


def finetune(
    lm: SpeechGenerator | str | Path,
    data: Data | Sequence[Data],
    out: str | Path,
    config: RunConfig = FINETUNE,
    **settings: Any,
) -> Path:
    """Go on training a model on speech of your own -> the folder of the best weights, which `codeclm.load` reads.

    lm: a loaded model, which stays as it is, or a name that `codeclm.load` takes. data: an audio file, a folder of them
    (a few minutes are enough), a token store, or several of these, which are mixed (batch.mix).
    out: the folder of the run; the same call again goes on where it
    stood, and a run that is finished is only read. settings: fields of `config`, such as steps=20, or
    optimizer={"learning_rate": 1e-4} for a part of it.
    Raises ValueError or OSError in one line: nothing usable in `data`, tokens of another codec, a setting that is
    unknown or out of range, `out` holds another run or another process writes there. Ctrl-C saves first and raises
    KeyboardInterrupt.
    """
    out, config = Path(out), with_settings(config, settings)
    with claim(out, LANGUAGE_MODEL):
        mine = isinstance(lm, SpeechGenerator)
        lm = lm if mine else load(lm)
        stores = open_stores(data, out, lm.codec, replace(PIECES, copies=8), config.device)
        model = copy.deepcopy(lm.model) if mine else lm.model
        return run(model, lm.codec, stores, out, for_small_data(config, stores), lm.tokenizer)
