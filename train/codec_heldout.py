"""Held-out evaluation during codec training: the averaged weights, in numbers and to listen to."""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.audio import find_audio, load_audio
from ..inference.codec.report import codec_report
from ..model.codecs import Codec

log = logging.getLogger(__name__)


class HeldOut:
    """At most `most` files of a folder, the same in every run."""

    def __init__(self, folder: Path, most: int = 12):
        """Raises AudioError (a ValueError) if the folder holds no audio."""
        paths = sorted(find_audio(folder))
        chosen = np.random.default_rng(0).permutation(len(paths))[:most]
        self.paths = [paths[number] for number in sorted(chosen)]

    def measure(self, codec: Codec) -> dict[str, float]:
        """Means over the files (PESQ-WB, STOI, ...); empty without the packages of codeclm[eval]."""
        try:
            means = asdict(codec_report(self.paths, {"codec": codec}, anchors=False).codecs[0].mean)
        except ImportError as error:
            log.info(f"held-out speech is not measured: {error}")
            return {}
        return {name: value for name, value in means.items() if math.isfinite(value)}

    @torch.no_grad()
    def examples(self, codec: Codec, number: int = 3) -> list[tuple[Tensor, Tensor]]:
        """(original [S], output [S]) of the first files."""
        pairs = []
        for path in self.paths[:number]:
            audio = torch.from_numpy(load_audio(path, codec.sample_rate)).float()
            output = codec.decode(codec.encode(audio[None, None].to(codec.device)))[0, 0, : len(audio)]
            pairs.append((audio, output.float().cpu()))
        return pairs
