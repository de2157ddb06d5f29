"""People: the recordings of the first recipe (corpus.py), a Russian speaker's sentences, and more to test with only.

Debian's festvox-ru (copyright 2005 Nickolay V. Shmyrev, BSD-like) holds 620 sentences that a speaker read for a
synthesizer, with their text. To test with: prompts by Armelle Desjardins in French (asterisk-prompt-fr-armelle,
BSD-like) and by July E. Jimenez in Spanish (asterisk-prompt-es-co, GPL-2), at telephone quality; and the voices of a
game that shout, mock and whine in several languages (hedgewars-data, GFDL-1.3). Those and the actors of the first
recipe are also joined to clips of some seconds, as many of each voice: acted speech to measure a codec on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....data.audio import audio_header, load_audio
from ....data.audio_out import save_audio
from ....data.encode_files import read_transcript
from ....data.split import name_hash
from .. import labelled
from ..corpus import NOT_SPEECH, UNSEEN_VOICE, convert, fetch_debian, fetch_human, split_of

PROMPTED = {"armelle_fr": ("asterisk-prompt-fr-armelle", "fr"), "jimenez_es": ("asterisk-prompt-es-co", "es")}
SHOUTS_PACKAGE, SHOUTS_FOLDER = "hedgewars-data", "usr/share/games/hedgewars/Data/Sounds/voices"
RATE = 16_000
MIN_SHOUT_S = 1.0
MIN_S, MAX_S = 0.8, 25.0
ACTED = ("acted_*", "game_*")
WATCHED = ("acted_nl", "game_classic", "game_default", "game_default_es", "game_default_ru")  # settings are chosen on
NO_VOICE = "game_robot"  # an effect
CLIP_S, CLIPS, PEAK = 5.0, 4, 0.97  # least length, clips of a voice at most, their highest sample


@dataclass(frozen=True)
class Recording:
    """Someone's speech and its words, where they are known."""

    path: Path
    speaker: str
    text: str | None


def fetch_recordings(out: Path) -> None:
    """OUT/{train,heldout}/SPEAKER/*.flac and OUT/unseen/SPEAKER/*.flac, with texts; those that are there are kept."""
    fetch_human(out)
    prompts = [package for package, _ in PROMPTED.values()]
    unpacked = fetch_debian([labelled.PACKAGE, SHOUTS_PACKAGE, *prompts], out / "more")
    root = unpacked / labelled.FOLDER
    for name, text in labelled.sentences(root):
        name_here = f"{labelled.SPEAKER}-{name}"
        target = out / split_of(name_here) / labelled.SPEAKER / f"{name_here}.flac"
        labelled.convert_sentence(root, name, text, target)
    for speaker, (_, language) in PROMPTED.items():
        sounds = unpacked / "usr/share/asterisk/sounds"
        for source in sorted((*sounds.glob(f"{language}/**/*.gsm"), *sounds.glob(f"*/{language}/**/*.gsm"))):
            if not NOT_SPEECH.search(str(source)):
                name = "-".join(source.relative_to(sounds).with_suffix("").parts)
                convert(source, out / f"unseen/{speaker}/{name}.flac", "-f", "gsm")
    for source in sorted((unpacked / SHOUTS_FOLDER).glob("*/*.ogg")):
        if audio_header(source)[1] >= MIN_SHOUT_S:
            voice = source.parent.name.lower()
            convert(source, out / f"unseen/game_{voice}/{voice}-{source.stem.lower()}.flac")


def join_clips(people: Path) -> None:
    """PEOPLE/clips/{watched,test}/VOICE-N.flac: recordings of an acted voice, one after another."""
    folders = sorted(folder for pattern in ACTED for folder in (people / "unseen").glob(pattern))
    for folder in (folder for folder in folders if folder.name != NO_VOICE):
        side = "watched" if folder.name in WATCHED else "test"
        clips, parts = 0, []
        for path in sorted(folder.glob("*.flac"), key=lambda path: name_hash(path.stem)):
            parts.append(load_audio(path, RATE))
            if sum(map(len, parts)) >= CLIP_S * RATE and clips < CLIPS:
                clip = np.concatenate(parts)
                save_audio(
                    people / "clips" / side / f"{folder.name}-{clips}.flac", clip * PEAK / np.abs(clip).max(), RATE
                )
                clips, parts = clips + 1, []


def recordings(folder: Path) -> list[Recording]:
    """All that are neither very short nor very long, in the order of their names."""
    paths = [path for path in sorted(folder.glob("*/*.flac")) if path.parent.name != UNSEEN_VOICE]
    usable = [path for path in paths if MIN_S <= audio_header(path)[1] <= MAX_S]
    return [Recording(path, path.parent.name, read_transcript(path)) for path in usable]
