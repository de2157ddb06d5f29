"""A voice prompt that need not be encoded or read again: its codes, and what the backbone keeps of them.

    voice = lm.prefix("voice.wav")             # a Prefix: a prompt for generate, stream and Scheduler.submit
    voice.save("voice.safetensors")            # for this model and this codec only
    lm.generate(lm.load_prefix("voice.safetensors"), duration_s=4)

K codebooks, T frames, L layers, G key/value heads, P positions, E head width.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..model.check_inputs import check_inputs
from ..model.files import readable, write_whole
from ..model.lm import SpeechLM
from ..model.weights import metadata_of
from .engine import prefill, score_window
from .frame_step import FrameStep, is_supported
from .grid import Request, start
from .labelled import as_labelled
from .precision import weights_of
from .windows import Window, each_window, window_frames

if TYPE_CHECKING:
    from .generator import SpeechGenerator

FORMAT = "codeclm prefix 1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Prefix:
    codes: Tensor  # [K, T]
    nll: Tensor  # [K, T] nats; of codes that lag beyond the last frame 0, as the steps that follow score them
    # [L, 2, G, P, E] keys and values of the window that goes on, as if it began at position 0, but for the last frame
    caches: Tensor | None  # None: of a model that the frame step does not know, which takes the codes again
    owner: dict[str, str]  # fingerprints of the model and the codec that it was made with

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all. Raises OSError if the disk does not take it."""
        tensors = {"codes": self.codes, "nll": self.nll}
        if self.caches is not None:
            tensors["caches"] = self.caches
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_whole(path, save(whole, metadata={"format": FORMAT} | self.owner))

    def check(self, lm: "SpeechGenerator", name: str = "the prefix") -> None:
        """Raise ValueError in one line unless it was made with this model and this codec."""
        for part, wanted in owner_of(lm).items():
            if self.owner.get(part) != wanted:
                found = self.owner.get(part, "nothing")[:12]
                raise ValueError(
                    f"{name}: was made with the {part} {found}, not with this one ({wanted[:12]}); make it again "
                    "from the recording"
                )


@torch.inference_mode()
def make_prefix(lm: "SpeechGenerator", codes: Tensor) -> Prefix:
    """codes: [K, T]."""
    model, given = lm.model, codes.shape[1]
    state = start(model, Request(1, codes), [0])
    caches = None
    if is_supported(model):
        for window in each_window(given + 1, window_frames(model.config)):
            if window.stop <= given:
                with as_labelled(model):
                    score_window(model, state, window)
                continue
            capacity = window.stop - window.start + max(model.config.delays) + 1
            # a batch that runs takes the last frame with its next step
            walk = state.walk = FrameStep(model, 1, capacity, looks_ahead=False)
            seen = Window(window.start, window.first, given)
            with as_labelled(model):
                contexts = prefill(model, state, seen, None)
                if window.first < given:
                    score_window(model, state, seen, contexts)
            caches = walk.backbone.kept()
    return Prefix(codes, state.nll[0, :, :given].clone(), caches, owner_of(lm))


def read_prefix(path: str | Path, lm: "SpeechGenerator") -> Prefix:
    """What `Prefix.save` wrote. Raises FileNotFoundError or ValueError in one line for anything else."""
    path, name = Path(path), readable(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file; codeclm prefix VOICE.wav --out {path.name} makes it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: is not a whole safetensors file ({error}); make it again") from None
    return prefix_from(content, lm, name)


def prefix_from(content: bytes, lm: "SpeechGenerator", name: str) -> Prefix:
    """The bytes of such a file. name: for messages. Raises ValueError in one line for anything else."""
    try:
        found = load(content)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{name}: is not a whole safetensors file ({error}); make it again") from None
    owner = metadata_of(content)
    if owner.pop("format", "") != FORMAT:
        raise ValueError(f"{name}: holds no prefix; make one with codeclm prefix VOICE.wav --out voice{SUFFIX}")
    tensors = {key: tensor.to(lm.device) for key, tensor in found.items()}
    prefix = Prefix(
        tensors.pop("codes", torch.empty(0)), tensors.pop("nll", torch.empty(0)), tensors.pop("caches", None), owner
    )
    prefix.check(lm, name)
    check_tensors(prefix, lm.model, name)
    return prefix


def check_tensors(prefix: Prefix, model: SpeechLM, name: str) -> None:
    """Raise ValueError for tensors that this model would not have made."""
    try:
        check_inputs(model.config, prefix.codes[None])
    except ValueError as error:
        raise ValueError(f"{name}: {error}; make it again") from None
    given, config = prefix.codes.shape[1], model.config.backbone
    (*_, window) = each_window(given + 1, window_frames(model.config))
    positions = given - window.start - (not model.config.bos)
    kept = min(positions, config.sliding_window or positions)
    shape = (config.num_layers, 2, config.num_kv_heads, kept, config.size_of_head)
    caches = prefix.caches
    fits = (caches is None) != is_supported(model) and (caches is None or caches.shape == shape)
    if not fits or prefix.nll.shape != prefix.codes.shape or (caches is not None and caches.dtype != model.dtype):
        raise ValueError(f"{name}: its tensors are not those of a prefix of this model; make it again")
    if not all(tensor.isfinite().all() for tensor in (prefix.nll, caches) if tensor is not None):
        raise ValueError(f"{name}: holds NaN or infinite numbers; make it again")


def owner_of(lm: "SpeechGenerator") -> dict[str, str]:
    precision = weights_of(lm.model) or "float32"
    return {"model": lm.fingerprint, "codec": lm.codec.fingerprint, "precision of weights": precision}


def fingerprint_of(model: SpeechLM) -> str:
    """sha256 of a model's settings and weights, in hexadecimal."""
    digest = hashlib.sha256(model.config.canonical().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
