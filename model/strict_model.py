"""A model of transformers that reads and writes its weights strictly; the network itself is lm.py's."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .checksums import CHECKSUMS, write_checksums
from .weights import SCALE

UPLOAD_OPTIONS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr", "tags")  # of `push_to_hub`


class StrictModel(PreTrainedModel):
    """`from_pretrained` refuses weights that are not whole, `save_pretrained` writes checksums."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which would give a missing tensor random values.

        Raises ValueError for that, for weights in 8 bits, and if the weights would not all be on one device: they are
        read outside of their modules' own calls, where accelerate does not bring offloaded ones back.
        """
        check_places(kwargs.get("device_map"))
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if any(name.endswith(SCALE) for name in info["unexpected_keys"]):
            raise ValueError(
                "its weights are in 8 bits, which transformers would take for their values; codeclm.load(NAME).model "
                "reads them"
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(
                f"tensor '{missing[0]}' is missing ({len(missing)} in all); weights that an earlier codeclm has saved "
                "are read by codeclm.load, which can save them again"
            )
        check_places(getattr(model, "hf_device_map", None))
        return (model, info) if wants_info else model

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | PathLike, is_main_process: bool = True, *, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """transformers' own, and checksums.json beside what it writes."""
        folder = Path(save_directory)
        upload = {key: kwargs.pop(key) for key in UPLOAD_OPTIONS if key in kwargs}
        (folder / CHECKSUMS).unlink(missing_ok=True)  # stopped in the middle, there are none rather than wrong ones
        super().save_pretrained(folder, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_checksums(folder)
        if push_to_hub and is_main_process:
            self.push_to_hub(upload.pop("repo_id", folder.name), **upload)


def check_places(device_map: Any) -> None:
    """Raise ValueError for a device map that lays a model on several devices, or on the disk."""
    places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else set()
    if len(places) > 1 or "disk" in places:
        raise ValueError(
            f"device_map: a SpeechLM must be on one device, not on {', '.join(sorted(places))}; "
            'give device_map={"": 0} for the first GPU, or {"": "cpu"}'
        )
