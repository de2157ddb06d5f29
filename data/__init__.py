"""What goes in: audio and text become a token store, a token store becomes batches. `prepare` is where to start."""

from typing import TYPE_CHECKING, Any

from .config import PrepareConfig

if TYPE_CHECKING:
    from .preparation import PrepareSummary, prepare
    from .token_store import TokenStore

__all__ = ["PrepareConfig", "PrepareSummary", "TokenStore", "prepare"]


def __getattr__(name: str) -> Any:
    """Import torch only when a codec is asked for: `codeclm --help` needs none."""
    if name in ("PrepareSummary", "prepare"):
        from . import preparation as module
    elif name == "TokenStore":
        from . import token_store as module
    else:
        raise AttributeError(f"module 'codeclm.data' has no attribute '{name}'")
    return getattr(module, name)
