"""The caller's model while it is trained: what is changed about the object, and what is put back."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..model.lm import SpeechLM
from ..model.transformer import Block
from .config import LearningConfig
from .sharding import shard


@contextmanager
def borrowed(
    model: SpeechLM, accelerator: Accelerator, config: LearningConfig, autocast: AbstractContextManager
) -> Iterator[nn.Module]:
    """`model` on the run's device and in train mode; what is yielded shares its weights, and is what is to be called.

    Sharded, what is yielded has its own weights, of which `model` gets none (see sharding.py's `gather`).

    Afterwards the object is as it came, but in eval mode and with what it learned.
    """
    blocks, sharded = blocks_of(model), config.sharding == "fsdp" and accelerator.num_processes > 1
    before = [(block.dropout, block._compiled_call_impl, block.gradient_checkpointing) for block in blocks]
    device, attributes = model.device, set(vars(model))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        if not sharded:
            model.to(accelerator.device)  # pyright: ignore[reportArgumentType]
        with autocast:
            idle = unreached(model)
        for parameter in idle:
            parameter.requires_grad_(False)  # DistributedDataParallel would wait for its gradient for ever
        learner = copy.deepcopy(model) if sharded else model  # what is sharded stays so
        for block in blocks_of(learner):
            block.dropout = config.dropout
            if config.compile:
                block.compile(dynamic=True)
        if config.activation_checkpointing:  # the depth decoder holds a chunk's activations only
            for block in learner.backbone.blocks:
                block.gradient_checkpointing = True  # pyright: ignore[reportArgumentType]
                block._gradient_checkpointing_func = computed_twice  # pyright: ignore[reportArgumentType]
        learner.train()
        yield shard(learner, accelerator.device) if sharded else accelerator.prepare(learner)
    finally:
        for block, (dropout, compiled, checkpointing) in zip(blocks, before, strict=True):
            block.dropout, block._compiled_call_impl = dropout, compiled
            if block.gradient_checkpointing != checkpointing:  # an attribute that is new would be compiled for again
                block.gradient_checkpointing = checkpointing
        for name in vars(model).keys() - attributes:  # accelerate's marks
            del vars(model)[name]
        model.zero_grad()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in learning)
        model.to(device).eval()  # pyright: ignore[reportArgumentType]


# whatever is drawn comes from the rows' keys, so there is no generator to wind back
computed_twice = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def blocks_of(model: SpeechLM) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def unreached(model: SpeechLM) -> list[Tensor]:
    """The parameters that should learn and on which no loss depends: with one codebook, those of the depth decoder."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    codes = torch.zeros(1, model.num_codebooks, 4, dtype=torch.int64, device=model.device)
    text = codes[:, 0] if model.text_size else None
    with torch.enable_grad():
        loss = model(codes, ends=codes[:, 0, 0] == 0, text=text).loss
        found = torch.autograd.grad(loss, learning, allow_unused=True)
    return [parameter for parameter, gradient in zip(learning, found, strict=True) if gradient is None]
