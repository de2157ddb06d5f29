"""What a fine-tune adds to a run: weights that learn in place of all, and base speech beside the new."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.token_store import TokenStore
from .finetune_config import LoraOptions


@dataclass(frozen=True)
class Tuning:
    """By default nothing."""

    lora: LoraOptions = LoraOptions()
    save: Callable[[Path], None] | None = None  # how the best weights are written, where it is not the whole model
    replay: TokenStore | None = None
    replay_share: float = 0.0  # its part of each batch

    def identity(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        replay = {} if self.replay is None else {"share": self.replay_share, "data": self.replay.data_hash}
        return {"lora": asdict(self.lora), "replay": replay}
