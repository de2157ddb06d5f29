"""Residual vector quantization with factorised lookup (as in DAC, arXiv:2306.06546).

B batch, T frames, D latent width, d lookup width, K codebooks, V codebook size. Each codebook projects what is left
of the latent to d dimensions, finds the entry of the nearest direction there, and projects that entry back to D.
Training keeps codebooks in use by quantizer dropout and by restarting dead entries from the batch.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Quantized:
    """latent [B, T, D]; codes [B, K, T]; commitment and codebook: scalar losses, summed over codebooks."""

    latent: Tensor
    codes: Tensor
    commitment: Tensor
    codebook: Tensor


class Codebook(nn.Module):
    usage: Tensor

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.project_in = nn.Linear(dim, codebook_dim)
        self.project_out = nn.Linear(codebook_dim, dim)
        self.entries = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        # running count of how often an entry is chosen; training only, so it is not part of the weights
        self.register_buffer("usage", torch.ones(codebook_size), persistent=False)

    def lookup(self, query: Tensor) -> Tensor:
        """query [..., d] -> index of the entry with the nearest direction [...]."""
        return (F.normalize(query, dim=-1) @ F.normalize(self.entries, dim=-1).t()).argmax(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, T] -> [B, T, D]."""
        return self.project_out(F.embedding(codes, self.entries))


class ResidualVectorQuantizer(nn.Module):
    def __init__(self, dim: int, num_codebooks: int, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.codebook_size = codebook_size
        self.codebooks = nn.ModuleList(Codebook(dim, codebook_size, codebook_dim) for _ in range(num_codebooks))

    def books(self) -> list[Codebook]:
        """The codebooks, typed."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def encode(self, latent: Tensor) -> Tensor:
        """latent [B, T, D] -> codes [B, K, T]."""
        codes = []
        for codebook in self.books():
            index = codebook.lookup(codebook.project_in(latent))
            latent = latent - codebook.decode(index)
            codes.append(index)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K', T] of the K' leading codebooks -> latent [B, T, D]."""
        books = zip(self.books(), codes.unbind(1), strict=False)
        parts = [cast(Codebook, codebook).decode(index) for codebook, index in books]
        return torch.stack(parts).sum(dim=0)

    def forward(self, latent: Tensor, dropout: float = 0.0) -> Quantized:
        """Training pass: gradients go straight through the lookup. dropout: share of rows cut to fewer codebooks."""
        batch, num_codebooks = latent.shape[0], len(self.codebooks)
        keep = torch.full((batch,), num_codebooks, device=latent.device)
        dropped = torch.rand(batch, device=latent.device) < dropout
        keep = torch.where(dropped, torch.randint(1, num_codebooks + 1, (batch,), device=latent.device), keep)

        residual, total = latent, torch.zeros_like(latent)
        commitment = codebook_loss = latent.new_zeros(())
        codes = []
        for k, codebook in enumerate(self.books()):
            query = codebook.project_in(residual)
            index = codebook.lookup(query)
            entry = F.embedding(index, codebook.entries)
            active = (keep > k).to(latent.dtype)[:, None, None]  # [B, 1, 1]
            commitment = commitment + (active * (query - entry.detach()) ** 2).mean()
            codebook_loss = codebook_loss + (active * (entry - query.detach()) ** 2).mean()
            part = codebook.project_out(query + (entry - query).detach()) * active
            total, residual = total + part, residual - part
            codes.append(index)
            if self.training:
                self._revive(codebook, query.detach(), index)
        return Quantized(total, torch.stack(codes, dim=1), commitment, codebook_loss)

    @torch.no_grad()
    def _revive(self, codebook: Codebook, query: Tensor, index: Tensor, decay: float = 0.98) -> None:
        """Move entries that are hardly ever chosen onto random queries of this batch."""
        counts = torch.bincount(index.flatten(), minlength=self.codebook_size).to(codebook.usage)
        codebook.usage.mul_(decay).add_(counts, alpha=1 - decay)
        fair_share = index.numel() / self.codebook_size
        dead = (codebook.usage < 0.03 * fair_share).nonzero().flatten()
        if len(dead):
            flat = query.flatten(0, 1)
            chosen = torch.randint(len(flat), (len(dead),), device=flat.device)
            codebook.entries.data[dead] = flat[chosen].to(codebook.entries.dtype)
            codebook.usage[dead] = fair_share
