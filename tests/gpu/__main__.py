"""`python3 tests/gpu`: run the checks and write the report. Works in a checkout that is not installed."""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def adopt(name: str, folder: Path) -> None:
    """Import `name` from `folder`, whatever else of that name is installed."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


if __name__ == "__main__":
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]  # names such as `codec` mean other people's modules
    adopt("codeclm", ROOT)
    adopt("tests", ROOT / "tests")
    from tests.gpu.run import main

    sys.exit(main())
