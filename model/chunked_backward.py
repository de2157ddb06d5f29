"""A sum over many rows whose gradient is taken chunk by chunk, so that only one chunk's activations are ever held.

Exact: each chunk goes forward and straight back, its gradients are added up, and the outer backward passes them on.
Nothing is computed twice. A hook on a parameter itself (`register_hook`) sees each chunk's gradient, too; one on what
is accumulated, as DistributedDataParallel's are, sees the sum once. N rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# rows start..stop of the context -> (what to add to the sum, anything [rows, ...] to report without a gradient)
Terms = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def chunked_sum(terms: Terms, context: Tensor, parameters: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Sum `terms` over chunks of `size` rows of context [N, D] -> (the sum, what was reported [N, ...]).

    Gradients reach `context` and `parameters`; terms must not use anything else that needs one.
    """
    if not torch.is_grad_enabled():
        pairs = [terms(context[rows], rows) for rows in chunks(len(context), size)]
        return torch.stack([total for total, _ in pairs]).sum(), torch.cat([report for _, report in pairs])
    if len(context) <= size:
        total, report = terms(context, slice(0, len(context)))
        return total, report.detach()
    return _ChunkedSum.apply(terms, size, context, *parameters)  # pyright: ignore[reportReturnType]


def chunks(num_rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _there_and_back(
    terms: Terms, context: Tensor, rows: slice, wanted: list[Tensor], context_grad: Tensor, sums: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One chunk forward and back, into `context_grad` and `sums`: nothing else of it outlives this call."""
    with torch.enable_grad():
        part = context[rows].detach().requires_grad_()
        total, report = terms(part, rows)
        grad, *grads = torch.autograd.grad(total, [part, *wanted], allow_unused=True)
    context_grad[rows] = 0 if grad is None else grad
    pairs = [(into, one) for into, one in zip(sums, grads, strict=True) if one is not None]
    if pairs:
        torch._foreach_add_(*map(list, zip(*pairs, strict=True)))  # pyright: ignore[reportPrivateImportUsage]
    return total.detach(), report.detach()


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Terms, size: int, context: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        sums = [torch.zeros_like(parameter) for parameter in wanted]
        context_grad = torch.empty_like(context)
        totals, reports = [], []
        for rows in chunks(len(context), size):
            total, report = _there_and_back(terms, context, rows, wanted, context_grad, sums)
            totals.append(total)
            reports.append(report)
        ctx.save_for_backward(context_grad, *sums)
        ctx.takes = [parameter.requires_grad for parameter in parameters]
        report = torch.cat(reports)
        ctx.mark_non_differentiable(report)
        return torch.stack(totals).sum(), report

    @staticmethod
    @once_differentiable  # the gradients were taken without a graph of their own
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        context_grad, *sums = ctx.saved_tensors
        scaled = iter([part * grads[0].to(part.dtype) for part in sums])
        passed = [next(scaled) if takes else None for takes in ctx.takes]
        return None, None, context_grad * grads[0].to(context_grad.dtype), *passed
