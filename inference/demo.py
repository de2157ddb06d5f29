"""`codeclm demo`: continue the bundled human voice, and put what there is to hear, see and count into one folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..data.audio import load_audio
from ..data.audio_out import save_audio
from ..model.files import write_whole
from ..model.pretrained import PROMPT
from .evaluate.report import DEFINITION
from .generation import Generation
from .generator import SpeechGenerator
from .loading import checkpoint_hash, load, model_folder
from .report.page import Page, Section
from .report.sounds import continuation, heard, rendering
from .report.tracks import Sound
from .sound.manipulate import pieces
from .sound.measures import measure_speech
from .sound.surprise_plot import GenerationPlot, plot_generation
from .sound.transcribe import Transcriber

VOICE = "my_voice"  # the prompt in pieces: what a folder of recordings to tune on looks like
PIECE_S = 1.2
PAGE = "index.html"
MEANING = "words and a voice, no meaning: the model is small and has learned from sound alone"


def run(out: Path, duration_s: float, seeds: Sequence[int], lm: SpeechGenerator | None = None) -> str:
    """Write the prompt, its continuations, a picture and metrics into `out` -> what to tell the user.

    prompt.wav is the recording, prompt-as-codec.wav the same after the codec: differences between them are the codec's
    doing, not the model's. The picture, demo.png, shows the first seed; it needs matplotlib.
    """
    lm = lm or load()
    out.mkdir(parents=True, exist_ok=True)
    rate = lm.codec.sample_rate
    results = lm.generate_many(PROMPT, duration_s, seeds, progress=True)
    recording = load_audio(PROMPT, rate)
    save_audio(out / "prompt.wav", recording, rate)
    save_audio(out / "prompt-as-codec.wav", results[0].prompt_audio, rate)
    for number, piece in enumerate(pieces(recording, rate, PIECE_S), 1):
        save_audio(out / VOICE / f"{number}.wav", piece, rate)
    for seed, result in zip(seeds, results, strict=True):
        result.save(out / f"continuation-{seed}.wav")
        result.save(out / f"prompt+continuation-{seed}.wav", with_prompt=True)
    metrics = {
        "definition": DEFINITION,
        "checkpoint_hash": checkpoint_hash(model_folder(lm.name)),
        "codec": lm.codec.name,
        "codec_fingerprint": lm.codec.fingerprint,
        "prompt": metrics_of(results[0], lm, prompt=True),
        "continuations": [
            {"seed": seed, **metrics_of(result, lm)} for seed, result in zip(seeds, results, strict=True)
        ],
    }
    write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_whole(out / PAGE, page_of(recording, results, lm).html())
    look = "there is no picture (it needs: pip install 'codeclm[demo]')"
    if find_spec("matplotlib") is not None:
        plot_generation(plot_of(results[0], seeds[0], lm), out / "demo.png")
        look = "look at demo.png"
    lines = [
        f"seed {item['seed']}: {item['duration_s']:.1f} s, {item['bits_per_second']:.0f} bits/s, "
        f"{shown(item['loudness_dbfs'], '.1f')} dBFS, voiced {shown(item['voiced_share'], '.0%')}, "
        f"pitch {shown(item['median_pitch_hz'], '.0f')} Hz"
        for item in metrics["continuations"]
    ]
    return "\n".join([
        *lines, MEANING,
        f"{out}: open {PAGE} in a browser, or listen to prompt+continuation-*.wav, {look}, read metrics.json",
    ])  # fmt: skip


def page_of(recording: np.ndarray, results: Sequence[Generation], lm: SpeechGenerator) -> Page:
    """The recording, its codec rendering and the continuations, told apart; with their words where whisper is there."""
    first, transcriber = results[0], Transcriber() if find_spec("faster_whisper") else None
    given = slice(None, first.num_prompt_frames)
    sounds = [
        Sound("recording", recording, lm.codec.sample_rate, "a human voice that the model was trained on"),
        rendering(lm, first.codes[:, given], first.nll[:, given], len(first.prompt_audio)),
        *(continuation(lm, result) for result in results),
    ]
    return Page("A voice, and how the embedded model goes on", [MEANING], [Section("", (), heard(sounds, transcriber))])


def metrics_of(result: Generation, lm: SpeechGenerator, prompt: bool = False) -> dict:
    """Measures of the audio, and the bits/s that its codes cost the model."""
    cut = result.num_prompt_frames
    bits = result.surprise_bits[:cut] if prompt else result.surprise_bits[cut:]
    measures = asdict(measure_speech(result.prompt_audio if prompt else result.audio, result.sample_rate))
    measures = {key: value if math.isfinite(value) else None for key, value in measures.items()}
    return {"bits_per_second": float(bits.mean() * lm.codec.frame_rate), **measures}


def shown(value: float | None, spec: str) -> str:
    """A measure as text; a dash where it is not defined, as the pitch of silence."""
    return "-" if value is None else format(value, spec)


def plot_of(result: Generation, seed: int, lm: SpeechGenerator) -> GenerationPlot:
    return GenerationPlot(
        audio=np.concatenate([result.prompt_audio, result.audio]),
        sample_rate=result.sample_rate,
        surprise_bits=result.surprise_bits,
        frame_rate=lm.codec.frame_rate,
        prompt_s=len(result.prompt_audio) / result.sample_rate,
        label=f"continuation, seed {seed}",
    )
