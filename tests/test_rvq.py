"""Residual vector quantization: what is encoded is decoded, entries follow the data, gradients pass the lookup."""

import pytest
import torch
from torch import Tensor

from codeclm.model.codecs.rvq import ResidualVectorQuantizer

DIM, K, V = 6, 4, 16


def make_quantizer(seed: int = 0) -> ResidualVectorQuantizer:
    torch.manual_seed(seed)
    return ResidualVectorQuantizer(DIM, K, V)


def latents(batch: int = 3, frames: int = 20, seed: int = 1) -> Tensor:
    return torch.randn(batch, frames, DIM, generator=torch.Generator().manual_seed(seed))


def test_each_codebook_quantizes_what_the_ones_before_it_left():
    quantizer, latent = make_quantizer(), latents()
    codes, _ = quantizer.encode(latent)
    assert codes.shape == (3, K, 20)
    for k in range(1, K):
        left = latent - quantizer.decode(codes[:, :k])
        codebook = quantizer.codebooks[k]
        assert torch.equal(codebook.lookup(left), codes[:, k])


def test_the_nearest_entry_wins():
    codebook, latent = make_quantizer().codebooks[0], latents()
    distance = (latent[..., None, :] - codebook.entries).square().sum(dim=-1)  # [B, T, V]
    assert torch.equal(codebook.lookup(latent), distance.argmin(dim=-1))


def test_training_and_encoding_choose_the_same_codes_and_latents():
    quantizer, latent = make_quantizer().eval(), latents()
    quantized = quantizer(latent)
    assert torch.equal(quantized.codes, quantizer.encode(latent)[0])
    torch.testing.assert_close(quantized.latent, quantizer.decode(quantized.codes))


def test_gradients_pass_straight_through_the_lookup():
    quantizer, latent = make_quantizer().eval(), latents().requires_grad_()
    weight = torch.randn(3, 20, DIM)
    quantized = quantizer(latent)
    for output in (quantized.latent, quantized.first):
        (gradient,) = torch.autograd.grad((output * weight).sum(), latent, retain_graph=True)
        torch.testing.assert_close(gradient, weight)


def test_commitment_draws_the_latent_to_what_the_codes_say():
    quantizer, latent = make_quantizer().eval(), latents().requires_grad_()
    quantized = quantizer(latent)
    (gradient,) = torch.autograd.grad(quantized.commitment, latent)
    partial = torch.stack([quantizer.decode(quantized.codes[:, : k + 1]) for k in range(K)])
    expected = 2 * (latent - partial).sum(dim=0) / latent.numel()
    torch.testing.assert_close(gradient, expected)


def test_codebook_0_alone_is_what_its_code_says():
    quantizer, latent = make_quantizer().eval(), latents()
    quantized = quantizer(latent)
    torch.testing.assert_close(quantized.first, quantizer.decode(quantized.codes[:, :1]))


def test_k_means_leaves_less_with_each_codebook_and_uses_every_entry():
    quantizer, latent = make_quantizer(), torch.randn(2000, DIM, generator=torch.Generator().manual_seed(2))
    quantizer.fit(latent, batch_frames=100)
    codes, _ = quantizer.encode(latent[None])
    left = [(latent - quantizer.decode(codes[:, :k])[0]).square().mean() for k in range(1, K + 1)]
    assert left[0] < 0.6 * latent.square().mean()
    assert all(after < 0.8 * before for before, after in zip(left[:-1], left[1:], strict=True))
    assert all(len(row.unique()) == V for row in codes[0])


def test_entries_move_to_the_mean_of_what_chooses_them():
    codebook = make_quantizer().codebooks[0]
    centres = 10 * torch.randn(V, DIM, generator=torch.Generator().manual_seed(3))
    codebook.entries.copy_(centres + 0.5)
    codebook.sums.copy_(codebook.entries)
    queries = centres.repeat(20, 1)
    for _ in range(1500):
        codebook.follow(queries, codebook.lookup(queries))
    torch.testing.assert_close(codebook.entries, centres, atol=0.01, rtol=0)


def test_dropout_cuts_rows_to_fewer_leading_codebooks():
    quantizer, latent = make_quantizer().eval(), latents(batch=64)
    torch.manual_seed(0)
    dropped = quantizer(latent, dropout=1.0)
    partial = torch.stack([quantizer.decode(dropped.codes[:, : k + 1]) for k in range(K)])  # [K, B, T, D]
    distance = (partial - dropped.latent).abs().amax(dim=(2, 3))  # [K, B]
    assert distance.min(dim=0).values.max() < 1e-5
    assert set(distance.argmin(dim=0).tolist()) == set(range(K))
    assert torch.equal(quantizer(latent, dropout=0.0).latent, quantizer(latent).latent)


def test_entries_that_nothing_chooses_are_moved_onto_the_batch():
    quantizer, latent = make_quantizer().train(), latents(batch=8, frames=64)
    codebook = quantizer.codebooks[0]
    codebook.entries[1:] = 100.0  # far from every latent
    codebook.sums.copy_(codebook.entries)
    before = len(quantizer.encode(latent)[0][:, 0].unique())
    for _ in range(300):
        quantizer(latent)
    after = len(quantizer.encode(latent)[0][:, 0].unique())
    assert before <= 2
    assert after == V


def test_entries_stay_where_they_are_in_eval_mode():
    quantizer = make_quantizer().eval()
    entries = quantizer.codebooks[0].entries.clone()
    for _ in range(3):
        quantizer(latents())
    assert torch.equal(quantizer.codebooks[0].entries, entries)


@pytest.mark.parametrize("k", range(1, K + 1))
def test_leading_codes_decode_alone(k: int):
    quantizer = make_quantizer()
    codes, _ = quantizer.encode(latents())
    expected = sum(quantizer.codebooks[i].decode(codes[:, i]) for i in range(k))
    torch.testing.assert_close(quantizer.decode(codes[:, :k]), expected)
