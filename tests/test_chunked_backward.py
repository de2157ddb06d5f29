"""model/chunked_backward.py: the depth loss in chunks is the whole one, its gradients too, and needs less memory."""

import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.chunked_backward import chunked_sum
from codeclm.model.depth import activation_bytes, steps_at_a_time
from codeclm.model.losses import Weights
from codeclm.model.presets import PRESETS, SHAPE_S
from codeclm.model.shapes import DepthConfig, TransformerConfig

from .options import DEPTHS, OPTIONS, example

WHOLE = 10**9
WITH_DEPTH = [*DEPTHS, "text seen", "user", "never", "llama"]


def step(model: SpeechLM, chunk: int, factor: float = 1.0, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients of loss * factor) of a training step with 3 x 6 frames, one row shorter and some text absent."""
    inputs = example(model)
    inputs["codes"][1, :, 4:] = -1
    model.zero_grad()
    output = model(**inputs, ends=torch.tensor([True, True, False]), depth_chunk=chunk, **options)
    (output.loss * factor).backward()
    return output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("option", WITH_DEPTH)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_loss_and_every_gradient_equal_those_of_the_whole(make_model, option, dtype, bound):
    model = make_model(**OPTIONS[option], dtype=dtype)
    weights = Weights([2.0, 1.0, 0.5], z_loss=1e-3)
    loss, grads = step(model, WHOLE, factor=3.0, weights=weights)
    assert set(grads) == {name for name, _ in model.named_parameters()}
    for chunk in (1, 5, 18):
        chunked_loss, chunked_grads = step(model, chunk, factor=3.0, weights=weights)
        torch.testing.assert_close(chunked_loss, loss, rtol=bound, atol=0)
        for name, grad in grads.items():
            torch.testing.assert_close(chunked_grads[name], grad, rtol=bound, atol=bound)


@pytest.mark.parametrize("option", ["default", "csm", "moshi"])
def test_loss_and_every_gradient_stay_near_those_of_the_whole_under_bfloat16_autocast(make_model, option):
    """Sums of bfloat16 products over other groups of rows: 8 bits of a number, so some in a hundred, by machine."""
    model = make_model(**OPTIONS[option], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = step(model, WHOLE)
        chunked_loss, chunked_grads = step(model, 4)
    torch.testing.assert_close(chunked_loss, loss, rtol=1e-3, atol=0)
    exact = step(model, WHOLE)[1]
    for name, grad in grads.items():
        difference = (chunked_grads[name] - grad).norm() / grad.norm()
        assert chunked_grads[name].dtype == torch.float32
        assert difference < 0.15, (name, float(difference))
        rounding = (grad - exact[name]).norm()  # chunks are not further from float32 than the whole is
        assert (chunked_grads[name] - exact[name]).norm() < 2 * rounding + 0.02 * grad.norm(), name


@pytest.mark.parametrize("frozen", ["backbone", "depth", "everything but heads", "shared table"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(make_model, frozen):
    model = make_model(**OPTIONS["csm"])
    for name, parameter in model.named_parameters():
        freeze = {
            "backbone": name.startswith(("backbone", "frame_embedding", "head_0")),
            "depth": name.startswith("depth_decoder"),
            "everything but heads": name != "depth_decoder.heads",
            "shared table": name == "frame_embedding.weight",
        }
        parameter.requires_grad_(not freeze[frozen])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss, grads = step(model, WHOLE)
    chunked_loss, chunked_grads = step(model, 5)
    assert set(grads) == set(chunked_grads) == trained
    torch.testing.assert_close(chunked_loss, loss, rtol=0, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(chunked_grads[name], grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("option", ["default", "csm"])
@pytest.mark.parametrize("chunk", [5, WHOLE])
def test_gradients_arrive_in_the_backward_pass_once_for_each_parameter(make_model, option, chunk):
    """What DistributedDataParallel builds on: its hooks fire when a gradient is complete, and none before backward."""
    model, arrived = make_model(**OPTIONS[option]), {}
    for name, parameter in model.named_parameters():
        arrived[name] = []
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: arrived[name].append(p.grad.clone()))
    inputs = example(model)
    loss = model(**inputs, depth_chunk=chunk).loss
    assert not any(arrived.values()) and all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert len(arrived[name]) == 1 and torch.equal(arrived[name][0], parameter.grad), name
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model(**inputs, depth_chunk=chunk).loss.backward()  # a second step adds up, as gradient accumulation does
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * before[name], rtol=1e-12, atol=1e-15)


def test_a_gradient_of_the_gradient_is_refused_rather_than_wrong(make_model):
    model = make_model()
    loss = model(**example(model), depth_chunk=5).loss
    grad = torch.autograd.grad(loss.square(), model.depth_decoder.heads, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@torch.no_grad()
def test_without_gradients_chunks_change_nothing_either(make_model):
    model = make_model()
    inputs = example(model)
    whole = model(**inputs, depth_chunk=WHOLE)
    torch.testing.assert_close(model(**inputs, depth_chunk=4).nll, whole.nll, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size, parts", [(4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_no_chunk_is_larger_than_asked_for(size, parts):
    seen, x = [], torch.randn(10, 3, requires_grad=True)
    factor = torch.randn(3, requires_grad=True)

    def terms(rows: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        assert torch.equal(rows, x[part])
        return (rows * factor).sum(), rows[:, 0]

    total, report = chunked_sum(terms, x, [factor], size)
    assert seen == parts and torch.equal(report, x[:, 0]) and not report.requires_grad
    total.backward()
    torch.testing.assert_close(x.grad, factor.detach().expand(10, 3))
    torch.testing.assert_close(factor.grad, x.detach().sum(dim=0))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors hold at a time, beyond those of `parameters` and, at the end, of their gradients.

    Products of matrices are not computed, only allocated: no number matters here, and each shape does.
    """

    def __init__(self, parameters: list[Tensor]):
        super().__init__()
        self.parameters, self.events, self.live = parameters, [], {}
        self.number = 0
        for parameter in parameters:
            self._note(parameter)
        self.events.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            out = args[0].new_zeros(*args[0].shape[:-1], args[1].shape[-1])
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.live:
            return
        self.number += 1
        number = self.number

        def gone(_: Any) -> None:
            self.events.append((number, -size))
            del self.live[key]

        self.live[key] = number, weakref.ref(storage, gone)
        self.events.append((number, size))

    def peak(self) -> int:
        gradients = {self.live[id(parameter.grad.untyped_storage())][0] for parameter in self.parameters}
        now = most = 0
        for number, size in self.events:
            if number not in gradients:
                now += size
                most = max(most, now)
        return most


