"""Codes <-> bytes with a speech LM's own probabilities: the size of the bytes proves the bits that the model claims.

Every code is arithmetic-coded with the distribution that the model gives it, step by step, when everything before it is
known. A distribution keeps all its classes, EOS too, so the size is the number of bits that `codeclm evaluate` counts.
windows.py decides how far a frame looks back. The first step of a model without BOS has equal probabilities, as in
SpeechLM.forward. Codes alone are compressed: no text, no other speaker. B rows, K codebooks, T frames.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.progress import progress_bar
from ...model.check_inputs import check_inputs
from ...model.delay_pattern import ABSENT, delay
from ...model.flatten import TEXT
from ...model.lm import SpeechLM
from ...model.walk import Walk
from ..labelled import as_labelled
from ..windows import Window, each_window, window_frames, windows
from .arithmetic import Decoder, Distributions, Encoder, distributions

# (row, codebook, frame, distributions, index into these) -> the code there
Coder = Callable[[int, int, int, Distributions, int], int]


def compress_codes(
    model: SpeechLM, utterances: Sequence[Tensor], batch_size: int = 1, progress: bool = False
) -> list[bytes]:
    """Codes [K, T] of each utterance -> the bytes of each.

    Raises ValueError for codes that are not this model's, or a model that is not in float64: in float32 the
    probabilities of another batch size or machine differ too much for `decompress_codes`.
    """
    require_float64(model)
    for codes in utterances:
        check_inputs(model.config, codes[None])
        if int(codes.min()) == ABSENT:
            raise ValueError("codes hold -1 (absent), which cannot be compressed")
    payloads = []
    for first in range(0, len(utterances), batch_size):
        batch = [codes.tolist() for codes in utterances[first : first + batch_size]]
        encoders = [Encoder() for _ in batch]

        def encode(row: int, k: int, frame: int, source: Distributions, index: int, batch=batch, to=encoders) -> int:
            to[row].encode_from(batch[row][k][frame], source, index)
            return batch[row][k][frame]

        code_rows(model, [len(codes[0]) for codes in batch], encode, "compress" if progress else "")
        payloads += [encoder.finish() for encoder in encoders]
    return payloads


def decompress_codes(
    model: SpeechLM, payloads: Sequence[bytes], num_frames: Sequence[int], batch_size: int = 1, progress: bool = False
) -> list[Tensor]:
    """The inverse of `compress_codes`, with any batch size: the bytes and frames of each utterance -> codes [K, T].

    Raises ValueError for damaged bytes where the damage shows, or a model that is not in float64.
    """
    require_float64(model)
    utterances = []
    for first in range(0, len(payloads), batch_size):
        decoders = [Decoder(payload) for payload in payloads[first : first + batch_size]]

        def decode(row: int, k: int, frame: int, source: Distributions, index: int, decoders=decoders) -> int:
            code = decoders[row].decode_from(source, index)
            if code >= model.codebook_size:  # EOS, which is never encoded
                raise ValueError("the coded data are damaged")
            return code

        lengths = list(num_frames[first : first + batch_size])
        utterances += code_rows(model, lengths, decode, "decompress" if progress else "")
    return utterances


@torch.inference_mode()
def predicted_bits(model: SpeechLM, codes: Tensor) -> float:
    """The bits that `codeclm evaluate` counts for codes [K, T]."""
    nats = 0.0
    for window in windows(codes.shape[1], window_frames(model.config)):
        with as_labelled(model):
            output = model(codes[None, :, window.start : window.stop].to(model.device))
        nats += float(output.nll[0, :, window.first - window.start :].double().sum())
    return nats / math.log(2)


def require_float64(model: SpeechLM) -> None:
    if model.dtype != torch.float64:
        raise ValueError(f"the model is in {model.dtype}; compression needs float64: call model.double()")


@torch.inference_mode()
def code_rows(model: SpeechLM, num_frames: list[int], coder: Coder, title: str = "") -> list[Tensor]:
    """Walk through rows of `num_frames` frames, asking `coder` for every code -> the codes [K, T] of each row.

    The codes take memory as they come: a damaged file may claim any number of frames.
    title: the progress bar's; "": no bar.
    """
    longest, context = max(num_frames), window_frames(model.config)
    rows = _Rows(model, num_frames, torch.full((len(num_frames), model.num_codebooks, 0), ABSENT), coder)
    total = longest + num_windows(longest, context) * max(model.config.delays)
    with progress_bar(total=total, unit="frame", desc=title, disable=not title) as bar, as_labelled(model):
        for window in each_window(longest, context):
            for _ in rows.walk(window):
                bar.update()
    return [codes[:, :length] for codes, length in zip(rows.codes, num_frames, strict=True)]


def num_windows(num_frames: int, context_frames: int) -> int:
    """The number of windows of `windows(num_frames, context_frames)`, without making them."""
    return 1 + max(0, -(-(num_frames - context_frames) // (context_frames - context_frames // 2)))


@dataclass
class _Rows:
    model: SpeechLM
    num_frames: list[int]
    codes: Tensor  # [B, K, T so far, and some], ABSENT where the coder has not been asked yet
    coder: Coder

    def walk(self, window: Window) -> Iterator[None]:
        """Take the rows that reach into a window through its steps, one at a time."""
        rows = [row for row, length in enumerate(self.num_frames) if length > window.first]
        model, delays = self.model, self.model.config.delays
        num_steps = window.stop - window.start + max(delays)
        first_step = window.first - window.start
        walk = Walk(model, len(rows), num_steps)
        before = delay(self.codes[rows, :, window.start : window.first], delays)[:, :, :first_step]
        if not first_step and not model.config.bos:
            equal = torch.zeros(len(rows), model.codebook_size)
            known = self.known(rows, window, 0)
            first = [known[k] if k in known else self.code(rows, window, k, 0, equal) for k in range(len(delays))]
            before, first_step = torch.stack(first, dim=1)[:, :, None], 1
            yield
        if first_step:
            walk.prefill(before.to(model.device))
        for step in range(first_step, num_steps):

            def choose(slot: int, logits: Tensor, step: int = step) -> Tensor:
                return self.code(rows, window, slot, step, logits).to(model.device)

            known = self.known(rows, window, step)
            walk.step(choose, {slot: values.to(model.device) for slot, values in known.items()})
            yield

    def known(self, rows: list[int], window: Window, step: int) -> dict[int, Tensor]:
        """Slots of a step that need no logits, [rows] each: codes from before the window, nothing beyond its edge."""
        absent = torch.full((len(rows),), ABSENT)
        known = {TEXT: absent}
        for k, lag in enumerate(self.model.config.delays):
            frame = window.start + step - lag
            if not window.start <= frame < window.stop:
                known[k] = absent
            elif frame < window.first:
                known[k] = self.codes[rows, k, frame]
        return known

    def code(self, rows: list[int], window: Window, k: int, step: int, logits: Tensor) -> Tensor:
        """Ask the coder for codebook k at a step of a window -> its codes [rows]."""
        frame = window.start + step - self.model.config.delays[k]
        if frame >= self.codes.shape[2]:
            self.codes = F.pad(self.codes, (0, max(64, frame)), value=ABSENT)
        asked = [place for place, row in enumerate(rows) if frame < self.num_frames[row]]
        source = distributions(logits.double().cpu()[asked].numpy())
        for index, place in enumerate(asked):
            self.codes[rows[place], k, frame] = self.coder(rows[place], k, frame, source, index)
        return self.codes[rows, k, frame]
