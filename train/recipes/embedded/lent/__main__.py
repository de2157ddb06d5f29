"""Train the embedded language model on a machine that is lent for minutes (README.md, one folder up).

python -m codeclm.train.recipes.embedded.lent pack runs/embedded --to runs/lent     # here
python3 train/recipes/embedded/lent train /root/in --minutes 8 --out $OUT           # there, in a bare checkout
python -m codeclm.train.recipes.embedded.lent join FILES --to runs/embedded/lent-1 --codec runs/embedded/codec/int8
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[4]


def adopt_checkout() -> None:
    """`codeclm` is this checkout, whatever of that name is installed."""
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    module = ModuleType("codeclm")
    module.__path__ = [str(ROOT)]
    sys.modules["codeclm"] = module


if __name__ == "__main__":
    if not __package__:
        adopt_checkout()
    import_module("codeclm.train.recipes.embedded.lent.commands").main()
