"""Residual vector quantization: what is encoded is decoded, entries stay in use, gradients pass the lookup."""

import pytest
import torch
from torch import Tensor

from codeclm.model.codecs.rvq import ResidualVectorQuantizer

DIM, K, V = 6, 4, 16


def make_quantizer(seed: int = 0) -> ResidualVectorQuantizer:
    torch.manual_seed(seed)
    return ResidualVectorQuantizer(DIM, K, V, codebook_dim=3)


def latents(batch: int = 3, frames: int = 20, seed: int = 1) -> Tensor:
    return torch.randn(batch, frames, DIM, generator=torch.Generator().manual_seed(seed))


def test_each_codebook_quantizes_what_the_ones_before_it_left():
    quantizer, latent = make_quantizer(), latents()
    codes = quantizer.encode(latent)
    assert codes.shape == (3, K, 20)
    for k in range(1, K):
        left = latent - quantizer.decode(codes[:, :k])
        codebook = quantizer.codebooks[k]
        assert torch.equal(codebook.lookup(codebook.project_in(left)), codes[:, k])


def test_the_nearest_direction_wins_whatever_its_length():
    codebook = make_quantizer().codebooks[0]
    index = torch.arange(V)
    assert torch.equal(codebook.lookup(codebook.entries[index] * 7.5), index)


def test_training_and_encoding_choose_the_same_codes_and_latents():
    quantizer, latent = make_quantizer().eval(), latents()
    quantized = quantizer(latent)
    assert torch.equal(quantized.codes, quantizer.encode(latent))
    torch.testing.assert_close(quantized.latent, quantizer.decode(quantized.codes))


def test_gradients_pass_straight_through_the_lookup():
    quantizer, latent = make_quantizer().eval(), latents().requires_grad_()
    weight = torch.randn(3, 20, DIM)
    (quantizer(latent).latent * weight).sum().backward()
    assert latent.grad is not None and latent.grad.abs().sum() > 0
    for codebook in quantizer.codebooks:
        assert codebook.project_in.weight.grad.abs().sum() > 0
        assert codebook.project_out.weight.grad.abs().sum() > 0
        assert codebook.entries.grad is None  # entries learn from their own loss alone


def test_commitment_moves_the_encoder_and_codebook_loss_moves_the_entries():
    quantizer, latent = make_quantizer().eval(), latents().requires_grad_()
    quantized = quantizer(latent)
    (from_commitment,) = torch.autograd.grad(quantized.commitment, latent, retain_graph=True)
    assert from_commitment.abs().sum() > 0
    quantized.codebook.backward()
    assert all(codebook.entries.grad.abs().sum() > 0 for codebook in quantizer.codebooks)


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
    with torch.no_grad():
        codebook.entries[1:] = -codebook.entries[0]  # all but one coincide: argmax takes the first of them
    before = len(quantizer.encode(latent)[:, 0].unique())
    for _ in range(300):
        quantizer(latent)
    after = len(quantizer.encode(latent)[:, 0].unique())
    assert before <= 2
    assert after >= V - 2


def test_entries_stay_where_they_are_in_eval_mode():
    quantizer = make_quantizer().eval()
    entries = quantizer.codebooks[0].entries.detach().clone()
    for _ in range(300):
        quantizer(latents())
    assert torch.equal(quantizer.codebooks[0].entries, entries)


@pytest.mark.parametrize("k", range(1, K + 1))
def test_leading_codes_decode_alone(k: int):
    quantizer = make_quantizer()
    codes = quantizer.encode(latents())
    expected = sum(quantizer.codebooks[i].decode(codes[:, i]) for i in range(k))
    torch.testing.assert_close(quantizer.decode(codes[:, :k]), expected)
