"""Any model of speech in the tables of `evaluate`: three methods, and what codes it speaks.

    class Mine:
        name = "mine"                                       # for people
        codec = CodecReference.of(load_codec("mimi:8"))     # what codes are: rate, K codebooks of V entries
        def fingerprint(self): ...                          # a hash of the weights
        def encode(self, audio): ...                        # [S] at the codec's sample rate -> codes [K, T]
        def nats(self, codes): ...                          # [K, T] each -> -ln p of every code [K, T]

    codeclm.Adapted(Mine()).evaluate("heldout/")            # or codeclm evaluate heldout/ --model my_module:Mine

Numbers of two models can be compared where the codec's fingerprints are equal. S samples, K codebooks, T frames.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from ...data.config import with_settings
from ...data.progress import progress_bar
from ...data.token_store import TokenStore
from ...model.codec_reference import CodecReference
from ...model.codecs import Codec, StreamingCoder
from ..config import EvaluateConfig
from ..loading import checkpoint_hash, model_folder
from ..windows import Window

if TYPE_CHECKING:
    from ..generator import SpeechGenerator
    from .held_out import Speech
    from .report import LikelihoodReport

OWN = ("bf16", "context_frames", "num_codebooks", "split", "run")  # settings that an adapter decides, or has no use for


class Adapter(Protocol):
    """What a model must offer to be scored."""

    name: str
    codec: CodecReference

    def fingerprint(self) -> str:
        """A hash of the weights and settings: equal ones give equal numbers."""
        ...

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """A recording [S], float32 at the codec's sample rate -> codes [K, T], T = S / hop_length, rounded up."""
        ...

    def nats(self, codes: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Utterances' codes [K, T] -> -ln p(code | all before it in the model's order) of every code, [K, T] each.

        A model of fewer tokens than codes gives 0 for those that it does not spend a token on.
        """
        ...


class Adapted:
    """An adapter where `evaluate` expects a `SpeechGenerator`."""

    tokenizer = None

    def __init__(self, adapter: Adapter):
        """Raises ValueError for an object that lacks a part of `Adapter`."""
        parts = ("name", "codec", "fingerprint", "encode", "nats")
        if missing := [part for part in parts if not hasattr(adapter, part)]:
            raise ValueError(f"{adapter!r}: has no '{missing[0]}'; an adapter has {', '.join(parts)}")
        self.adapter, self.name, self.model = adapter, adapter.name, self
        self.codec = AdaptedCodec(adapter)

    def evaluate(
        self,
        data: "Speech",
        baseline_data: "Speech | None" = None,
        config: EvaluateConfig = EvaluateConfig(),
        progress: bool = True,
        **settings: Any,
    ) -> "LikelihoodReport":
        """As `SpeechGenerator.evaluate`. Raises ValueError, too, for settings that are the adapter's to decide."""
        from .held_out import evaluate_speech

        return evaluate_speech(self, data, baseline_data, with_settings(config, settings), progress)

    def frame_nll(
        self, store: TokenStore, stretches: Sequence[tuple[int, Window]], config: EvaluateConfig, progress: bool = False
    ) -> list[np.ndarray]:
        """Windows of utterances -> nats [K, T] of the frames that each predicts, in the order given.

        Raises FloatingPointError for nats that are none.
        """
        self.check(config)
        store.require_codec(self.adapter.codec)
        found: dict[int, np.ndarray] = {}
        with progress_bar(total=len(stretches), unit="utterance", desc="score", disable=not progress) as bar:
            for numbers in _batches([window.stop - window.start for _, window in stretches], config.frames_per_batch):
                chosen = [stretches[number] for number in numbers]
                codes = [store.codes(i, window.start, window.stop).T.astype(np.int64) for i, window in chosen]
                nats = self.adapter.nats(codes)
                for number, (_, window), each, own in zip(numbers, chosen, codes, nats, strict=True):
                    found[number] = self._checked(own, each)[:, window.first - window.start :]
                bar.update(len(numbers))
        return [found[number] for number in range(len(stretches))]

    def check(self, config: EvaluateConfig) -> None:
        """Raise ValueError for settings that are the adapter's to decide."""
        default = EvaluateConfig()
        if given := [name for name in OWN if getattr(config, name) != getattr(default, name)]:
            raise ValueError(f"{given[0]}: of no use with the adapter '{self.name}', which decides how it scores")

    def _checked(self, nats: Any, codes: np.ndarray) -> np.ndarray:
        nats = np.asarray(nats, np.float64)
        if nats.shape != codes.shape:
            raise ValueError(f"{self.name}: gave nats {list(nats.shape)} for codes {list(codes.shape)} [K, T]")
        if not np.isfinite(nats).all() or nats.min(initial=0.0) < 0:
            raise FloatingPointError(f"{self.name}: gave nats that are negative, infinite or NaN")
        return nats


class AdaptedCodec(Codec):
    """The encoder of an adapter, as a codec that cannot decode."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.adapter, info = adapter, adapter.codec
        self.name, self._fingerprint = info.name, info.fingerprint
        self.sample_rate, self.hop_length = info.sample_rate, info.hop_length
        self.num_codebooks, self.codebook_size = info.num_codebooks, info.codebook_size

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, audio: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        self.check_audio(audio, lengths)
        codes = torch.zeros(len(audio), self.num_codebooks, self.num_frames(audio.shape[-1]), dtype=torch.int64)
        for row, samples in enumerate(audio[:, 0].numpy()):
            samples = samples[: None if lengths is None else lengths[row]]
            found = torch.from_numpy(np.array(self.adapter.encode(samples)))
            wanted = (self.num_codebooks, self.num_frames(len(samples)))
            if tuple(found.shape) != wanted:
                raise ValueError(f"{self.name}: made codes {list(found.shape)} of audio for which [K, T] is {wanted}")
            self.check_codes(found[None])
            codes[row, :, : wanted[1]] = found
        return codes

    def streaming_encoder(self) -> StreamingCoder:
        return _Whole(self)

    def decode(self, codes: Tensor) -> Tensor:
        self._cannot()

    def streaming_decoder(self) -> StreamingCoder:
        self._cannot()

    def save(self, folder: Path) -> None:
        self._cannot()

    def _cannot(self) -> NoReturn:
        raise ValueError(f"{self.name}: an adapter's codec only encodes; this needs a codec that `load_codec` gives")


class _Whole(StreamingCoder):
    """Holds all audio back until its end is known."""

    def __init__(self, codec: AdaptedCodec):
        self.codec, self.chunks = codec, list[Tensor]()

    def push(self, chunk: Tensor) -> Tensor:
        self.chunks.append(chunk)
        return torch.zeros(len(chunk), self.codec.num_codebooks, 0, dtype=torch.int64)

    def flush(self) -> Tensor:
        return self.codec.encode(torch.cat(self.chunks, dim=-1))


def weights_hash(lm: "SpeechGenerator | Adapted") -> str:
    """The hash of what gives the numbers."""
    return lm.adapter.fingerprint() if isinstance(lm, Adapted) else checkpoint_hash(model_folder(lm.name))


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of utterances of about the same length, of at most `most` frames with padding, or one alone."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