def test_live_bytes_are_those_held_at_a_time():
    weight = torch.ones(10, requires_grad=True)
    with LiveBytes([weight]) as live:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a[:500] + 1  # and 2,000
        del a
        c = b.view(5, 100) * 2  # and 2,000, in place of 4,000
        (weight * 3).sum().backward()  # 40, a sum of 4 with its gradient of 4, and 40 that become weight.grad
    assert live.peak() == 6000 and c.sum() == 1000
    with LiveBytes([]) as live:
        assert (torch.zeros(30, 20) @ torch.zeros(20, 10)).shape == (30, 10)
    assert live.peak() == 4 * (30 * 20 + 20 * 10 + 30 * 10)


def live_bytes(model: SpeechLM, chunk: int, half: bool) -> int:
    """Of one training step with 4 x 250 frames."""
    model.zero_grad()
    codes = torch.randint(0, 1024, (4, 8, 250), generator=torch.Generator().manual_seed(0))
    with LiveBytes(list(model.parameters())) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(codes, ends=torch.ones(4, dtype=torch.bool), depth_chunk=chunk).loss
        loss.backward()
    return live.peak()


@pytest.fixture(scope="module")
def shape_s() -> SpeechLM:
    with torch.device("meta"):
        model = SpeechLM(SpeechLMConfig(8, 1024, *SHAPE_S))
    return model.to_empty(device="cpu").train()


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_a_training_step_at_shape_s_needs_at_most_60_percent_of_the_memory(shape_s, half):
    """With the chunk that a CPU takes when none is given."""
    assert steps_at_a_time(shape_s.depth_decoder, torch.device("cpu")) == 128
    whole, chunked = (live_bytes(shape_s, chunk, half) for chunk in (WHOLE, 0))
    assert chunked <= 0.6 * whole


# --- the size of a chunk ---


@pytest.mark.slow
def test_the_memory_of_a_step_is_about_what_the_size_of_a_chunk_is_reckoned_with(shape_s):
    """A CPU's norms and rotations keep more than a GPU's."""
    per_step = (live_bytes(shape_s, WHOLE, True) - live_bytes(shape_s, 250, True)) / 750
    assert 0.8 < per_step / activation_bytes(shape_s.depth_decoder) < 2


class Card(NamedTuple):
    total_memory: int


def chunk_on_a_card(monkeypatch, gib: int, num_codebooks: int, shape: tuple[TransformerConfig, DepthConfig]) -> int:
    with torch.device("meta"):
        decoder = SpeechLM(SpeechLMConfig(num_codebooks, 1024, *shape)).depth_decoder
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card(gib << 30))
    chunk = steps_at_a_time(decoder, torch.device("cuda"))
    assert chunk == 256 or chunk * activation_bytes(decoder) <= gib << 27
    return chunk


def test_a_gpu_takes_as_many_steps_at_a_time_as_an_eighth_of_its_memory_holds(monkeypatch):
    assert chunk_on_a_card(monkeypatch, 79, 8, SHAPE_S) == 8192  # within the 65,535 rows of an attention call
    assert chunk_on_a_card(monkeypatch, 79, 8, PRESETS["small"]) == 8192
    small, large, smallest = (chunk_on_a_card(monkeypatch, gib, 32, PRESETS["base"]) for gib in (16, 79, 4))
    assert smallest == 256 < small < large < 8192
