"""The two runs of a language model, from speech and a model's name to weights: `train` a new one, or `finetune` one.

Both do what the verbs of these names do; the run itself is loop.py.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.config import PrepareConfig, with_settings
from ..data.token_store import TokenStore
from ..inference.argument_checks import check_package
from ..inference.generator import SpeechGenerator
from ..inference.loading import load, save_model
from ..model.codecs import Codec, load_codec
from .adapters import save_adapters, with_adapters
from .by_hours import by_hours, hours_of
from .checkpoint import tensors_sha256
from .comparison import compare_speech
from .config import TrainConfig
from .finetune_config import FINETUNE, FinetuneConfig
from .loop import for_small_data
from .loop import train as run
from .new_model import new_model, new_tokenizer, with_text
from .processes import Data, main_first, open_store, open_stores
from .processes import start as start_processes
from .replay import SELF, own_speech
from .run_folder import LANGUAGE_MODEL, claim, is_main
from .run_page import write_page
from .tuning import Tuning

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

    data, out, settings and errors: as for `finetune`; several data are mixed (batch.mix). codec: a name or folder as
    `load_codec` takes it, or a codec; a token store must be of this codec. init_from: a Llama or Qwen text model (a
    folder, a hub id or a .gguf file) that becomes the backbone; without it the weights are random, a matter of `seed`.
    """
    out, config = Path(out), with_settings(config, settings)
    with claim(out, LANGUAGE_MODEL):
        coder = load_codec(codec) if isinstance(codec, str | Path) else codec
        stores = open_stores(data, out, coder, PIECES, config.device)
        tokenizer = new_tokenizer(stores, config.model.text, config.batch)
        model = new_model(stores[0], config, tokenizer, None if init_from is None else Path(init_from))
        # random weights are a matter of the seed; their last digits differ from one processor to another
        start = tensors_sha256(model.backbone.state_dict()) if init_from else "random"
        return run(model, coder, stores, out, config, tokenizer, start)


def finetune(
    lm: SpeechGenerator | str | Path,
    data: str | Path | TokenStore,
    out: str | Path,
    config: FinetuneConfig = FINETUNE,
    compare: Mapping[str, str | Path] = {},
    **settings: Any,
) -> Path:
    """Go on training a model on speech of your own -> the folder of the best weights, which `codeclm.load` reads.

    lm: a loaded model, which stays as it is, or a name that `codeclm.load` takes. data: an audio file, a folder of them
    (a few minutes are enough), or a token store. out: the folder of the run; the same call again goes on where it
    stood, and a run that is finished is only read. compare: other speech by name, audio or stores, on which both models
    are compared at the end (OUT/comparison.json). settings: fields of `config`, such as steps=20, or
    optimizer={"learning_rate": 1e-4} for a part of it; those that nobody gives and that depend on the amount of speech
    are by_hours.py's. With lora={"rank": 16} adapters learn, and the folder holds these alone.
    Raises ValueError or OSError in one line: nothing usable in `data`, tokens of another codec, a setting that is
    unknown or out of range, `out` holds another run or another process writes there. Ctrl-C saves first and raises
    KeyboardInterrupt.
    """
    out, config = Path(out), with_settings(config, settings)
    if config.lora.rank:
        check_package("--lora.rank", "peft", "lora")
    with claim(out, LANGUAGE_MODEL):
        base = lm if isinstance(lm, SpeechGenerator) else load(lm)
        config = by_hours(config, hours_of(data))
        store = open_store(data, out / "tokens", base.codec, replace(PIECES, copies=config.copies), config.device)
        replay = open_replay(config.replay, base, out / "replay", config.device)
        model, save = copy.deepcopy(base.model), None
        start = tensors_sha256(model.state_dict())
        if config.lora.rank:
            save = partial(save_adapters, with_adapters(model, base, config.lora, config.seed))
        tuning = Tuning(config.lora, save, replay, config.replay_share)
        config = for_small_data(config, store)
        tokenizer = base.tokenizer
        if config.text.layout != "none":
            tokenizer = new_tokenizer([store], config.text, config.batch)
            assert tokenizer is not None
            model = with_text(model, tokenizer, config.text, config.seed)
        best = run(model, base.codec, store, out, config, tokenizer, start, tuning)
        if config.check:
            return best
        if is_main():
            if config.lora.rank and config.lora.merge:
                tuned = load(best, device="cpu")
                save_model(tuned.model, tuned.codec, out / "merged", tokenizer=tuned.tokenizer)
            compare_speech(base, best, store, config.batch, out, compare)
            write_page(out)
        return best


def open_replay(replay: str, base: SpeechGenerator, out: Path, device: str) -> TokenStore | None:
    """Base speech as tokens: of data of yours, or drawn by the base model; "": none."""
    if not replay:
        return None
    if replay != SELF:
        return open_store(replay, out, base.codec, PIECES, device)
    with main_first(start_processes(device)):
        return own_speech(base, out)
