"""The folder in which the commands of bad_inputs.py are given: `make_world` fills it with good and bad things."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch

from codeclm.inference.compress.container import ClmFile
from codeclm.inference.loading import save_model
from codeclm.model.codec_reference import CodecReference
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.model.lm import SpeechLM
from codeclm.model.shapes import TransformerConfig
from codeclm.model.speech_lm_config import SpeechLMConfig
from codeclm.train.cli import main

RATE = 16_000
SMALL = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=2, ff_dim=32)


def speech(seconds: float, rate: int = RATE) -> np.ndarray:
    """A gliding tone with overtones: not silent, and no two seconds alike."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * time + 3 * np.sin(2 * np.pi * 2 * time))
    return 0.1 * sum(np.sin(k * phase) / k for k in range(1, 8))


def make_world(world: Path) -> None:
    """Fill a folder with what is good and what is not."""
    _make_audio(world)
    with contextlib.chdir(world), contextlib.redirect_stdout(io.StringIO()):
        for name, seed, store in (("model", 0, "store"), ("other", 1, "other-store")):
            _make_model(Path(name), seed)
            main(["prepare", "audio", store, "--codec", f"{name}/codec"])
        main(["codec", "compress", "good.wav", "good.clm", "--model", "model"])
    _damage_models(world)
    _damage_stores(world)
    clm = (world / "good.clm").read_bytes()
    (world / "cut.clm").write_bytes(clm[:-10])
    (world / "flipped.clm").write_bytes(clm[:-5] + bytes([clm[-5] ^ 1]) + clm[-4:])
    (world / "text.clm").write_text("not compressed at all\n" * 10)
    assert ClmFile.read(world / "good.clm").num_frames == 25


def _make_audio(world: Path) -> None:
    good = speech(1.0)
    soundfile.write(world / "good.wav", good, RATE)
    for folder in ("audio", "empty", "notes", "bad", "folder.wav", "run/step-00000010"):
        (world / folder).mkdir(parents=True)
    for i in range(6):
        soundfile.write(world / f"audio/{i}.wav", speech(1.0 + i / 7), RATE)
    (world / "notes/notes.txt").write_text("hello")
    (world / "run/step-00000010/model.safetensors").write_bytes(b"\0" * 100)
    for name, config in (("codec-run", '{"run": "the training of a codec"}'), ("broken-run", '{"run": ')):
        (world / name).mkdir()
        (world / name / "config.json").write_text(config)
        (world / name / "metrics.jsonl").touch()
    (world / "empty.wav").touch()
    (world / "text.wav").write_text("not audio at all\n" * 100)
    (world / "text.th").write_text("not a checkpoint\n" * 100)
    (world / "cut.wav").write_bytes((world / "good.wav").read_bytes()[:20_000])
    (world / "header.wav").write_bytes(b"")
    soundfile.write(world / "header.wav", good[:0], RATE)
    for suffix in ("flac", "mp3"):
        soundfile.write(world / f"whole.{suffix}", speech(20.0), RATE)
        content = (world / f"whole.{suffix}").read_bytes()
        (world / f"whole.{suffix}").unlink()
        (world / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    soundfile.write(world / "silent.wav", 0 * good, RATE)
    soundfile.write(world / "short.wav", good[:300], RATE)
    soundfile.write(world / "cancelling.wav", np.stack([good, -good], axis=1), RATE)
    soundfile.write(world / "slow.wav", good, 1)
    soundfile.write(world / "fast.wav", good, 500_000)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("loud", 37.0)):
        soundfile.write(world / f"{name}.wav", np.where(np.arange(len(good)) == 500, value, good), RATE, "FLOAT")
    (world / "empty.jsonl").write_text("\n\n")
    (world / "pairs.jsonl").write_text('{"better": "missing.wav", "worse": "good.wav"}\n')
    (world / "broken.jsonl").write_text('{"prompt": "missing.wav"}\n')
    (world / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + b"\0" * 1000)
    (world / "link.wav").symlink_to("good.wav")
    (world / "nowhere.wav").symlink_to("gone.wav")
    (world / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(world / "pipe.wav")
    for name in ("empty", "text", "cut", "silent", "nan", "short", "loud"):
        shutil.copy(world / f"{name}.wav", world / f"bad/{name}.wav")


def _make_model(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    layers = dict(encoder_layers=1, decoder_layers=1, bottleneck_layers=1)
    books = dict(num_codebooks=3, codebook_size=16, codebook_dim=4)
    codec = SpectralCodec(SpectralConfig(encoder_dim=16, dim=16, **layers, **books)).eval()
    reference = CodecReference.of(codec)
    config = SpeechLMConfig(num_codebooks=3, codebook_size=16, backbone=SMALL, depth=SMALL, codec=reference)
    save_model(SpeechLM(config), codec, folder)


def _damage_models(world: Path) -> None:
    def changed(name: str, file: str, change) -> None:
        path = Path(shutil.copytree(world / "model", world / name)) / file
        path.write_bytes(change(path.read_bytes()))

    def flipped(content: bytes) -> bytes:
        return content[:-100] + bytes([content[-100] ^ 64]) + content[-99:]

    def with_nan(content: bytes) -> bytes:
        return content[:-4] + np.float32(np.nan).tobytes()

    weights, config = "model.safetensors", "config.json"
    changed("cut-weights", weights, lambda content: content[: len(content) // 2])
    changed("nan-weights", weights, with_nan)
    changed("flipped", weights, flipped)
    changed("flipped-codec", f"codec/{weights}", flipped)
    changed("no-json", config, lambda content: content[: len(content) // 2])
    changed("a-list", config, lambda content: b"[1, 2]")
    changed("unknown-setting", config, lambda content: content.replace(b'"bos"', b'"boss"'))
    changed("wrong-type", config, lambda content: content.replace(b'"norm_eps": 1e-06', b'"norm_eps": "small"'))
    changed("huge", config, lambda content: content.replace(b'"dim": 16', b'"dim": 1000000000'))
    (Path(shutil.copytree(world / "model", world / "no-weights")) / weights).unlink()
    shutil.rmtree(shutil.copytree(world / "model", world / "other-codec") / "codec")
    shutil.copytree(world / "other/codec", world / "other-codec/codec")
    for name, change in (
        ("cut", lambda content: content),
        ("list", lambda content: content.replace(b'"spectral"', b'["spectral"]')),
        ("dict", lambda content: content.replace(b'"spectral"', b'{"a": 1}')),
    ):
        folder = Path(shutil.copytree(world / "model/codec", world / f"{name}-codec"))
        (folder / config).write_bytes(change((folder / config).read_bytes()))
    content = (world / "cut-codec" / weights).read_bytes()
    (world / "cut-codec" / weights).write_bytes(content[: len(content) // 2])
    torch.save({"a": print}, world / "pickle.th")


def _damage_stores(world: Path) -> None:
    def changed(name: str, file: str, change) -> None:
        path = next(Path(shutil.copytree(world / "store", world / name)).glob(file))
        path.write_bytes(change(path.read_bytes()))

    changed("cut-store", "shard-*.bin", lambda content: content[:-20])
    changed("flipped-store", "shard-*.bin", lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    changed("no-json-store", "store.json", lambda content: content[:-20])
    changed(
        "wrong-type-store", "store.json", lambda content: content.replace(b'"hop_length": 640', b'"hop_length": "a"')
    )
    (Path(shutil.copytree(world / "store", world / "unfinished-store")) / "store.json").unlink()
