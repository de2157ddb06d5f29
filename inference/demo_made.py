"""What a model makes of the demo's recording: continuations; with text also a sentence in its voice, and its words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.audio import load_audio
from ..model.pretrained import PROMPT
from ..model.shapes import SAYS, TAGGED, WRITES
from .generation import Generation
from .generator import SpeechGenerator
from .loading import DEFAULT
from .report.sounds import continuation, heard, rendering, sentence
from .report.tracks import Sound
from .request import text_layout
from .sound.transcribe import Transcriber

SENTENCE = "Come in and sit down, the soup is still hot and there is plenty of bread."


@dataclass(frozen=True)
class Made:
    """`sounds` are as they are heard: the recording, its codec rendering, the continuations, the sentence if any."""

    recording: np.ndarray  # [S]
    continued: Sequence[Generation]
    said: Generation | None  # SENTENCE; without audio if the model ended at once. None: it says no text
    written: str | None  # the words of the recording by the model. None: it writes no text
    sounds: Sequence[Sound]
    missing: str = ""  # what there is to install before it can say a text

    @property
    def has_text(self) -> bool:
        return self.said is not None or self.written is not None or bool(self.missing)

    @property
    def num_continued(self) -> int:
        """How many of the sounds are the recording and what goes on from it."""
        return 2 + len(self.continued)

    @property
    def heard(self) -> str | None:
        """The words of the recording by whisper."""
        return self.sounds[0].transcript

    @property
    def said_heard(self) -> str | None:
        """The words of the sentence by whisper."""
        return self.sounds[-1].transcript if self.said is not None and len(self.said.audio) else None


def make(lm: SpeechGenerator, duration_s: float, seeds: Sequence[int], transcriber: Transcriber | None) -> Made:
    """A continuation for each seed, and with the first seed the sentence."""
    recording = load_audio(PROMPT, lm.codec.sample_rate)
    continued = lm.generate_many(PROMPT, duration_s, seeds, progress=True)
    layout, said, written, missing = text_layout(lm), None, None, ""
    if layout in SAYS:
        try:
            said = lm.say(SENTENCE, PROMPT if layout in TAGGED else None, seeds[0], progress=True)
        except ImportError as error:
            missing = str(error)
    if layout in WRITES:
        written = lm.transcribe(PROMPT)
    sounds = heard(sounds_of(lm, recording, continued, said), transcriber)
    return Made(recording, continued, said, written, sounds, missing)


def sounds_of(
    lm: SpeechGenerator, recording: np.ndarray, continued: Sequence[Generation], said: Generation | None
) -> list[Sound]:
    """As `Made.sounds`, before anybody listens."""
    first = continued[0]
    given = slice(None, first.num_prompt_frames)
    about = "a human voice" + " that the model was trained on" * (lm.name == DEFAULT)
    sounds = [
        Sound("recording", recording, lm.codec.sample_rate, about),
        rendering(lm, first.codes[:, given], first.nll[:, given], len(first.prompt_audio)),
        *(continuation(lm, result) for result in continued),
    ]
    return [*sounds, sentence(lm, said)] if said is not None and len(said.audio) else sounds
