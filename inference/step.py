"""One step of a generation: what each slot of it holds is known, given and scored, or drawn. B batch, C classes."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.delay_pattern import ABSENT
from ..model.flatten import TEXT
from ..model.lm import SpeechLM
from .grid import State
from .noise import Noise
from .sampling import BatchSampling, draw_again, recent_codes, sample
from .windows import Window


def can_end(model: SpeechLM, sampling: BatchSampling) -> bool:
    """Whether a row may end before the others, after which its codes are ABSENT."""
    return sampling.stop_at_end and model.config.end != "never"


@dataclass(frozen=True)
class Step:
    """One step of every row: what each slot of it holds is known, given and scored, or drawn."""

    model: SpeechLM
    state: State
    window: Window
    sampling: BatchSampling
    column: int  # that text and undelayed codebooks are at
    can_end: bool  # whether a row may end before the others
    scored: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # codebook -> logits and code

    def take(self, user: Tensor | None = None) -> None:
        """Let the walk take the step; what is drawn, and the nats of all that is scored, go into the state."""
        assert self.state.walk is not None
        self.state.walk.step(self.choose, self.known(), user)
        if self.scored:
            self.record()

    def known(self) -> dict[int, Tensor]:
        """Slots that need no logits, [B] each: what lies before the window's first frame, nothing beyond its edge."""
        state, window = self.state, self.window
        known = {}
        if state.text is not None:
            has_text = self.column < self.num_given or state.request.draw_text or state.request.new_text is not None
            if self.column >= window.stop or not has_text:
                known[TEXT] = self.absent
            elif self.column < self.num_given or not self.model.predicts_text:
                known[TEXT] = state.text[:, self.column]
        for k, lag in enumerate(self.model.config.delays):
            frame = self.column - lag
            is_inside = window.start <= frame < window.stop
            if not is_inside or k >= state.num_codebooks:  # as scoring has it: nothing is known beyond a window's edge
                known[k] = self.absent
            elif frame < window.first:
                known[k] = state.codes[:, k, frame]
            elif frame >= self.num_given and not state.request.draw_codes:
                known[k] = self.known_or(self.absent, k, frame)
        return known

    @cached_property
    def absent(self) -> Tensor:
        """[B] what a slot holds in which there is nothing."""
        return torch.full_like(self.state.end, ABSENT)

    @cached_property
    def num_given(self) -> int:
        """Columns whose content is given, or was drawn in the window before."""
        return max(self.window.first, self.state.num_prompt_frames)

    def choose(self, slot: int, logits: Tensor, guided: Tensor | None = None) -> Tensor:
        """[B] the value of a slot that is scored: given, or drawn from logits [B, C]; from `guided` in their place."""
        if slot == TEXT:
            return self.draw_text(logits)
        frame = self.column - self.model.config.delays[slot]
        # given: more of its surroundings is known than when the given columns alone were scored
        is_given = frame < self.num_given
        drawn_from = logits if guided is None else guided
        code = self.state.codes[:, slot, frame] if is_given else self.draw_code(slot, frame, drawn_from)
        self.scored[slot] = logits, code
        return code

    def draw_code(self, k: int, frame: int, logits: Tensor) -> Tensor:
        """[B] codes drawn from logits [B, C], where none is given; ABSENT, once a row has ended."""
        model, state, sampling = self.model, self.state, self.sampling
        choices = self.allowed(k, logits)
        noise = self.noise_for(choices, state.noise, k)
        drawn = sample(choices, noise, *sampling.codebooks[k])
        if k == 0 and sampling.repetition_frames:
            recent = recent_codes(state.codes[:, 0], frame, sampling)
            other = self.noise_for(choices, state.again_noise, 0)
            drawn = draw_again(drawn, recent, sampling.most_repeats, choices, other)
        drawn = self.known_or(drawn, k, frame)
        if self.can_end:
            if k == 0 and model.config.end == "eos":
                ends = (drawn == model.eos) & (frame < state.end)
                state.end = torch.where(ends, frame, state.end)
            drawn = torch.where(frame < state.end, drawn, ABSENT)
        return drawn

    def known_or(self, drawn: Tensor, k: int, frame: int) -> Tensor:
        """[B] the code of a new column where it is known, else the one that was drawn."""
        if self.state.request.new_codes is None:
            return drawn
        known = self.state.request.new_codes[:, k, frame - self.state.num_prompt_frames]
        return torch.where(known == ABSENT, drawn, known)

    def noise_for(self, choices: Tensor, noise: Noise, slot: int) -> Tensor:
        """[B, C] of this step, for choices [B, C]: some classes may have been cut off."""
        found = noise.at(self.column)[slot]
        return found if choices.shape[1] == found.shape[1] else found[:, : choices.shape[1]]

    def allowed(self, k: int, logits: Tensor) -> Tensor:
        """logits [B, C] without an unwanted end, and without codes that the codec does not have."""
        size = self.model.codebook_size
        num_codes = min(size, self.state.request.num_codes or size)
        has_end = k == 0 and self.model.config.end == "eos"
        endless, pacing = self.sampling.endless, self.state.pacing
        if pacing is not None and has_end:
            endless = pacing.is_saying[:, None] if endless is None else endless | pacing.is_saying[:, None]
        if has_end and self.can_end and (num_codes < size or endless is not None):
            choices = logits.clone()
            choices[:, num_codes:size] = float("-inf")
            if endless is not None:
                choices[:, size:].masked_fill_(endless, float("-inf"))
            return choices
        if num_codes == size and (self.can_end or not has_end):
            return logits
        return logits[:, :num_codes]

    def record(self) -> None:
        """The codes of the step and their nats, into the state."""
        state, delays = self.state, self.model.config.delays
        first, *others = self.scored
        codes = {k: code for k, (_, code) in self.scored.items()}
        costs = {first: nats(*self.scored[first], state)}
        if others:  # all in one call: they have equally many classes
            logits = torch.stack([self.scored[k][0] for k in others], dim=1).flatten(0, 1)
            cost = nats(logits, torch.stack([codes[k] for k in others], dim=1).flatten(), state)
            costs |= zip(others, cost.view(-1, len(others)).unbind(1), strict=True)
        if len(costs) == state.codes.shape[1] and not any(delays):  # the usual case, with fewer calls
            state.codes[:, :, self.column] = torch.stack(list(codes.values()), dim=1)
            state.nll[:, :, self.column] = torch.stack(list(costs.values()), dim=1)
            costs = {}
        for k, cost in costs.items():
            state.codes[:, k, self.column - delays[k]] = codes[k]
            state.nll[:, k, self.column - delays[k]] = cost
        frame = self.column - max(delays[: state.num_codebooks])
        if self.can_end and self.model.config.end == "zeros" and frame >= self.num_given:
            state.end = torch.where(self.ends_at(frame), frame, state.end)

    def ends_at(self, frame: int) -> Tensor:
        """[B] whether a row ends where a frame is zeros, in all codebooks that are drawn."""
        codes = self.state.codes[:, :, frame]
        is_zero = (codes <= 0).all(dim=1) & (codes[:, 0] == 0) & (frame < self.state.end)
        return is_zero if self.sampling.endless is None else is_zero & ~self.sampling.endless.squeeze(1)

    def draw_text(self, logits: Tensor) -> Tensor:
        """[B] the text of a new column, drawn if it is not known."""
        state, request, column = self.state, self.state.request, self.column
        assert state.text is not None and state.text_nll is not None
        if request.draw_text:
            state.text[:, column] = self.new_text(logits)
        token = state.text[:, column]
        state.text_nll[:, column] = nats(logits, token, state)
        if request.text_end is not None and not request.draw_codes:
            state.end = torch.where(token == request.text_end, column + 1, state.end)
        return token

    def new_text(self, logits: Tensor) -> Tensor:
        """[B] text drawn from logits [B, C]; ABSENT, once a row has ended."""
        assert self.state.text_noise is not None
        (noise,) = self.state.text_noise.at(self.column)
        pacing = self.state.pacing
        choices = logits if pacing is None else pacing.allowed(logits)
        drawn = torch.where(self.column < self.state.end, sample(choices, noise, *self.sampling.text), ABSENT)
        if pacing is not None:
            pacing.take(drawn)
        return drawn


def nats(logits: Tensor, values: Tensor, state: State) -> Tensor:
    """[B] the cost of values, 0 where they are ABSENT."""
    return F.cross_entropy(logits.to(state.nll.dtype), values, ignore_index=ABSENT, reduction="none")
