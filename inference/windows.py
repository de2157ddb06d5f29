"""How far back a frame looks: the one rule for scoring, generating and arithmetic coding.

A model with a sliding window (`backbone.sliding_window`) sees the last positions of each layer, however long a sequence
is: it has one window, which is never full. With full attention, a sequence longer than the model's context is taken in
windows of `context_frames`: the first window predicts all of its frames; each later one is given the last half of the
window before and predicts the frames after it. Every window starts with BOS. So a frame is predicted from everything
before it if the sequence fits, else from the `context_frames // 2` frames before its window and those of the window
that precede it. T frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..model.speech_lm_config import SpeechLMConfig

NO_END = 1 << 62  # frames: a window that is never full


@dataclass(frozen=True)
class Window:
    """Frames start..stop are seen; first..stop are predicted, start..first are given."""

    start: int
    first: int
    stop: int
    ends: bool = False  # whether the end of the audio is predicted here

    def moved(self, by: int) -> "Window":
        """The same window where frames are numbered from another one on."""
        return Window(self.start + by, self.first + by, self.stop + by, self.ends)


def windows(num_frames: int, context_frames: int, last: int | None = None) -> list[Window]:
    """The windows of a sequence of `num_frames` frames; see `each_window`."""
    return list(each_window(num_frames, context_frames, last))


def each_window(num_frames: int, context_frames: int, last: int | None = None) -> Iterator[Window]:
    """The windows of a sequence of `num_frames` frames, one by one. Together they predict every frame exactly once.

    last: the last frame of audio, if its end is predicted, too. The end takes the place of the frame that would follow,
    so where a window is full the next one predicts it, perhaps alone.
    """
    start = first = 0
    places = num_frames if last is None else max(num_frames, last + 2)
    while not first or first < places:
        full = start + context_frames
        ends = last is not None and first <= last + 1 < full
        yield Window(start, first, min(num_frames, full), ends)
        start, first = full - context_frames // 2, full


def window_frames(config: SpeechLMConfig) -> int:
    """The `context_frames` that a model's windows are made with."""
    return NO_END if config.backbone.sliding_window else config.context_frames


def describe(context_frames: int, frame_rate: float) -> str:
    """The rule in a line."""
    if context_frames == NO_END:
        return "each utterance from its start, as far back as the model's sliding window shows"
    limit = f"{context_frames} frames ({context_frames / frame_rate:.1f} s)"
    return f"each utterance from its start; beyond {limit} in windows that are given the {context_frames // 2} before"
