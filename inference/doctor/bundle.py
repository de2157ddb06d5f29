"""What a bug report needs, in one .zip: settings, metrics, versions, the machine, the report. No sound, no weights."""

import io
import json
import os
import platform
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...model.files import write_whole
from ..machine import load_average, processor_name
from .curve import CONFIG, METRICS
from .findings import Report
from .report import table, to_dict

PACKAGES = (
    "codeclm", "torch", "transformers", "accelerate", "safetensors", "numpy", "sentencepiece", "soundfile", "soxr",
    "pyarrow", "datasets", "peft", "ray",
)  # fmt: skip


def write_bundle(path: Path, runs: Sequence[Path], report: Report) -> None:
    """runs: folders, whose settings and metrics go along. Raises OSError if the file cannot be written."""
    files = {"report.txt": table(report) + "\n", "report.json": json.dumps(to_dict(report), indent=2) + "\n"}
    files["machine.json"] = json.dumps(machine(), indent=2) + "\n"
    for number, run in enumerate(runs):
        for name in (CONFIG, METRICS):
            if (run / name).is_file():
                place = name if len(runs) == 1 else f"run-{number}/{name}"
                files[place] = (run / name).read_text("utf-8", "replace")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, without_home(text))
    write_whole(path, packed.getvalue())


def machine() -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": processor_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "load_average": load_average(),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def without_home(text: str) -> str:
    """`text` without the place of the user's home, however JSON writes it."""
    for home in {str(Path.home()), os.path.realpath(Path.home())} - {"/"}:
        text = text.replace(home, "~").replace(json.dumps(home)[1:-1], "~")
    return text
