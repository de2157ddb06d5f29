"""Tokens that are not a model's are refused in one line. B batch, K codebooks, U of another speaker, T frames."""

import torch
from torch import Tensor

from .delay_pattern import ABSENT
from .speech_lm_config import SpeechLMConfig


def check_inputs(config: SpeechLMConfig, codes: Tensor, text: Tensor | None = None, user: Tensor | None = None) -> None:
    """Raise ValueError unless codes are integers [B, K, T >= 1] in -1..V-1, and text [B, T] and user [B, U, T] fit."""
    check_range(codes, "codes", (None, config.num_codebooks, None), config.codebook_size)
    if codes.shape[0] == 0 or codes.shape[2] == 0:
        raise ValueError("codes hold no frame: there is nothing to score")
    if text is not None:
        if not config.text.vocab_size:
            raise ValueError("text was given to a model that has no text stream")
        check_range(text, "text", (codes.shape[0], codes.shape[2]), config.text.vocab_size)
    if user is not None:
        if not config.user_codebooks:
            raise ValueError("user codes were given to a model that hears no other speaker")
        check_range(user, "user codes", (len(codes), config.user_codebooks, codes.shape[2]), config.codebook_size)


def check_range(values: Tensor, name: str, shape: tuple[int | None, ...], size: int) -> None:
    """Raise ValueError unless values are integers of `shape` (None: any) in -1..size-1."""
    if values.is_floating_point() or values.ndim != len(shape):
        letters = "[B, K, T]" if len(shape) == 3 else "[B, T]"
        raise ValueError(f"{name} must be integers {letters}, not {values.dtype} {list(values.shape)}")
    if len(shape) == 3 and shape[1] is not None and values.shape[1] != shape[1]:
        raise ValueError(f"{name} have {values.shape[1]} codebooks; this model has {shape[1]}")
    if any(want is not None and want != have for want, have in zip(shape, values.shape, strict=True)):
        raise ValueError(f"{name} {list(values.shape)} do not go with codes of {list(shape)} rows and frames")
    if not values.numel():
        return
    least, most = torch.stack(values.aminmax()).tolist()  # a GPU is waited for once
    if least < ABSENT or most >= size:
        raise ValueError(f"{name} span {least}..{most}; this model has 0..{size - 1} (-1: absent)")


def check_leading(chosen: int, num_codebooks: int) -> int:
    """`chosen` of num_codebooks leading codebooks, 0 for all -> how many. Raises ValueError for more than there are."""
    if not 0 <= chosen <= num_codebooks:
        raise ValueError(f"num_codebooks is {chosen}; this model has {num_codebooks}")
    return chosen or num_codebooks
