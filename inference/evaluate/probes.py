"""`codeclm evaluate probes`: what a model's hidden states tell of speech, by linear probes, layer by layer.

Beside them stand the same probes on the codes of the frame (a 1 among zeros for each), on the codec's latents (sum of
codebook vectors, the decoder's input) of the frame and of the last few, and on the model with shuffled weights. "now"
asks for frame t itself, "next" for frame t + 1, which nothing that is probed has seen. N frames, K codebooks.
"""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...data.progress import progress_bar
from ...model.files import file_sha256, locked_folder
from ..config import EvaluateConfig
from ..threads import torch_threads
from .adapter import weights_hash
from .linear_probe import Probed, Split, probe
from .probe_features import names, probed_parts
from .probe_report import DEFINITION, LINES, WHEN, ProbesReport
from .probe_speech import CHOOSE, CLASSES, FIT, NUMBERS, TEST, Recording, chosen_files, probe_folders, read_recordings
from .run_lines import append_lines, begin_run, read_lines, rewrite_lines
from .score import precision_of

if TYPE_CHECKING:
    from ..generator import SpeechGenerator

HEADER, WORK = "probes.json", "codeclm evaluate"
MIN_FRAMES, MIN_RECORDINGS = 20, 8  # a class has these in each part; to fit on, and to test on
LABELS_MISSING = (
    "needs recordings with labels, NAME.lab beside NAME.flac: python -m codeclm.train.recipes.labelled datasets/speech"
)

logger = logging.getLogger(__name__)

Targets = dict[str, tuple[np.ndarray, int]]  # [N] of all frames, NaN where nothing is asked; classes, 0: a number


def evaluate_probes(
    lm: "SpeechGenerator",
    speech: Path | None = None,
    out: Path | None = None,
    config: EvaluateConfig = EvaluateConfig(),
    progress: bool = True,
) -> ProbesReport:
    """Probe the model of `lm` on `speech`, a folder with a sub-folder for each voice (None: datasets/speech).

    out: keeps the result of each probe; those that are there are not fitted again. Raises ValueError or OSError for
    what cannot be read, or where `out` holds a run of other settings.
    """
    chosen = chosen_files(probe_folders(speech), config.seed)
    header = {
        "definition": DEFINITION,
        "model": lm.name,
        "checkpoint_hash": weights_hash(lm),
        "codec_fingerprint": lm.codec.fingerprint,
        "precision": precision_of(lm.model, config),
        "speech_hash": hashlib.sha256("".join(file_sha256(path) for path, _ in chosen).encode()).hexdigest(),
        "seed": config.seed,
        "bootstrap_samples": config.bootstrap_samples,
    }
    with ExitStack() as stack:
        done = {}
        if out is not None:
            stack.enter_context(locked_folder(out, WORK))
            done = _begin(out, header)
        with torch_threads(1):  # as `codeclm prepare`: more of them can change codes
            recordings = read_recordings(chosen, lm.codec, progress)
        targets, left_out = _targets(recordings)
        results: dict[str, dict[str, dict[str, Probed]]] = {when: {} for when in WHEN}
        total = len(names(lm)) * (len(WHEN) * len(targets) - ("speaker" in targets))
        with progress_bar(total=total, unit="probe", desc="probe", disable=not progress) as bar:
            for name, parts in probed_parts(lm, recordings, config.seed, left_out):
                for when, target in [(when, target) for when in WHEN for target in targets]:
                    if target == "speaker" and WHEN[when]:
                        continue  # the next frame has the same one
                    found = done.get((when, name, target))
                    if found is None:
                        found = _probe(parts, recordings, *targets[target], WHEN[when], config)
                        if out is not None:
                            line = {"when": when, "model": name, "target": target, "result": asdict(found)}
                            append_lines(out / LINES, [line])
                    results[when].setdefault(name, {})[target] = found
                    bar.update()
    num_classes = {target: count for target, (_, count) in targets.items() if count}
    return ProbesReport(header, results, num_classes, left_out, None if out is None else str(out))


def _begin(out: Path, header: dict[str, Any]) -> dict[tuple[str, str, str], Probed]:
    """Begin a run, or go on with one -> the results that are there."""
    if not begin_run(out / HEADER, out / LINES, header):
        return {}
    lines = [line for _, line in read_lines(out / LINES)]
    rewrite_lines(out / LINES, lines)
    found = {}
    for line in lines:
        low, high = line["result"].pop("interval")
        found[line["when"], line["model"], line["target"]] = Probed(interval=(low, high), **line["result"])
    return found


def _targets(recordings: Sequence[Recording]) -> tuple[Targets, dict[str, str]]:
    """What can be asked, and what is left out with the reason."""
    found, left_out = {}, {}
    lengths = [item.codes.shape[1] for item in recordings]
    part = np.repeat(np.array([item.part for item in recordings], dtype=object), lengths)
    recording = np.repeat(np.arange(len(recordings)), lengths)
    for target in (*NUMBERS, *CLASSES):
        nothing = [np.full(length, None) for length in lengths]
        values = np.concatenate(
            [item.targets.get(target, none) for item, none in zip(recordings, nothing, strict=True)]
        )
        num_classes = 0
        if target in CLASSES:
            classes = [name for name in set(values) - {None} if _is_common(values == name, part)]
            number = {name: float(n) for n, name in enumerate(sorted(classes))}
            values, num_classes = np.array([number.get(value, np.nan) for value in values]), len(classes)
        values = values.astype(np.float64)  # NaN for None
        asked = ~np.isnan(values)
        few = min(len(set(recording[asked & (part == each)])) for each in (FIT, TEST)) < MIN_RECORDINGS
        if not few and num_classes != 1:
            found[target] = values, num_classes
            continue
        left_out[target] = LABELS_MISSING if target in ("phone", "word") else "too few recordings"
        logger.warning("left out: %s: %s", target, left_out[target])
    return found, left_out


def _is_common(is_class: np.ndarray, part: np.ndarray) -> bool:
    return all((is_class & (part == each)).sum() >= MIN_FRAMES for each in (FIT, CHOOSE, TEST))


def _probe(
    parts: Sequence[Tensor],
    recordings: Sequence[Recording],
    values: np.ndarray,
    num_classes: int,
    ahead: int,
    config: EvaluateConfig,
) -> Probed:
    """Probe what is held after frame t of each recording for the value of frame t + ahead."""
    features, asked_of, start = [], [], 0
    for item, part in zip(recordings, parts, strict=True):
        num_frames = item.codes.shape[1]
        asked = np.arange(min(len(part), num_frames - ahead))
        asked = asked[~np.isnan(values[start + ahead + asked])]
        features.append(part[torch.from_numpy(asked)])
        asked_of.append(start + ahead + asked)
        start += num_frames
    index = np.concatenate(asked_of)
    recording = np.repeat(np.arange(len(recordings)), list(map(len, asked_of)))
    part = np.array([item.part for item in recordings], dtype=object)[recording]
    split: Split = part == FIT, part == CHOOSE, part == TEST
    target = values[index]
    return probe(torch.cat(features), target, num_classes, recording, split, config.bootstrap_samples, config.seed)
