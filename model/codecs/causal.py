"""State for the causal convolutions and LSTMs of transformers' EnCodec and Mimi, which keep none of their own.

    carry_state(model)                 # once, after loading
    with carried(state):               # state: {} at the start of a stream
        model.encode(chunk)            # sees what came before the chunk

Only `forward` of the leaves is replaced; the networks are used through `encode` and `decode`. Outside of `carried` they
compute what they always did. Chunks must be whole frames, so that every stride divides them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import State

_STATE: ContextVar[State | None] = ContextVar("state of causal layers", default=None)  # a stream for each thread


@contextmanager
def carried(state: State) -> Iterator[None]:
    token = _STATE.set(state)
    try:
        yield
    finally:
        _STATE.reset(token)


def carry_state(model: nn.Module) -> None:
    """Let the causal layers of an EncodecModel or MimiModel read and write the state of `carried`."""
    from transformers.models.encodec import modeling_encodec as encodec
    from transformers.models.mimi import modeling_mimi as mimi

    replaced: list[tuple[Any, Any]] = [
        ((encodec.EncodecConv1d, mimi.MimiConv1d), _convolve),
        ((encodec.EncodecConvTranspose1d, mimi.MimiConvTranspose1d), _upsample),
        (encodec.EncodecLSTM, _recur),
    ]
    for module in model.modules():
        for kinds, forward in replaced:
            if isinstance(module, kinds):
                module.forward = partial(forward, module)


def _convolve(module: Any, x: Tensor, padding_cache: Any = None) -> Tensor:
    """[B, C, N] -> [B, C', N / stride], the left context from the state; at the start it is the layer's own padding."""
    state, conv = _STATE.get(), module.conv
    if state is None:
        return type(module).forward(module, x)
    context = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    if module in state:
        x = torch.cat([state[module], x], dim=-1)
    else:
        x = module._pad1d(x, (context, 0), mode=module.pad_mode)
    state[module] = x[..., x.shape[-1] - context :].clone()
    return conv(x)


def _upsample(module: Any, x: Tensor) -> Tensor:
    """[B, C, N] -> [B, C', N * stride]: it is given the steps before as well, and their output is cut."""
    state, conv = _STATE.get(), module.conv
    if state is None:
        return type(module).forward(module, x)
    stride = conv.stride[0]
    context, steps = math.ceil(conv.kernel_size[0] / stride) - 1, x.shape[-1]
    left = state[module] if module in state else x.new_zeros(*x.shape[:-1], context)
    x = torch.cat([left, x], dim=-1)
    state[module] = x[..., x.shape[-1] - context :].clone()
    return conv(x)[..., context * stride : (context + steps) * stride]


def _recur(module: Any, x: Tensor) -> Tensor:
    """[B, C, N] -> [B, C, N]."""
    state = _STATE.get()
    if state is None:
        return type(module).forward(module, x)
    steps = x.permute(2, 0, 1)
    out, state[module] = module.lstm(steps, state.get(module))
    return (out + steps).permute(1, 2, 0)
