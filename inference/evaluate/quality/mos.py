"""Mean opinion score as a network predicts it: DistillMOS (arXiv:2502.05356), 1 (bad) to 5 (excellent). S samples.

It was trained on English speech rated by people; it hears noise and artefacts, not words or voices.
"""

import sys
from types import ModuleType

import numpy as np
import torch

from ...sound.measures import resampled
from .packaged import INSTALL, packaged_weights

RATE = 16_000
WINDOW = 122_880  # samples that the network sees at once


class OpinionScore:
    """Raises ImportError in one line without its packages."""

    def __init__(self) -> None:
        self._network = _network_class()(load_weights=False)
        self._network.load_state_dict(packaged_weights("distillmos", "weights/*.pt")["model"])
        self._network.eval()

    @torch.inference_mode()
    def __call__(self, audio: np.ndarray, sample_rate: int) -> float:
        """audio [S] -> its score; NaN for silence. A clip shorter than the network's window is repeated.

        Filled up with silence, as the package does it, three seconds of clean speech lose up to a point.
        """
        if not np.any(audio):
            return float("nan")
        audio = resampled(audio.astype(np.float32), sample_rate, RATE)
        repeats = -(-WINDOW // len(audio))
        filled = np.tile(audio, repeats)[:WINDOW] if repeats > 1 else audio
        return float(self._network(torch.from_numpy(np.ascontiguousarray(filled))[None]).item())


def _network_class() -> type[torch.nn.Module]:
    """The package's network. It imports torchaudio, for reading files only: an empty module stands in for it."""
    stub = None if "torchaudio" in sys.modules else ModuleType("torchaudio")
    if stub is not None:
        sys.modules["torchaudio"] = stub
    try:
        from distillmos import ConvTransformerSQAModel  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"learned MOS is not installed; this needs: {INSTALL}") from None
    finally:
        if stub is not None:
            del sys.modules["torchaudio"]
    return ConvTransformerSQAModel
