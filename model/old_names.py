"""Weights that were saved before the depth decoder was a module of its own: its parameters under today's names."""

from torch import Tensor

OLD_PREFIXES = {  # of names that are no more -> today's
    "project.": "depth_decoder.project.",
    "depth_embedding.": "depth_decoder.embedding.",
    "depth_text_embedding.": "depth_decoder.text_embedding.",
    "depth_heads": "depth_decoder.heads",
    "depth_decoder.blocks.": "depth_decoder.transformer.blocks.",
    "depth_decoder.norm.": "depth_decoder.transformer.norm.",
}


def with_current_names(weights: dict[str, Tensor], depth_is_first: bool) -> dict[str, Tensor]:
    """Tensors by name, as they are if the names are today's. depth_is_first: it predicts codebook 0, too."""
    if "depth_heads" not in weights:
        return weights
    prefixes = OLD_PREFIXES | ({"head_0.": "depth_decoder.head_0."} if depth_is_first else {})
    return {current_name(name, prefixes): tensor for name, tensor in weights.items()}


def current_name(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
