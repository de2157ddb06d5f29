"""Which files of a folder can be continued; needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from ...data.audio import AudioError, audio_header, evenly, find_audio
from ..argument_checks import check_recording


def in_turn(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the files: as many of each folder, as far as it has them, spread evenly over it."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    shares = dict.fromkeys(folders, 0)
    left = min(count, len(files))
    while left:
        for folder in [folder for folder in folders if shares[folder] < len(folders[folder])][:left]:
            shares[folder] += 1
            left -= 1
    return [file for folder, own in folders.items() for file in evenly(own, shares[folder])]


def usable_prompts(data: Path, count: int, prompt_s: float) -> tuple[list[Path], list[str]]:
    """`count` files of those whose prompt can be used, as `in_turn` has it, and why others cannot: "file: reason".

    Raises AudioError if there is none.
    """
    files = find_audio(data)
    long = [file for file in files if audio_header(file)[1] >= prompt_s]
    skipped = [f"{file}: shorter than the prompt (--prompt-s {prompt_s:g})" for file in files if file not in long]
    first = in_turn(long, count)
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
