"""What changes weights: `train` a new model, `finetune` one that is there."""

from typing import TYPE_CHECKING, Any

from .config import RunConfig, TrainConfig
from .finetune_config import FINETUNE

if TYPE_CHECKING:
    from .runs import finetune, train

__all__ = ["FINETUNE", "RunConfig", "TrainConfig", "finetune", "train"]


def __getattr__(name: str) -> Any:
    """Import torch only when a model is to learn: `codeclm --help` needs none."""
    if name in ("finetune", "train"):
        from . import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'codeclm.train' has no attribute '{name}'")
