"""checksums.json beside weights: the sha256 of every file that decides numbers; a flipped bit or an edit is refused.

It travels with its folder, by hand or over the hub. JSON files are hashed by what they say, not by their bytes: line
ends, the order of keys and what transformers notes there for itself do not matter.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .files import file_sha256
from .strict import read_object

CHECKSUMS = "checksums.json"
# what transformers notes in a config.json, of which no number depends
FOREIGN_KEYS = {"architectures", "dtype", "torch_dtype", "transformers_version"}
COVERED = ("config.json", "tokenizer.model", "*.safetensors", "*.safetensors.index.json")


def write_checksums(folder: Path, patterns: Iterable[str] = COVERED) -> None:
    """Write checksums.json for the files of `folder`, its subfolders left out."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    (folder / CHECKSUMS).write_text(json.dumps({path.name: content_sha256(path) for path in paths}, indent=2) + "\n")


def check_files(folder: Path, names: Iterable[str]) -> bool:
    """Raise ValueError unless `names` in `folder` are as checksums.json has them; False if there is no such file."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return False
    known = read_object(path)
    for name in names:
        if known.get(name) != content_sha256(folder / name):
            raise ValueError(
                f"{folder / name}: is not what was written ({CHECKSUMS} has another sha256): copy the folder again, "
                f"or delete {path} if you edited it on purpose"
            )
    return True


def content_sha256(path: Path) -> str:
    """sha256 of a file; of a JSON file's settings without those of transformers."""
    if path.suffix != ".json":
        return file_sha256(path)
    values = {key: value for key, value in read_object(path).items() if key not in FOREIGN_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
