"""Residual vector quantization: each codebook quantizes what the ones before it left (SoundStream, arXiv:2107.03312).

B batch, T frames, d width, K codebooks, V codebook size. Entries follow the mean of what chose them (EMA); gradients
pass straight through the lookup. Training keeps codebooks in use by k-means on the first latents, by quantizer
dropout, and by restarting dead entries from the batch.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

DOUBT = 2e-6  # of a latent's length: three times what float32 was seen to move latents by
ROUNDING = 5e-7  # of the product of two lengths: what float32 may get wrong in their inner product


@dataclass
class Quantized:
    """latent [B, T, d], and what codebook 0 alone says of it; codes [B, K, T]; commitment: scalar, summed over K."""

    latent: Tensor
    first: Tensor
    codes: Tensor
    commitment: Tensor

    @classmethod
    def none(cls, latent: Tensor) -> "Quantized":
        """The latent as it is, with no codes: before the codebooks are filled."""
        no_codes = torch.zeros(len(latent), 0, latent.shape[1], dtype=torch.long, device=latent.device)
        return cls(latent, latent, no_codes, latent.new_zeros(()))


class Codebook(nn.Module):
    """V entries of width d, found by the smallest distance."""

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        self.register_buffer("entries", torch.randn(codebook_size, dim))
        # running count and sum of the vectors that choose an entry; for training, so they are not part of the weights
        self.register_buffer("counts", torch.ones(codebook_size), persistent=False)
        self.register_buffer("sums", self.entries.clone(), persistent=False)

    def lookup(self, query: Tensor) -> Tensor:
        """query [..., d] -> index of the nearest entry [...]."""
        return self.nearness(query).argmax(dim=-1)

    def nearness(self, query: Tensor) -> Tensor:
        """query [..., d] -> [..., V], the larger the nearer: half of what the squared distance lacks to |query|^2."""
        entries = self.entries.to(query.dtype)
        return query @ entries.t() - entries.square().sum(dim=1) / 2

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, T] -> [B, T, d]."""
        return F.embedding(codes, self.entries)

    @torch.no_grad()
    def follow(self, query: Tensor, index: Tensor, decay: float = 0.99, dead: float = 0.05) -> None:
        """Move entries towards the mean of the queries [N, d] that chose them, and those hardly chosen onto a query.

        dead: an entry is when it is chosen less than this share of what would be fair.
        """
        counts = torch.bincount(index, minlength=len(self.entries)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, query)
        spare = query[torch.randint(len(query), (len(self.entries),), device=query.device)]
        if dist.is_available() and dist.is_initialized():  # all ranks keep the same codebooks
            dist.all_reduce(counts)
            dist.all_reduce(sums)
            dist.broadcast(spare, 0)
        self.counts.lerp_(counts, 1 - decay)
        self.sums.lerp_(sums, 1 - decay)
        self.entries.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
        fair = counts.sum() / len(self.entries)
        rare = self.counts < dead * fair
        self.entries[rare] = spare[rare]
        self.counts[rare] = fair / 2
        self.sums[rare] = self.entries[rare] * fair / 2

    @torch.no_grad()
    def fit(self, query: Tensor, iterations: int = 10) -> None:
        """k-means on queries [N, d]; starts from queries drawn at random."""
        self.entries.copy_(query[torch.randint(len(query), (len(self.entries),), device=query.device)])
        for _ in range(iterations):
            self.follow(query, self.lookup(query), decay=0.0)

    @torch.no_grad()
    def expect(self, batch_frames: int) -> None:
        """Go on from these entries with batches of about this many frames, as if all entries had been chosen alike."""
        self.counts.fill_(batch_frames / len(self.entries))
        self.sums.copy_(self.entries * self.counts[:, None])


class ResidualVectorQuantizer(nn.Module):
    def __init__(self, dim: int, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.codebooks = nn.ModuleList(Codebook(dim, codebook_size) for _ in range(num_codebooks))

    def books(self) -> list[Codebook]:
        """The codebooks, typed."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def encode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """latent [B, T, d] -> codes [B, K, T], and where they hang by a rounding error [B, T] bool.

        There, another batch, chunk or machine could find the second nearest entry of a codebook to be the nearest.
        """
        codes, close = [], []
        moved = DOUBT * latent.norm(dim=-1)  # how far rounding on the way here may have moved the latent
        for codebook in self.books():
            two = codebook.nearness(latent).topk(2, dim=-1)
            index = two.indices[..., 0]
            nearest, second = codebook.decode(two.indices).unbind(dim=-2)
            slack = moved * (nearest - second).norm(dim=-1) + ROUNDING * latent.norm(dim=-1) * nearest.norm(dim=-1)
            close.append(two.values[..., 0] - two.values[..., 1] < slack)
            latent = latent - nearest
            codes.append(index)
        return torch.stack(codes, dim=1), torch.stack(close).any(dim=0)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K', T] of the K' leading codebooks -> latent [B, T, d]."""
        parts = [codebook.decode(index) for codebook, index in zip(self.books(), codes.unbind(1), strict=False)]
        return torch.stack(parts).sum(dim=0)

    def fit(self, latent: Tensor, batch_frames: int) -> None:
        """Fill the codebooks by residual k-means on latents [N, d]; later batches have about `batch_frames` frames."""
        for codebook in self.books():
            codebook.fit(latent)
            codebook.expect(batch_frames)
            latent = latent - codebook.decode(codebook.lookup(latent))

    def forward(self, latent: Tensor, dropout: float = 0.0) -> Quantized:
        """Training pass: gradients go straight through the lookup. dropout: share of rows cut to fewer codebooks."""
        batch, num_codebooks = latent.shape[0], len(self.codebooks)
        keep = torch.full((batch,), num_codebooks, device=latent.device)
        dropped = torch.rand(batch, device=latent.device) < dropout
        keep = torch.where(dropped, torch.randint(1, num_codebooks + 1, (batch,), device=latent.device), keep)

        residual, total = latent.detach(), torch.zeros_like(latent)
        commitment = latent.new_zeros(())
        codes, levels = [], []
        for k, codebook in enumerate(self.books()):
            used = keep > k  # [B]; every rank has at least its row 0 take part, or the others would wait for it
            used[0] = True
            index = codebook.lookup(residual)
            entry = codebook.decode(index)
            if self.training:
                codebook.follow(residual[used].flatten(0, 1), index[used].flatten())
            active = (keep > k)[:, None, None]  # [B, 1, 1]
            total, residual = total + entry * active, residual - entry
            # the latent is drawn to what its row's leading codebooks say of it
            commitment = commitment + (active * (latent - total) ** 2).mean()
            codes.append(index)
            levels.append(total)
        total, first = (latent + (x - latent).detach() for x in (total, levels[0]))
        return Quantized(total, first, torch.stack(codes, dim=1), commitment)
