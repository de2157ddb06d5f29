"""codeclm: a speech language model on neural codec tokens.

    import codeclm

    lm = codeclm.load()
    lm.generate("prompt.wav", duration_s=8, seed=0).save("out.wav")

The name itself; what it offers lies in the packages below: model <- data <- inference <- train.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.generator import Generation, SpeechGenerator
    from .inference.loading import load
    from .model.codecs import load_codec
    from .model.hf_config import SpeechLMConfig
    from .model.lm import SpeechLM

    __version__: str

__all__ = ["Generation", "SpeechGenerator", "SpeechLM", "SpeechLMConfig", "__version__", "load", "load_codec"]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for. Asking for SpeechLM makes transformers' AutoModel know it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("codeclm")
    if name in ("Generation", "SpeechGenerator", "load"):
        from . import inference as module
    elif name in ("SpeechLM", "SpeechLMConfig", "load_codec"):
        from . import model as module
    else:
        raise AttributeError(f"module 'codeclm' has no attribute '{name}'")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
