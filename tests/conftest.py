"""What several tests share: tiny codecs, models and token stores, all from fixed seeds."""

import os

# before anything imports triton: its kernels run on the CPU, one program after another (tests/gpu runs them on a GPU)
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

from codeclm.data.audio_out import save_audio
from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.model import CodecReference, SpeechLM, SpeechLMConfig, TransformerConfig
from codeclm.model.codec_shapes import SpectralConfig
from codeclm.model.codecs import Codec, SpectralCodec
from codeclm.model.shapes import DepthConfig

from . import rounding
from .training import SIZE, SOURCE, draw

# threads that wait for each other make the suite slower on a shared machine, and no faster on a quiet one: its tensors
# are small, and pytest-xdist uses the other cores
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

settings.register_profile("codeclm", deadline=None)  # how long an example takes is not what any test is about
settings.load_profile("codeclm")

BACKBONE = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_dim=24)
DEPTH = DepthConfig(dim=8, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=16)


@pytest.fixture(scope="session", autouse=bool(rounding.SEED))
def other_rounding() -> Iterator[None]:
    with rounding.OtherRounding(rounding.SEED):
        yield


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., SpectralCodec]:
    """Codecs with random weights: 8 kHz, 80 samples per frame, 100 frames per second."""

    def make(num_codebooks: int = 3, codebook_size: int = 8, seed: int = 0) -> SpectralCodec:
        torch.manual_seed(seed)
        config = SpectralConfig(
            sample_rate=8000, trunk_hop=40, window=80, stride=2, encoder_dim=8, dim=8, encoder_layers=1,
            latent_layers=0, bottleneck_layers=0, decoder_layers=1, kernel=3, expansion=2,
            num_codebooks=num_codebooks, codebook_size=codebook_size, codebook_dim=4,
        )  # fmt: skip
        return SpectralCodec(config, name="tiny").eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def make_clips() -> Callable[[Path, Sequence[str]], list[Path]]:
    """Files in `folder`: one second each of a voice-like buzz at 16 kHz, which PESQ and STOI can rate."""
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    time = np.arange(16_000) / 16_000

    def make(folder: Path, names: Sequence[str]) -> list[Path]:
        for index, name in enumerate(names):
            buzz = np.sign(np.sin(2 * np.pi * (110 + 80 * index) * time + 3 * np.sin(6 * time)))
            save_audio(folder / name, 0.3 * buzz * (np.sin(18 * time) > -0.3), 16_000)
        return [folder / name for name in names]

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., SpeechLM]:
    """Models whose weights are random but far from zero, so that every part of them matters to the output."""

    def make(
        delays: Sequence[int] = (0, 0, 0),
        codebook_size: int = 7,
        codec: Codec | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        backbone: TransformerConfig = BACKBONE,
        depth: DepthConfig = DEPTH,
        **options: Any,
    ) -> SpeechLM:
        """delays: one for each codebook. options: of SpeechLMConfig."""
        reference = CodecReference("tiny", "0" * 64, 8000, 80)
        if codec is not None:
            codebook_size = codec.codebook_size
            reference = CodecReference.of(codec)
        torch.manual_seed(seed)
        model = SpeechLM(
            SpeechLMConfig(len(delays), codebook_size, backbone, depth, delays=list(delays), codec=reference, **options)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        torch.nn.Module.to(model, dtype)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_store() -> Callable[..., TokenStore]:
    """A finished token store in `folder` with the codes [T, K] given, one utterance each."""

    def make(
        folder: Path,
        utterances: Sequence[np.ndarray],
        codec: Codec | CodecReference,
        names: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> TokenStore:
        folder.mkdir(parents=True, exist_ok=True)
        info = codec if isinstance(codec, CodecReference) else CodecReference.of(codec)
        names = names or [f"voice/u{i}" for i in range(len(utterances))]
        entries = [
            Utterance(name, len(codes) * info.hop_length, codes, None if texts is None else texts[i])
            for i, (name, codes) in enumerate(zip(names, utterances, strict=True))
        ]
        commit_store(folder, info, [write_shard(folder, 0, entries, info)])
        return TokenStore(folder)

    return make


# --- of tests that train ---


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, here and in subprocesses; and accelerate remembers nothing of an earlier test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def codec(make_codec: Callable[..., SpectralCodec]) -> SpectralCodec:
    """That of training.py's source; many files have another of their own."""
    return make_codec(num_codebooks=2, codebook_size=SIZE)


@pytest.fixture(scope="session")
def store(make_store: Callable[..., TokenStore], codec: SpectralCodec, tmp_path_factory) -> TokenStore:
    """Codes of training.py's source."""
    return make_store(tmp_path_factory.mktemp("store"), draw(SOURCE, [20, 33, 7, 50, 12, 28, 41, 5] * 4, 0), codec)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Four recordings of noise, 0.3 to 0.6 s."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for number in range(4):
        save_audio(folder / f"{number}.wav", 0.1 * rng.standard_normal(2400 + 800 * number), 8000)
    return folder
