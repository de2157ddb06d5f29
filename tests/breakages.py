"""Ways to break a model, and which checks of inference/verify must notice each, and which must not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

import codeclm.inference.engine as engine
import codeclm.inference.evaluate.score as score
import codeclm.inference.fused_block as fused_block
import codeclm.inference.fused_weights as fused_weights
import codeclm.model.attention as attention
import codeclm.model.depth as depth
import codeclm.model.layout as steps
import codeclm.model.lm as lm
import codeclm.model.transformer as transformer
from codeclm.inference.fused_weights import Fused
from codeclm.inference.windows import Window
from codeclm.model import SpeechLM, SpeechLMConfig
from codeclm.model.chunked_backward import _ChunkedSum
from codeclm.model.delay_pattern import ABSENT
from codeclm.model.depth import DepthDecoder
from codeclm.model.losses import Weights
from codeclm.model.recent_tokens import RecentTokens
from codeclm.model.shapes import TextConfig
from codeclm.model.transformer import KVCache
from codeclm.model.walk import FrameFeed, Walk

Break = Callable[[pytest.MonkeyPatch], None]


def break_arrange(change: Callable[..., steps.Steps]) -> Break:
    """change(steps, config, codes) -> other steps, in the forward pass alone."""

    def breaks(patch: pytest.MonkeyPatch) -> None:
        real = lm.arrange
        patch.setattr(lm, "arrange", lambda config, codes, *rest: change(real(config, codes, *rest), config, codes))

    return breaks


def shift_targets(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, targets=torch.nn.functional.pad(laid.targets[:, :, 1:], (0, 1), value=ABSENT))


def drop_tail(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    targets = laid.targets.clone()
    targets[:, 1:, codes.shape[2] :] = ABSENT
    return replace(laid, targets=targets)


def leak_frame(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, inputs=laid.targets.masked_fill(laid.targets == config.codebook_size, ABSENT))


def forget_end(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    return replace(laid, targets=laid.targets.masked_fill(laid.targets == config.codebook_size, ABSENT))


def hear_user_early(laid: steps.Steps, config: SpeechLMConfig, codes: Tensor) -> steps.Steps:
    ours, theirs = laid.inputs[:, : config.num_codebooks], laid.inputs[:, config.num_codebooks :]
    return replace(laid, inputs=torch.cat([ours, torch.nn.functional.pad(theirs[:, :, 1:], (0, 1), value=ABSENT)], 1))


def delay_hidden_states(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.contexts

    def late(self: SpeechLM, laid: steps.Steps) -> lm.Contexts:
        x = torch.nn.functional.pad(real(self, laid).first, (0, 0, 1, -1))
        return lm.Contexts(x, x, x[:, :, None])

    patch.setattr(SpeechLM, "contexts", late)


def leak_in_step(patch: pytest.MonkeyPatch) -> None:
    """Each position of the depth decoder is given the code that it predicts."""
    real = DepthDecoder.codes_in
    patch.setattr(DepthDecoder, "codes_in", lambda self, codes: real(self, codes.roll(-1, dims=1)))


def see_the_future(patch: pytest.MonkeyPatch) -> None:
    def mask(implementation: str, seen: Any, like: Tensor) -> Tensor:
        return torch.ones(1, 1, seen.num_queries, seen.num_positions, dtype=torch.bool)

    patch.setattr(attention, "prepare_mask", mask)


def ignore_documents(patch: pytest.MonkeyPatch) -> None:
    real = transformer.prepare
    patch.setattr(transformer, "prepare", lambda how, seen, *rest: real(how, replace(seen, documents=None), *rest))


def end_another_document(patch: pytest.MonkeyPatch) -> None:
    def other(values: Tensor, documents: Tensor | None) -> Tensor:
        sums = real(values, documents)
        return sums if documents is None else sums.roll(1, dims=1)

    real = lm.for_each_document
    patch.setattr(lm, "for_each_document", other)


def write_cache_too_early(patch: pytest.MonkeyPatch) -> None:
    real = KVCache.append

    def append(self: KVCache, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        length, end = self.length, self.length + key.shape[2]
        self.length = max(length - 1, 0)
        real(self, layer, key, value)
        self.length = length
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    patch.setattr(KVCache, "append", append)


def turn_cached_positions_too_little(patch: pytest.MonkeyPatch) -> None:
    real = transformer.rotary_tables
    patch.setattr(
        transformer, "rotary_tables", lambda places, *rest: real(places - int(len(places) < 3 < places[-1]), *rest)
    )


def score_padding(patch: pytest.MonkeyPatch) -> None:
    real = lm.cross_entropy
    for module in (lm, depth):
        patch.setattr(module, "cross_entropy", lambda logits, targets, z=0.0: real(logits, targets.clamp_min(0), z))


def end_after_the_padding(patch: pytest.MonkeyPatch) -> None:
    def last_frames(codes: Tensor) -> Tensor:
        last = torch.zeros_like(codes[:, 0], dtype=torch.bool)
        last[:, -1] = True
        return last

    patch.setattr(steps, "last_frames", last_frames)


def leave_end_out_of_the_softmax(patch: pytest.MonkeyPatch) -> None:
    def without_end(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        nll, penalty = real(logits[..., :3], torch.where(targets == 3, ABSENT, targets), z_loss)
        return torch.where(targets == 3, real(logits, targets)[0], nll), penalty

    real = lm.cross_entropy
    patch.setattr(lm, "cross_entropy", without_end)


def keep_depth_cache(patch: pytest.MonkeyPatch) -> None:
    real = Walk._depth_logits

    def logits(self: Walk, context: Tensor, slot: int) -> Tensor:
        if self._depth_cache is None:
            self._depth_cache = getattr(self, "kept", None)
            self._condition = self.model.depth_decoder.condition(context)
        found = real(self, context, slot)
        self.kept = self._depth_cache  # type: ignore[attr-defined]
        return found

    patch.setattr(Walk, "_depth_logits", logits)


def swap_gate_and_up(patch: pytest.MonkeyPatch) -> None:
    real = fused_block.make_gate
    patch.setattr(fused_block, "make_gate", lambda gate, up, kind: real(up, gate, kind))
    patch.setattr(fused_weights, "kept", WeakKeyDictionary())  # those of the model while it was whole


def read_other_rows(patch: pytest.MonkeyPatch) -> None:
    real = fused_weights.fuse

    def fuse(model: SpeechLM, kind: type) -> Fused:
        fused, size = real(model, kind), model.codebook_size + 1
        return fused._replace(tables=torch.cat([fused.tables[:size], fused.tables[:-size]]))

    patch.setattr(fused_weights, "kept", WeakKeyDictionary())
    patch.setattr(fused_weights, "fuse", fuse)


def scale_single_steps(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.embed_frames

    def embed(self: SpeechLM, codes: Tensor, *text: Tensor | None) -> Tensor:
        return real(self, codes, *text) * (4.0 if codes.shape[2] == 1 else 1.0)

    patch.setattr(SpeechLM, "embed_frames", embed)


def ignore_user_when_stepping(patch: pytest.MonkeyPatch) -> None:
    real = Walk.step
    patch.setattr(Walk, "step", lambda self, choose, known=None, user=None: real(self, choose, known))


def ignore_gaps_when_stepping(patch: pytest.MonkeyPatch) -> None:
    real = FrameFeed.finish

    def finish(self: FrameFeed, values: dict[int, Tensor], user: Tensor | None) -> None:
        real(self, values, user)
        self.codes = torch.stack([values[k] for k in range(self.model.num_codebooks)], dim=1)

    patch.setattr(FrameFeed, "finish", finish)


def detach_depth_loss(patch: pytest.MonkeyPatch) -> None:
    real = lm.depth_loss

    def detached(*rest: Any) -> tuple[Tensor, Tensor | None]:
        nats, nll = real(*rest)
        return nats.detach(), nll

    patch.setattr(lm, "depth_loss", detached)


def detach_text(patch: pytest.MonkeyPatch) -> None:
    real = SpeechLM.text_logits
    patch.setattr(SpeechLM, "text_logits", lambda self, context: real(self, context).detach())


def lose_gradient_of_chunks(patch: pytest.MonkeyPatch) -> None:
    real = _ChunkedSum.backward

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, second, context, *parameters = real(ctx, *grads)
        return first, second, torch.zeros_like(context), *parameters  # type: ignore[arg-type]

    patch.setattr(_ChunkedSum, "backward", staticmethod(backward))


def weigh_the_next_codebook(patch: pytest.MonkeyPatch) -> None:
    real = Weights.of
    patch.setattr(Weights, "of", lambda self, *rest: real(self, *rest).roll(1))


def generate_with_another_context(patch: pytest.MonkeyPatch) -> None:
    real = engine.each_window
    patch.setattr(engine, "each_window", lambda num_frames, context: real(num_frames, context + 2))


def forget_the_first_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lm, "given_first", lambda place, lags, present: torch.zeros_like(present))


def end_in_the_full_window(patch: pytest.MonkeyPatch) -> None:
    """Scoring takes EOS in the window of the last frame, though generation draws it in the next one."""
    real = score.windows

    def windows(num_frames: int, context_frames: int, last: int | None = None) -> list[Window]:
        found = real(num_frames, context_frames)
        return [replace(window, ends=last is not None and window.first <= last < window.stop) for window in found]

    patch.setattr(score, "windows", windows)


def stay_at_the_token_when_stepping(patch: pytest.MonkeyPatch) -> None:
    """A step is told the recent tokens of the step before."""
    real, told = RecentTokens.take, WeakKeyDictionary[RecentTokens, Tensor]()

    def late(self: RecentTokens, text: Tensor) -> Tensor:
        found = told.get(self)
        told[self] = real(self, text)
        return torch.full_like(told[self], ABSENT) if found is None else found

    patch.setattr(RecentTokens, "take", late)


def tell_the_token_before(patch: pytest.MonkeyPatch) -> None:
    """The whole text is told with tokens one earlier than it is step by step."""
    real = steps.recent_tokens
    patch.setattr(steps, "recent_tokens", lambda text, count, start: real(text, count + 1, start)[:, :-1])


def draw_beyond_the_edge(patch: pytest.MonkeyPatch) -> None:
    """Codebook 0 goes on beyond the last frame, so that lagging codebooks see what scoring does not."""
    real = engine.Step.known

    def known(self: engine.Step) -> dict[int, Tensor]:
        beyond = self.column - self.model.config.delays[0] >= self.window.stop
        return real(self) | ({0: torch.zeros_like(self.state.end)} if beyond else {})

    patch.setattr(engine.Step, "known", known)


PLAIN: dict[str, Any] = {}
DELAYED: dict[str, Any] = {"delays": (0, 1, 2)}
WITH_TEXT: dict[str, Any] = {"text": TextConfig(5, tied=True)}
TOLD_AHEAD: dict[str, Any] = {"text": TextConfig(5, layout="timed", lookahead=2)}
FLAT: dict[str, Any] = {"pattern": "flatten"}
COMPUTED = {"steps", "chunks", "windows"}  # one step at a time

# name: how it is broken, in which model, the checks that must fail, and those that must not
BROKEN: dict[str, tuple[Break, dict[str, Any], set[str], set[str]]] = {
    "targets shifted by one": (
        break_arrange(shift_targets), DELAYED, {"every code", "steps", "causality"}, {"padding"},
    ),
    "hidden states off by one": (
        delay_hidden_states, PLAIN, {"steps", "causality"}, {"every code", "padding"},
    ),
    "tail of the delays dropped": (
        break_arrange(drop_tail), DELAYED, {"every code", "steps"}, {"causality", "gradients"},
    ),
    "current frame leaks": (
        break_arrange(leak_frame), PLAIN, {"causality", "distribution"}, {"padding", "every code", "slope"},
    ),
    "current frame leaks, heads": (
        break_arrange(leak_frame), {"pattern": "delay"}, {"causality", "distribution"}, {"padding", "every code"},
    ),
    "code leaks in the depth decoder": (
        leak_in_step, PLAIN, {"distribution", "causality", "steps"}, {"padding", "packing"},
    ),
    "attention sees the future": (see_the_future, FLAT, {"causality"} | COMPUTED, {"every code", "slope"}),
    "document mask ignored": (
        ignore_documents, PLAIN, {"packing", "windows"}, {"steps", "chunks", "causality", "padding", "every code"},
    ),
    "document mask ignored, flat": (
        ignore_documents, FLAT, {"packing", "windows"}, {"steps", "chunks", "causality", "padding"},
    ),
    "EOS of another document": (
        end_another_document, PLAIN, {"packing", "windows"}, {"every code", "padding", "steps"},
    ),
    "user heard too early": (
        break_arrange(hear_user_early), {"user_codebooks": 2}, {"causality", "steps"}, {"padding", "every code"},
    ),
    "padding scored": (score_padding, DELAYED, {"padding", "every code"}, {"causality"}),
    "EOS after the padding": (end_after_the_padding, PLAIN, {"padding", "steps"}, {"causality", "every code"}),
    "EOS unscored": (
        break_arrange(forget_end), PLAIN, {"every code", "steps", "distribution"}, {"causality", "padding"},
    ),
    "EOS left out of the softmax": (
        leave_end_out_of_the_softmax, PLAIN, {"distribution", "every code"}, {"causality", "padding", "packing"},
    ),
    "cache off by one": (
        write_cache_too_early, PLAIN, COMPUTED, {"causality", "distribution", "padding", "packing", "every code"},
    ),
    "cached positions off by one": (
        turn_cached_positions_too_little, PLAIN, COMPUTED, {"causality", "padding", "packing", "every code"},
    ),
    "depth cache not reset": (keep_depth_cache, PLAIN, {"steps"}, {"causality", "every code", "padding"}),
    "embeddings scaled when stepping": (
        scale_single_steps, PLAIN, {"steps", "windows"}, {"causality", "every code", "padding", "packing"},
    ),
    "a weight of the frame step is another's": (
        swap_gate_and_up, PLAIN, {"steps", "windows"}, {"causality", "every code", "padding", "chunks"},
    ),
    "the frame step's rows of codes are another codebook's": (
        read_other_rows, PLAIN, {"steps", "windows"}, {"causality", "every code", "padding", "chunks"},
    ),
    "user not heard when stepping": (
        ignore_user_when_stepping, DELAYED | {"user_codebooks": 2}, {"steps", "windows"}, {"causality", "every code"},
    ),
    "gaps not filled when stepping": (
        ignore_gaps_when_stepping, DELAYED | {"gaps": "bos"}, {"steps"}, {"causality", "every code"},
    ),
    "depth loss does not back-propagate": (
        detach_depth_loss, PLAIN, {"gradients", "slope"}, {"loss", "steps", "every code"},
    ),
    "text loss does not back-propagate": (detach_text, WITH_TEXT, {"slope"}, {"loss", "gradients", "steps"}),
    "chunks lose their gradient": (lose_gradient_of_chunks, PLAIN, {"gradients", "slope"}, {"loss", "every code"}),
    "weight on the wrong codebook": (weigh_the_next_codebook, PLAIN, {"loss"}, {"every code", "steps", "gradients"}),
    "first frame free": (
        forget_the_first_frame, {"bos": False}, {"every code", "distribution"}, {"causality", "padding", "packing"},
    ),
    "EOS scored where it is not drawn": (end_in_the_full_window, PLAIN, {"windows"}, {"steps", "distribution"}),
    "told too late when stepping": (
        stay_at_the_token_when_stepping, TOLD_AHEAD, {"steps", "windows"}, {"causality", "every code", "padding"},
    ),
    "told a token too far back": (
        tell_the_token_before, TOLD_AHEAD, {"steps", "windows"}, {"causality", "every code", "padding", "packing"},
    ),
    "drawn beyond the edge": (
        draw_beyond_the_edge, DELAYED | {"end": "never"}, {"windows"}, {"steps", "distribution"},
    ),
    "generation looks back further": (
        generate_with_another_context, DELAYED, {"windows"}, {"steps", "chunks", "causality"},
    ),
}  # fmt: skip
