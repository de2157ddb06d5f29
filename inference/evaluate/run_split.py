"""The part of a token store that a training run held out, as its config.json says; reading that needs no torch."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EvaluateConfig

if TYPE_CHECKING:
    from ...data.token_store import TokenStore

HEADER = "store.json"

logger = logging.getLogger(__name__)


def check_split(config: EvaluateConfig, data: str | Path, model: str) -> None:
    """Raise ValueError unless `data` can be split as the run did."""
    if config.split == "all":
        if config.run:
            raise ValueError("--run: of use only with --split heldout or training")
        return
    if not (Path(data) / HEADER).is_file():
        raise ValueError(f"--split {config.split}: {data} is no token store; that of a run on audio is RUN/tokens")
    run_settings(config, model)


def run_settings(config: EvaluateConfig, model: str) -> dict[str, Any]:
    """What config.json says of the run, with its `batch`. Raises ValueError if there is no run, or too old a one."""
    given = Path(config.run or model)
    for folder in [given] if config.run else [given, given.parent]:  # a run, or its model/
        try:
            settings = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        batch = settings.get("batch") if isinstance(settings, dict) else None
        if isinstance(batch, dict) and "heldout_by" in batch:
            return settings
        if isinstance(batch, dict):
            raise ValueError(
                f"{folder}: this run held out by the rule of an earlier codeclm, which is not known any more"
            )
    raise ValueError(
        f"--split {config.split}: {given} is no training run; give the run that held it out with --run RUN"
    )


def run_part(store: "TokenStore", config: EvaluateConfig, model: str) -> list[int]:
    """The utterances of a store that the run trained on, or those that it scored at its evaluations."""
    from ...data.split import first_by_hash, split_heldout

    settings = run_settings(config, model)
    batch, data = settings["batch"], settings.get("data")
    if store.data_hash not in (data if isinstance(data, list) else [data]):
        logger.warning("%s: is not as it was when the run began: the numbers will differ from the run's", store.folder)
    training, heldout = split_heldout(store, batch["heldout_share"], batch["heldout_seed"], batch["heldout_by"])
    if config.split == "training":
        return training.tolist()
    return first_by_hash(store, heldout, batch["heldout_frames"])
