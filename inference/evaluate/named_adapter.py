"""`--model MODULE:OBJECT`: an adapter of the user's own, in code that lies on this machine. Importing needs no torch.

A name with a colon is a Python object to import, as for uvicorn: nothing that is fetched is ever run.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import Adapted


def names_adapter(model: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model) is not None and not Path(model).exists()


def check_options(given: dict[str, Any]) -> None:
    """Raise ValueError for options of `evaluate` that an adapter decides. Flag -> whether it was given."""
    if found := [flag for flag, value in given.items() if value]:
        raise ValueError(f"{' and '.join(found)}: of no use with an adapter (--model MODULE:OBJECT), which decides it")


def open_adapter(model: str) -> "Adapted":
    """Import it from here or from where Python looks; a class or function is called. ValueError if that fails."""
    module, _, name = model.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a package that the module itself needs
        raise ValueError(f"--model {model}: no module '{module}' here, nor where Python looks (PYTHONPATH)") from None
    except AttributeError:
        raise ValueError(f"--model {model}: module '{module}' has no '{name}'") from None
    from .adapter import Adapted

    is_ready = hasattr(found, "nats") and not isinstance(found, type)  # a torch module can be called, too
    adapter: Any = found() if callable(found) and not is_ready else found
    return Adapted(adapter)
