"""From frames to the steps that the backbone takes: delays, BOS, EOS, packing.

A grid has a column for each frame: codes [B, K, T] and perhaps text [B, T], ABSENT where there is none. A column with
text alone comes before or after the audio, one with both is aligned text. Step s is predicted from the steps before it.
B batch, K codebooks, U of another speaker (user), T frames (columns), S steps, V codebook size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .delay_pattern import ABSENT
from .device import few_sizes, put
from .recent_tokens import recent_tokens
from .speech_lm_config import SpeechLMConfig

STEPS_OF_A_SIZE = 64  # see `few_sizes`: packed rows have a few steps more or less in every batch


@dataclass(frozen=True)
class Steps:
    """What goes in at each step and what is expected there."""

    inputs: Tensor  # [B, K + U, S] the codes of the step before, BOS at a start
    targets: Tensor  # [B, K, S] the codes of the step, EOS among codebook 0's
    text_inputs: Tensor | None  # [B, S]
    recent_inputs: Tensor | None  # [B, A, S] the text tokens that were told last (recent_tokens.py)
    text_targets: Tensor | None  # [B, S]
    documents: Tensor | None  # [B, S] for packed rows
    place: Tensor  # [B, T] the step of each frame when nothing lags; below 0: given, not predicted
    keys: Tensor | None = None  # [B] what is drawn for a row in training comes from its key (random_bits.py)

    def part(self, first: int, stop: int | None = None) -> "Steps":
        """Some of the steps; `place` stays that of all."""
        steps = slice(first, stop)
        of_steps = self.text_inputs, self.recent_inputs, self.text_targets, self.documents
        text, recent, text_targets, documents = (None if x is None else x[..., steps] for x in of_steps)
        inputs, targets = self.inputs[:, :, steps], self.targets[:, :, steps]
        return Steps(inputs, targets, text, recent, text_targets, documents, self.place, self.keys)


def arrange(
    config: SpeechLMConfig,
    codes: Tensor,
    ends: Tensor | None = None,
    text: Tensor | None = None,
    user: Tensor | None = None,
    documents: Tensor | None = None,
) -> Steps:
    """Frames -> steps. Everything is shifted by one step, and delayed codebooks further, in one place: here.

        delays (0, 1), frames a b c, EOS after c           step 0    1    2    3
                                 targets of codebook 0          a0   b0   c0   EOS
                                 targets of codebook 1          .    a1   b1   c1
                                 inputs of codebook 0           BOS  a0   b0   c0
                                 inputs of codebook 1           BOS  .    a1   b1

    ends: [B] bool, rows after whose last frame of audio EOS is expected; or [B, T] bool, the frames that are last.
    documents: [B, T] numbers, rising along a row: what belongs together in a packed row.
    """
    batch, num_codebooks, num_frames = codes.shape
    delays = put(config.delays, codes.device)
    longest = max(config.delays)
    extra = longest + (config.end == "eos" and config.delays[0] == longest)  # steps after the last frame
    place = torch.arange(num_frames, device=codes.device).expand(batch, -1)
    num_steps = num_frames + extra
    numbers = None
    if documents is not None:
        if not config.bos:
            raise ValueError("a model without BOS cannot tell packed documents apart; give one document for each row")
        numbers = F.pad((documents[:, 1:] != documents[:, :-1]).long(), (1, 0)).cumsum(dim=1)  # [B, T] 0, 0, 1, ...
        place = place + extra * numbers
        num_steps = few_sizes(int(place.max()) + 1 + extra, STEPS_OF_A_SIZE, codes.device)
    num_steps = max(num_steps, 2 - config.bos)  # a lone frame that is given has a step after it

    # where each code goes: its frame's place, later by its codebook's delay
    everything = codes if user is None else torch.cat([codes, user], dim=1)
    lags = delays if user is None else torch.cat([delays, delays[: user.shape[1]]])
    where = place[:, None] + lags[:, None]  # [B, K + U, T]
    steps = codes.new_full((batch, everything.shape[1], num_steps), ABSENT).scatter_(2, where, everything)
    text_steps = None
    if text is not None:
        text_steps = text.new_full((batch, num_steps), ABSENT).scatter_(1, place, text)
    starts = torch.zeros(batch, num_steps, dtype=torch.bool, device=codes.device)
    starts[:, 0] = True
    document_steps = None
    if numbers is not None:
        document_steps = torch.zeros_like(starts, dtype=torch.long).scatter_(1, place, numbers).cummax(dim=1).values
        starts[:, 1:] = document_steps[:, 1:] != document_steps[:, :-1]

    # a step's targets are its codes and the ends; its inputs are the step before, BOS at a start
    targets = steps[:, :num_codebooks].clone()
    if ends is not None and config.end == "eos":
        after = place + 1 + config.delays[0]
        is_end = torch.zeros_like(targets[:, 0], dtype=torch.bool).scatter_(1, after, scored_ends(config, codes, ends))
        targets[:, 0].masked_fill_(is_end, config.codebook_size)
    inputs = F.pad(steps[:, :, :-1], (1, 0), value=ABSENT)
    if config.gaps == "bos":
        inputs = inputs.masked_fill(inputs == ABSENT, config.codebook_size)
    inputs = inputs.masked_fill(starts[:, None], config.codebook_size)
    text_inputs = recent_inputs = None
    if text_steps is not None:
        start = config.text.vocab_size
        text_inputs = F.pad(text_steps[:, :-1], (1, 0), value=ABSENT).masked_fill(starts, start)
        if config.num_recent_tokens:
            recent_inputs = recent_tokens(text_inputs, config.num_recent_tokens, start)
    result = Steps(inputs, targets, text_inputs, recent_inputs, text_steps, document_steps, place)
    return result if config.bos else without_first(result)


def scored_ends(config: SpeechLMConfig, codes: Tensor, ends: Tensor | None) -> Tensor:
    """[B, T] bool: the frames after which EOS is scored. ends: as `arrange` takes them."""
    if ends is None or config.end != "eos":
        return torch.zeros_like(codes[:, 0], dtype=torch.bool)
    return ends if ends.ndim == 2 else last_frames(codes) & ends[:, None]


def given_first(place: Tensor, lags: Sequence[int], present: Tensor) -> Tensor:
    """[B, K, T] bool: what is present in the first step of a model without BOS, which nothing comes before.

    It has equal probabilities: log V nats each. So every token that is present is scored, whatever the model.
    """
    return (place[:, None] + put(lags, place.device)[:, None] < 0) & present


def scored_part(codes: Tensor, text: Tensor | None, given: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Codes [B, K, T] and text [B, T] without the columns that are given [B, T] bool: heard, and not scored."""
    if given is None:
        return codes, text
    return codes.masked_fill(given[:, None], ABSENT), None if text is None else text.masked_fill(given, ABSENT)


