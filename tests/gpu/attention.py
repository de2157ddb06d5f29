"""Attention's implementations on the device: each gives what sdpa gives, with windows, packed rows and caches."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from codeclm.model.attention import AttentionChoice
from codeclm.model.shapes import TransformerConfig
from codeclm.model.transformer import KVCache, Transformer

from .harness import Reading, Skip, relative
from .setting import Setting

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative


def made(setting: Setting, implementation: str, window: int, dtype: torch.dtype) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=256, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=256, sliding_window=window)
    model = Transformer(config, AttentionChoice(implementation)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(setting.device, dtype)


@torch.no_grad()
def outputs(setting: Setting, implementation: str, dtype: torch.dtype, packs: bool = True) -> dict[str, Tensor]:
    """Case -> what two layers make of 2 rows of positions."""
    length = setting.amount("positions", 300, 20)
    x = torch.randn(2, length, 256, generator=torch.Generator().manual_seed(1)).to(setting.device, dtype)
    plain, windowed = made(setting, implementation, 0, dtype), made(setting, implementation, length // 4, dtype)
    found = {"plain": plain(x), "window": windowed(x)}
    if packs:
        documents = (torch.arange(length, device=setting.device) // (length // 3)).repeat(2, 1)
        found["window and documents"] = windowed(x, documents=documents)
    cache = KVCache(windowed.config, 2, length, x)
    pieces = [length // 2, 1, 1, length - length // 2 - 2]
    found["window and chunks"] = torch.cat([windowed(part, cache) for part in x.split(pieces, dim=1)], dim=1)
    return found


def compared(setting: Setting, implementation: str, dtype: torch.dtype, packs: bool = True) -> Iterator[Reading]:
    expected = outputs(setting, "sdpa", dtype, packs)
    for case, found in outputs(setting, implementation, dtype, packs).items():
        name = str(dtype).removeprefix("torch.")
        yield Reading(f"{implementation}, {name}, {case}", relative(found, expected[case]), BOUNDS[dtype], "relative")


def flex(setting: Setting) -> Iterator[Reading]:
    """On a GPU compiled, as users have it; elsewhere as torch computes it without a compiler."""
    with torch.compiler.set_stance("default" if setting.is_cuda else "force_eager"):
        yield from compared(setting, "flex_attention", torch.bfloat16 if setting.is_cuda else torch.float32)


def eager(setting: Setting) -> Iterator[Reading]:
    yield from compared(setting, "eager", torch.float32)


def flash(setting: Setting) -> Iterator[Reading]:
    if find_spec("flash_attn") is None:
        raise Skip("flash_attn is not installed")
    yield from compared(setting, "flash_attention_2", torch.bfloat16, packs=False)
