"""FSDP2: each rank holds a part of every weight, its gradient and its optimizer state, cut along the first axis.

The backbone's blocks are units of their own; all else, the depth decoder among it, is gathered for the whole forward
and backward pass: the depth loss goes forward and back in chunks, and a unit could not be let go between them.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..model.lm import SpeechLM


def shard(model: SpeechLM, device: torch.device) -> SpeechLM:
    """`model`, in place, with this rank's part of each weight on the device."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.backbone.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def gather(model: SpeechLM, into: SpeechLM) -> None:
    """The whole weights, tensor by tensor; all ranks take part."""
    weights = into.state_dict()
    for name, part in model.state_dict().items():
        weights[name].copy_(whole(part))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that belongs beside `like`; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    own = tensor.to(device=like.to_local().device, dtype=tensor.dtype)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_parts(tensors: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Whole tensors into those of the same names, which may be parts. Raises ValueError if the names differ."""
    if tensors.keys() != into.keys():
        raise ValueError(f"weights differ by name: {', '.join(sorted(tensors.keys() ^ into.keys())[:5])}")
    for name, tensor in into.items():
        tensor.copy_(part_of(tensors[name], tensor))
