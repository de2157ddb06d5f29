"""Which files of a folder can be continued; needs no torch."""

from pathlib import Path

from ...data.audio import AudioError, audio_header, evenly, find_audio
from ..argument_checks import check_recording


def usable_prompts(data: Path, count: int, prompt_s: float) -> tuple[list[Path], list[str]]:
    """`count` files, spread evenly over those whose prompt can be used, and why others cannot: "file: reason".

    Raises AudioError if there is none.
    """
    files = find_audio(data)
    long = [file for file in files if audio_header(file)[1] >= prompt_s]
    skipped = [f"{file}: shorter than the prompt (--prompt-s {prompt_s:g})" for file in files if file not in long]
    first = evenly(long, count)
    chosen: list[Path] = []
    for file in [*first, *(file for file in long if file not in first)]:
        if len(chosen) == count:
            break
        try:
            check_recording(file)
            chosen.append(file)
        except AudioError as error:
            skipped.append(str(error))
    if not chosen:
        raise AudioError(f"{data}: none of {len(files)} audio files can be continued (first: {skipped[0]})")
    return sorted(chosen), skipped if len(chosen) < count else []
