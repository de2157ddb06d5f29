"""codeclm: a speech language model on neural codec tokens.

    import codeclm

    lm = codeclm.load()
    lm.generate("prompt.wav", duration_s=8, seed=0).save("out.wav")
    print(lm.evaluate("heldout/"))
    tuned = codeclm.load(codeclm.train.finetune(lm, "my_voice/", "runs/my_voice"))

The name itself; what it offers lies in the packages below: model <- data <- inference <- train.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, inference, model, train
    from .inference import Adapted, Client, Generation, Scheduler, SpeechGenerator, load
    from .model import SpeechLM, SpeechLMConfig, load_codec

    __version__: str

HOUSES = ("data", "inference", "model", "train")
PLACES = {
    **dict.fromkeys(("Adapted", "Client", "Generation", "Scheduler", "SpeechGenerator", "load"), "inference"),
    **dict.fromkeys(("SpeechLM", "SpeechLMConfig", "load_codec"), "model"),
}

__all__ = [
    "Adapted",
    "Client",
    "Generation",
    "Scheduler",
    "SpeechGenerator",
    "SpeechLM",
    "SpeechLMConfig",
    "__version__",
    "data",
    "inference",
    "load",
    "load_codec",
    "model",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for. Asking for SpeechLM makes transformers' AutoModel know it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("codeclm")
    if name in HOUSES:
        return import_module(f"{__name__}.{name}")
    if name in PLACES:
        return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
    raise AttributeError(f"module 'codeclm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
