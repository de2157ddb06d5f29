"""The speech of `codeclm evaluate probes`: recordings as codes, and what is asked of each frame. K codebooks, T frames.

Voices are those of voices.py and, where there are phone labels (labels.py), of datasets/speech/labelled. The recordings
of each voice are shared out: some are fitted on, some choose the penalty, some are tested on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.audio import SILENCE_DBFS, AudioError, check_usable, evenly, find_audio, load_audio
from ...data.progress import progress_bar
from ...model.codecs import Codec
from ..sound.measures import HOP_S, pitch_track
from .labels import SUFFIX, phones_at, read_labels, word_begins_at
from .voices import SPEECH, speaker_of, voice_folders

RECORDINGS, LABELLED_RECORDINGS = 40, 160  # a voice has this many at most; with labels
MAX_S = 8.0  # the first seconds of a recording
TEST_SHARE, CHOOSE_SHARE = 0.25, 0.15
FIT, CHOOSE, TEST = "fit", "choose", "test"
NUMBERS = ("pitch", "intonation", "loudness")  # R2 of these, balanced accuracy of the others
CLASSES = ("voiced", "speaker", "phone", "word")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """targets: [T] each; numbers, or names of classes; NaN or None where a frame is not asked."""

    codes: torch.Tensor  # [K, T]
    targets: dict[str, np.ndarray]
    part: str  # fit, choose or test


def probe_folders(speech: Path | None) -> list[Path]:
    """Raises FileNotFoundError, saying where speech comes from, if there is none. Needs no torch."""
    labelled = [] if speech is not None else sorted(path for path in (SPEECH / "labelled").glob("*") if path.is_dir())
    return [*voice_folders(speech), *labelled]


def chosen_files(folders: Sequence[Path], seed: int) -> list[tuple[Path, str]]:
    """The recordings that are used, and the part of each."""
    chosen = []
    for folder in folders:
        try:
            files = find_audio(folder)
        except AudioError as error:
            logger.info("skipped %s", error)
            continue
        labelled = [file for file in files if file.with_suffix(SUFFIX).is_file()]
        files = evenly(labelled, LABELLED_RECORDINGS) if labelled else evenly(files, RECORDINGS)
        order = np.random.default_rng(seed).permutation(len(files))
        num_test, num_choose = (max(1, round(share * len(files))) for share in (TEST_SHARE, CHOOSE_SHARE))
        parts = {number: FIT for number in order}
        parts |= {number: TEST for number in order[:num_test]}
        parts |= {number: CHOOSE for number in order[num_test : num_test + num_choose]}
        chosen += [(file, parts[number]) for number, file in enumerate(files)]
    return chosen


def read_recordings(chosen: Sequence[tuple[Path, str]], codec: Codec, progress: bool = True) -> list[Recording]:
    """Encode and measure; what cannot be used is logged by name."""
    found, counts = [], {}
    for path, part in progress_bar(chosen, unit="recording", desc="measure", leave=False, disable=not progress):
        try:
            audio = load_audio(path, codec.sample_rate)
            check_usable(audio, codec.sample_rate, str(path))
        except AudioError as error:
            logger.info("skipped %s", error)
            continue
        audio = audio[: round(MAX_S * codec.sample_rate) // codec.hop_length * codec.hop_length]
        codes = codec.encode(torch.from_numpy(audio)[None, None].to(codec.device))[0]
        counts[path.parent] = counts.get(path.parent, 0) + 1
        targets = measured(audio, codec, codes.shape[1]) | labelled(path, codec, codes.shape[1])
        targets["speaker"] = np.full(codes.shape[1], speaker_of(path.parent.name), dtype=object)
        if counts[path.parent] > RECORDINGS:  # only for its labels
            targets = {name: targets[name] for name in ("phone", "word") if name in targets}
        found.append(Recording(codes, targets, part))
    return with_intonation(found)


def measured(audio: np.ndarray, codec: Codec, num_frames: int) -> dict[str, np.ndarray]:
    """log Hz where at least half of a frame is voiced; voiced or not, None where a frame is too short to tell; dBFS."""
    pitch = pitch_track(audio, codec.sample_rate)  # [N], each 10 ms
    frame = np.minimum(((np.arange(len(pitch)) + 0.5) * HOP_S * codec.frame_rate).astype(int), num_frames - 1)
    count, voiced = (np.bincount(frame, values, num_frames) for values in (np.ones(len(pitch)), pitch > 0))
    log_pitch = np.bincount(frame, np.log(np.where(pitch > 0, pitch, 1)), num_frames)
    is_voiced = (voiced > 0) & (voiced >= 0.5 * count)
    padded = np.pad(audio.astype(np.float64), (0, num_frames * codec.hop_length - len(audio)))
    power = np.square(padded).reshape(num_frames, -1).mean(axis=1)
    return {
        "pitch": np.where(is_voiced, log_pitch / np.maximum(voiced, 1), np.nan),
        "voiced": np.array([bool(value) if known else None for value, known in zip(is_voiced, count, strict=True)]),
        "loudness": np.maximum(SILENCE_DBFS, 10 * np.log10(power + 1e-12)),
    }


def labelled(path: Path, codec: Codec, num_frames: int) -> dict[str, np.ndarray]:
    file = path.with_suffix(SUFFIX)
    if not file.is_file():
        return {}
    labels = read_labels(file)
    found = {"phone": np.array(phones_at(labels, num_frames, codec.frame_rate), dtype=object)}
    begins = word_begins_at(labels, num_frames, codec.frame_rate)
    return found if begins is None else found | {"word": begins.astype(object)}


def with_intonation(recordings: list[Recording]) -> list[Recording]:
    """Adds pitch less the mean pitch of the speaker, over the recordings that are not tested on."""
    known: dict[str, list[np.ndarray]] = {}
    for recording in recordings:
        if "pitch" in recording.targets and recording.part != TEST:
            known.setdefault(recording.targets["speaker"][0], []).append(recording.targets["pitch"])
    means = {speaker: np.nanmean(np.concatenate(parts)) for speaker, parts in known.items()}
    for recording in recordings:
        if "pitch" in recording.targets:
            mean = means.get(recording.targets["speaker"][0], np.nan)
            recording.targets["intonation"] = recording.targets["pitch"] - mean
    return recordings
