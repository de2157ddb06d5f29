"""The page of `codeclm demo`: how a recording goes on, a sentence that is said, the words that are heard."""

from .demo_made import SENTENCE, Made
from .loading import DEFAULT
from .report.page import Page, Section

MEANING = "it goes on with words and a voice, without meaning: the model is small"  # the embedded one
WITHOUT_TEXT = "it neither says a text nor writes what it hears; a model with --model.text.layout mixed does both"


def page_of(made: Made, name: str) -> Page:
    """With the words of all sounds where whisper is there. name: the model's."""
    count = made.num_continued
    sections = [Section("It goes on" if made.has_text else "", (), made.sounds[:count])]
    if made.said is not None:
        sections.append(Section("It says a sentence", [SENTENCE], made.sounds[count:]))
    if made.written is not None:
        by_whisper = [] if made.heard is None else [f"whisper writes: {made.heard}"]
        sections.append(Section("It writes what it hears", [f"It writes: {made.written}", *by_whisper]))
    called = "the embedded model" if name == DEFAULT else name
    return Page(f"A voice, and how {called} goes on", remarks(made, name), sections)


def remarks(made: Made, name: str) -> list[str]:
    """What to know before listening."""
    unsaid = [f"it says a text, too, but {made.missing}"] * bool(made.missing)
    return [MEANING] * (name == DEFAULT) + unsaid + [WITHOUT_TEXT] * (not made.has_text)
