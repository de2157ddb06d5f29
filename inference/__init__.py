"""What uses weights: generate, score, measure. `load()` is where to start."""

from typing import TYPE_CHECKING, Any

from .config import EvaluateConfig, SamplingConfig

if TYPE_CHECKING:
    from .engine import Generation, SpeechGenerator
    from .load import load

__all__ = ["EvaluateConfig", "Generation", "SamplingConfig", "SpeechGenerator", "load"]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for: `codeclm --help` does not need it."""
    if name == "load":
        from .load import load

        globals()["load"] = load  # the function, not the submodule of the same name
        return load
    if name in ("Generation", "SpeechGenerator"):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'codeclm.inference' has no attribute '{name}'")
