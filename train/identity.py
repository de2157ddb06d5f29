"""What must be the same for a resumed run to be the same run, also one that an earlier version began."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..inference.loading import FOREIGN_KEYS
from ..model.speech_lm_config import SpeechLMConfig
from .checkpoint import difference, filled, tensors_sha256
from .config import BatchConfig, LossConfig, OptimizerConfig
from .optim import rate_scale
from .tuning import Tuning

if TYPE_CHECKING:
    from .trainer import Trainer

DRAWN = ("seed", "depth_fraction", "dropout", "input_dropout", "frame_dropout")


def identity(trainer: "Trainer") -> dict[str, Any]:
    config = trainer.config
    same_rate = rate_scale(config.optimizer, trainer.raw_model.config.backbone.dim) == 1
    values = {
        **trainer.tuning.identity(),
        "data": trainer.data,
        "model": own_settings(trainer.raw_model.config),
        # microbatches change nothing but memory
        "batch": asdict(config.batch)
        | ({} if trainer.is_capped else {"heldout_frames": 0})
        | {"frames_per_microbatch": 0},
        "optimizer": asdict(config.optimizer) | ({"rate_width": 0} if same_rate else {}),
        "ema_decay": config.ema_decay,
        "loss": asdict(config.loss),
        **{name: getattr(config, name) for name in DRAWN},
        "rows": "packed" if trainer.batches.packed else "padded",
        "start": trainer.start,
    }
    # to JSON and back, as a checkpoint returns it: transformers' own settings have keys that are numbers
    return json.loads(json.dumps(values))


def check_same_run(trainer: "Trainer", found: Path, held: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a checkpoint belongs to another run. held: its identity. weights: of its model."""
    older = defaults(held.get("seed", 0))
    for key, value in identity(trainer).items():
        before = held.get(key, Tuning().identity().get(key, older.get(key, value)))
        other = difference(filled(before, older.get(key)), value)
        # whoever goes on with the model that the run itself has trained does not start anew
        if other and not (key == "start" and tensors_sha256(weights) == value):
            raise ValueError(f"{found}: was made with another {key}; give another --out, or the same {key} ({other})")


def own_settings(config: SpeechLMConfig) -> dict[str, Any]:
    """The model's config.json without what transformers adds to it."""
    return {key: value for key, value in config.to_dict().items() if key not in FOREIGN_KEYS}


def defaults(seed: int) -> dict[str, Any]:
    """A run's identity where nobody chose: the values of settings that the version which began it did not know.

    seed: of the run. It decided what is held out, and all of that was scored.
    """
    batch = BatchConfig(heldout_seed=seed, heldout_frames=0)
    optimizer = OptimizerConfig(schedule="cosine", rate_width=0)
    parts = {"batch": batch, "optimizer": optimizer, "loss": LossConfig()}
    values: dict[str, Any] = {name: asdict(part) for name, part in parts.items()}
    values |= {"model": own_settings(SpeechLMConfig()), "ema_decay": 0.0, "frame_dropout": 0.0}
    values["batch"]["heldout_by"] = "utterance"  # and by another hash: such a run cannot go on
    return json.loads(json.dumps(values))
