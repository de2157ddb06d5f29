"""Where checks run and what they run on: the device, the embedded model and codec, real speech, synthetic codes."""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.inference.generator import SpeechGenerator
from codeclm.inference.loading import load
from codeclm.model.codec_reference import CodecReference
from codeclm.model.codecs import Codec
from codeclm.model.lm import SpeechLM

PROMPT = Path(__file__).parent / "prompt.npz"  # the first 3 s of model/pretrained/prompt.flac, 16-bit samples
Module = TypeVar("Module", bound=nn.Module)


@cache
def embedded() -> SpeechGenerator:
    lm = load(device="cpu")  # or a GPU would be compared with itself
    assert lm.model.device.type == lm.codec.device.type == "cpu"
    return lm


@dataclass
class Setting:
    device: torch.device
    scratch: Path  # a folder to write into
    lengths: dict[str, int] = field(default_factory=dict)  # changes to `amount`

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def amount(self, name: str, on_cuda: int, on_cpu: int) -> int:
        """How much of something a check takes: a CPU gets little of it."""
        return self.lengths.get(name, on_cuda if self.is_cuda else on_cpu)

    def there(self, module: Module) -> Module:
        """A copy on the device."""
        return deepcopy(module).to(self.device)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    @property
    def lm(self) -> SpeechGenerator:
        """The embedded model with its codec, on the CPU."""
        return embedded()

    @property
    def model(self) -> SpeechLM:
        """The embedded model in float32, on the CPU."""
        return self.lm.model

    @property
    def codec(self) -> Codec:
        return self.lm.codec

    @cached_property
    def prompt(self) -> tuple[np.ndarray, int]:
        """Human speech: samples [S] in -1..1, sample rate."""
        with np.load(PROMPT) as file:
            return file["samples"].astype(np.float32) / 32768, int(file["sample_rate"])

    @cached_property
    def speech(self) -> Tensor:
        """[1, 1, S] whole frames of it, on the CPU."""
        samples, rate = self.prompt
        assert rate == self.codec.sample_rate
        whole = len(samples) // self.codec.hop_length * self.codec.hop_length
        return torch.from_numpy(samples[:whole])[None, None]

    @cached_property
    def codes(self) -> Tensor:
        """[1, K, T] of the speech, by the CPU."""
        return self.codec.encode(self.speech)

    def store(self, name: str, num_utterances: int, longest: int, ragged: bool = False) -> TokenStore:
        """A token store of codes that can be learned: each repeats the last one of its codebook, or is drawn anew.

        longest: frames of each utterance, or with `ragged` of the longest.
        """
        info = CodecReference.of(self.codec)
        folder, rng = self.scratch / name, np.random.default_rng(0)
        folder.mkdir(parents=True)
        entries = []
        for i in range(num_utterances):
            num_frames = int(rng.integers(longest // 4, longest + 1)) if ragged else longest
            drawn = rng.integers(0, info.codebook_size, (num_frames, info.num_codebooks), dtype=np.uint16)
            kept = rng.random(drawn.shape) < 0.8
            kept[0] = False
            source = np.maximum.accumulate(np.where(kept, 0, np.arange(num_frames)[:, None]), axis=0)
            codes = np.take_along_axis(drawn, source, axis=0)
            entries.append(Utterance(f"voice/u{i}", num_frames * info.hop_length, codes))
        commit_store(folder, info, [write_shard(folder, 0, entries, info)])
        return TokenStore(folder)
