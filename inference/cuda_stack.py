"""A transformer's step by the kernels of cuda_kernels.py: five for each layer.

B rows, D width, N outputs, H heads, G key/value heads, E head width, P slots of a cache.
"""

from typing import Any

import torch
from torch import Tensor

from ..model.rope import rotary_tables
from .frame_step import DepthStep
from .products import Product
from .stack import Stack

FEW = 8  # rows that are multiplied without tensor cores
COLUMNS = 16  # steps whose rotations and noise are laid out at once


class Launcher:
    """Launches kernels for B rows, and says how they divide their work."""

    def __init__(self, batch: int, device: torch.device):
        from . import cuda_kernels

        self.kernels, self.batch = cuda_kernels, batch
        on_gpu = device.type == "cuda"
        self.early = on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        self.block = 2 if on_gpu else 64  # outputs of a program; the interpreter is quick with few programs

    def launch(self, name: str, grid: tuple[int, ...], *args: Any, warps: int = 4, **settings: Any) -> None:
        """Launch a kernel; it may begin before those before it are done, with what does not depend on them."""
        early = dict(launch_pdl=True) if self.early else {}
        getattr(self.kernels, name)[grid](*args, EARLY=self.early, num_warps=warps, **settings, **early)

    def shape(self, weight: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
        """The grid, and how the kernel divides its work. weight: [N, D]."""
        outputs, inputs = weight.shape
        few = self.batch <= FEW
        if few:  # a program reads all that it needs of the weights at once, and before the inputs are there
            rows, block = power_of_two(self.batch), self.block
            each = min(32, 64 // rows)  # numbers of a row that a thread holds
            block_inputs = min(power_of_two(inputs), 8 * 32 * each)
            warps = max(1, block_inputs // (32 * each))
        else:
            rows, block, warps = 16, 32 if outputs >= self.processors * 32 else 16, 4
            block_inputs = min(max(16, power_of_two(inputs)), 128 if weight.element_size() == 2 else 64)
        divided = dict(D=inputs, B=self.batch, ROWS=rows, DOT=not few, BLOCK_N=block, BLOCK_D=block_inputs, warps=warps)
        return (-(-outputs // block), -(-self.batch // rows)), divided

    def product(self, x: Tensor, weight: Tensor, to: Tensor, floor: float | None = None, add: bool = False) -> None:
        """to = x weight^T, of x / |x| where a norm's `floor` is given; `add`ed to what it holds."""
        grid, divided = self.shape(weight)
        self.launch(
            "product", grid, x, x.stride(0), weight, to, to.stride(0), weight.shape[0], floor or 0.0,
            NORM=floor is not None, ADD=add, **divided,
        )  # fmt: skip


class KernelStack:
    """A Stack's step by kernels, in its buffers and caches."""

    def __init__(self, stack: Stack, launcher: Launcher, places: Tensor | None = None):
        """places: [P + 1] 0, 1, 2, ...: for a stack whose position is known beforehand."""
        self.stack, self.launcher, self.config, self.places = stack, launcher, stack.config, places
        self.x = stack.x
        stack.clear_slots(stack.capacity)  # the kernels fill slots without a word
        self.floor = self.config.dim * self.config.norm_eps
        self.end_floor = self.floor if self.config.final_norm else None  # for the norm at its end
        config, like = self.config, stack.x
        self.query = like.new_zeros(launcher.batch, config.num_heads * config.size_of_head)
        self.mixed, self.gated = torch.zeros_like(self.query), like.new_zeros(launcher.batch, config.ff_dim)
        self.layers = [
            (stored(layer.qkv), layer.qkv_bias, stored(layer.out), stored(layer.gate.both), stored(layer.down))
            for layer in stack.layers
        ]
        count = COLUMNS if places is None else len(places) - 1
        self.turns = like.new_zeros(count, config.size_of_head // 2, 2)
        index = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.slot, self.filled, self.turn, self.position = index, index + 1, index.clone(), index.clone()
        if places is not None:
            self.rotate_from(0)

    def rotate_from(self, position: int) -> None:
        """Lay out the rotations of the positions from here on."""
        if self.config.rope:
            count, size = self.turns.shape[:2]
            cos, sin = rotary_tables(
                torch.arange(position, position + count, device=self.turns.device), self.config, self.turns.dtype
            )
            self.turns.copy_(torch.stack([cos.view(count, size), sin.view(count, size)], dim=-1))

    def step(self, place: int | None = None) -> None:
        """The next position of every row, or, with `places`, position `place`."""
        config, batch = self.config, self.launcher.batch
        if self.places is None or place is None:
            slot, filled, turn, mask = self.slot, self.filled, self.turn, self.stack.mask
        else:
            slot = turn = self.places[place:]
            filled, mask = self.places[place + 1 :], None
        size, capacity = config.size_of_head, self.stack.capacity
        slots = min(power_of_two(capacity), 64)  # looked at together
        shape = dict(B=batch, H=config.num_heads, G=config.num_kv_heads, E=size, P=capacity)
        for (qkv, bias, out, gate_up, down), cache in zip(self.layers, self.stack.caches, strict=True):
            grid, divided = self.launcher.shape(qkv)
            self.launcher.launch(
                "heads", grid, self.x, self.x.stride(0), qkv, qkv if bias is None else bias, self.query, cache, slot,
                self.turns, turn, self.floor, BIAS=bias is not None, ROPE=config.rope, **divided | shape,
            )  # fmt: skip
            hidden = cache if mask is None else mask
            self.launcher.launch(
                "attend", (batch, config.num_heads), self.query, cache, hidden, hidden.stride(0), slot, filled,
                self.mixed, size**-0.5, MASK=mask is not None, BLOCK_P=slots, BLOCK_E=power_of_two(size),
                warps=1 if slots * size <= 2048 else 4, **shape,
            )  # fmt: skip
            self.launcher.product(self.mixed, out, self.x, add=True)
            grid, divided = self.launcher.shape(gate_up)
            self.launcher.launch(
                "gated", grid, self.x, self.x.stride(0), gate_up, self.gated, config.ff_dim, self.floor, **divided
            )
            self.launcher.product(self.gated, down, self.x, add=True)


class KernelDepth:
    """A DepthStep's: its stack, and the weights beside it."""

    def __init__(self, step: DepthStep, launcher: Launcher, backbone_gain: Tensor | None, gaps: str):
        """backbone_gain: of the backbone's last norm, or None. gaps: how the model hears ABSENT."""
        places = torch.arange(step.stack.capacity + 1, device=step.condition.device)
        self.stack, self.condition = KernelStack(step.stack, launcher, places), step.condition
        self.first, self.codeless = step.decoder.first, step.decoder.codeless
        self.adds = step.decoder.config.conditioning == "add"
        self.project = stored(step.weights.project, backbone_gain)
        self.tables = [padded(table, gaps) for table in step.weights.tables]
        self.heads = [stored(head, step.weights.stack.gain) for head in step.weights.heads]


def stored(product: Product, gain: Tensor | None = None) -> Tensor:
    """A matrix [in, out], after a norm's gain [in], as [out, in] rows in memory: no copy where it lies so already."""
    rows = product.weight.t()
    return rows.contiguous() if gain is None else (rows * gain).contiguous()


def padded(table: Tensor, gaps: str = "") -> Tensor:
    """Tables [.., V + 1, D] of tokens and BOS, each with a row for ABSENT: zeros, or that of BOS where `gaps` are."""
    return torch.cat([table, table[..., -1:, :] if gaps == "bos" else torch.zeros_like(table[..., -1:, :])], dim=-2)


def power_of_two(n: int) -> int:
    """The least that is n or more."""
    return 1 << max(0, n - 1).bit_length()
