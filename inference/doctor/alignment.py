"""Whether a trained model predicts the frame that it should, on speech: codes out of step must cost more.

Labels that were shifted in training leave a curve that falls and a model that makes noise. K codebooks, T frames.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ...data.split import first_by_hash
from ...data.token_store import TokenStore
from ...model.lm import SpeechLM
from ..verify.findings import NotApplicable
from ..verify.generation import check_shifts
from .findings import Examination

SHIFTS = (-2, -1, 0, 1, 2)  # frames
MARGIN = max(SHIFTS)
FRAMES = 2000  # held-out frames that are looked at
SURE = 0.01  # share of the bits by which another shift must be better


@torch.inference_mode()
def shift_bits(model: SpeechLM, store: TokenStore, indices: list[int]) -> dict[int, float]:
    """Shift -> bits of codebook 0, where the prediction for a frame is compared with the frame `shift` later."""
    nats, num_frames = dict.fromkeys(SHIFTS, 0.0), 0
    for i in indices:
        codes = torch.from_numpy(store.codes(i)[: model.config.context_frames].T.astype(np.int64)).to(model.device)
        last = codes.shape[1] - MARGIN
        if last <= MARGIN:
            continue
        logits = model(codes[None], return_logits=True).logits
        for shift in SHIFTS:
            nats[shift] += float(shifted_nats(logits[:, :1], codes[None, :1], shift).sum())
        num_frames += last - MARGIN
    return {shift: value / max(1, num_frames) / math.log(2) for shift, value in nats.items()}


def shifted_nats(logits: Tensor, codes: Tensor, shift: int) -> Tensor:
    """logits [B, K, T, V], codes [B, K, T] -> nats of the codes `shift` frames after each prediction, as one row.

    The same frames are predicted whatever the shift; where a code is absent on either side there is no number.
    """
    last = codes.shape[2] - MARGIN
    targets = codes[..., MARGIN + shift : last + shift]
    log_p = logits[..., MARGIN:last, :].float().log_softmax(dim=-1)
    present = (targets >= 0) & (codes[..., MARGIN:last] >= 0)
    return -log_p.gather(-1, targets.clamp_min(0)[..., None])[..., 0][present]


@torch.no_grad()
def examine_alignment(model: SpeechLM, store: TokenStore, heldout: list[int], seen: Examination) -> None:
    chosen = first_by_hash(store, heldout, FRAMES)
    bits = shift_bits(model, store, chosen)
    seen.facts["bits_by_shift"] = bits
    best = min(SHIFTS, key=lambda shift: bits[shift])
    if best and bits[best] < (1 - SURE) * bits[0]:
        found = f"what it predicts for a frame fits the frame {abs(best)} {'later' if best > 0 else 'earlier'}: "
        found += f"{bits[best]:.2f} bits of codebook 0, {bits[0]:.2f} in place"
        advice = "the labels were shifted in training: run codeclm verify, mend the data or the code, and train again"
        seen.error("misaligned", found, advice)
        return
    own = ", ".join(f"{shift:+d}: {bits[shift]:.2f}" for shift in SHIFTS if shift)
    seen.lines.append(("alignment", f"codebook 0 costs {bits[0]:.2f} bits in place; shifted by frames {own}"))
    longest = max(chosen, key=lambda i: store.num_frames[i])
    try:
        problem = check_shifts(model, torch.from_numpy(store.codes(longest).T.astype(np.int64))).problem
    except NotApplicable:
        return
    if problem:
        advice = "the codebooks were out of step in training: run codeclm verify"
        seen.error("misaligned", problem, advice)
