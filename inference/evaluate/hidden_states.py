"""What a model's backbone holds after each frame, layer by layer. K codebooks, T frames, S steps, D width."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...model.delay_pattern import ABSENT
from ...model.layout import arrange
from ...model.lm import SpeechLM


@torch.inference_mode()
def hidden_states(model: SpeechLM, codes: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """codes [K, T] -> for each of `layers` the states [T', D] after frames 0..T'-1; T' is T, or less by one.

    Layers count as transformers' `output_hidden_states` does: 0 is the sum of the embeddings, n block n, and the last
    one comes after the final norm. The state after frame t is the first one that has seen all codes of frame t: with
    delays it has seen coarse codes of later frames, too.
    """
    steps = arrange(model.config, codes[None], text=_absent(model, codes), user=_nobody(model, codes))
    found: dict[int, Tensor] = {}
    last = len(model.backbone.blocks)
    hooks = [model.backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: found.update({0: inputs[0]}))]
    for layer in {*layers} - {0}:
        module = model.backbone.norm if layer == last else model.backbone.blocks[layer - 1]
        hooks.append(module.register_forward_hook(_keep(found, layer)))
    try:
        model.contexts(steps)
    finally:
        for hook in hooks:
            hook.remove()
    num_slots = found[0].shape[1] // steps.inputs.shape[2]  # "flatten" has a position for each code
    after = (steps.place[0] + 1 + max(model.config.delays)) * num_slots
    after = after[after < found[0].shape[1]]
    return [found[layer][0, after] for layer in layers]


def _keep(found: dict[int, Tensor], layer: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
        found[layer] = output

    return hook


def _absent(model: SpeechLM, codes: Tensor) -> Tensor | None:
    return torch.full_like(codes[:1], ABSENT) if model.text_size else None


def _nobody(model: SpeechLM, codes: Tensor) -> Tensor | None:
    count = model.config.user_codebooks
    return torch.full_like(codes[None, :count], ABSENT) if count else None