def num_scored(config: SpeechLMConfig, codes: Tensor, ends: Tensor | None, text: Tensor | None) -> Tensor:
    """Codes, ends and predicted text tokens of a batch, each of which is scored once. Arguments: as in `arrange`.

    Where columns are given: of the `scored_part`.
    """
    count = (codes != ABSENT).sum() + scored_ends(config, codes, ends).sum()
    if text is not None and config.text.vocab_size and config.text.predicted:
        count = count + (text != ABSENT).sum()
    return count


def without_first(steps: Steps) -> Steps:
    """For a model without BOS: the first step is given, and the second the first to be predicted."""
    return Steps(
        steps.inputs[:, :, 1:],
        steps.targets[:, :, 1:],
        None if steps.text_inputs is None else steps.text_inputs[:, 1:],
        None if steps.recent_inputs is None else steps.recent_inputs[:, :, 1:],
        None if steps.text_targets is None else steps.text_targets[:, 1:],
        steps.documents,
        steps.place - 1,
    )


def last_frames(codes: Tensor) -> Tensor:
    """codes [B, K, T] -> [B, T] bool: the last frame of each row that holds a code of codebook 0."""
    position = torch.arange(1, codes.shape[2] + 1, device=codes.device)
    present = (codes[:, 0] != ABSENT) * position
    return (present == present.amax(dim=1, keepdim=True)) & (present > 0)


def to_frames(values: Tensor, place: Tensor, delays: Sequence[int]) -> Tensor:
    """Values of each step [B, K, S, ...] -> of each frame [B, K, T, ...], 0 where a frame was given."""
    lags = put(delays, values.device)
    where = place[:, None] + lags[:, None]  # [B, K, T]
    shape = where.shape + (1,) * (values.ndim - 3)
    index = where.clamp_min(0).view(shape).expand(-1, -1, -1, *values.shape[3:])
    return values.gather(2, index).masked_fill((where < 0).view(shape), 0)
