"""What uses weights: generate, score, measure. `load()` is where to start."""

from typing import TYPE_CHECKING, Any

from .config import EvaluateConfig, SamplingConfig

if TYPE_CHECKING:
    from .client import Client
    from .evaluate.adapter import Adapted
    from .generation import Generation
    from .generator import SpeechGenerator
    from .loading import load
    from .scheduler import Scheduler

__all__ = [
    "Adapted",
    "Client",
    "EvaluateConfig",
    "Generation",
    "SamplingConfig",
    "Scheduler",
    "SpeechGenerator",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for: `codeclm --help` does not need it."""
    if name == "load":
        from . import loading as module
    elif name == "Adapted":
        from .evaluate import adapter as module
    elif name == "Client":
        from . import client as module
    elif name == "Scheduler":
        from . import scheduler as module
    elif name in ("Generation", "SpeechGenerator"):
        from . import generator as module
    else:
        raise AttributeError(f"module 'codeclm.inference' has no attribute '{name}'")
    return getattr(module, name)
