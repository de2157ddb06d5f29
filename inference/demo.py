"""`codeclm demo`: continue the bundled human voice, and put what there is to hear, see and count into one folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..data.audio import save_wav
from .evaluate.measures import measure_speech
from .generator import Generation, SpeechGenerator
from .likelihood import DEFINITION
from .loading import EMBEDDED_MODEL, load, model_folder
from .report import GenerationPlot, plot_generations
from .score import checkpoint_hash

PROMPT = EMBEDDED_MODEL / "prompt.flac"


def run(out: Path, duration_s: float, seeds: Sequence[int]) -> str:
    """Write prompt.wav, continuation-SEED.wav, demo.png and metrics.json into `out` -> what to tell the user."""
    lm = load()
    out.mkdir(parents=True, exist_ok=True)
    results = lm.generate_many(PROMPT, duration_s, seeds, progress=True)
    save_wav(out / "prompt.wav", results[0].prompt_audio, results[0].sample_rate)
    for seed, result in zip(seeds, results, strict=True):
        result.save(out / f"continuation-{seed}.wav")
        result.save(out / f"prompt+continuation-{seed}.wav", with_prompt=True)
    plot_generations([plot_of(result, seed, lm) for seed, result in zip(seeds, results, strict=True)], out / "demo.png")
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
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    lines = [
        f"seed {item['seed']}: {item['duration_s']:.1f} s, {item['bits_per_second']:.0f} bits/s, "
        f"{shown(item['loudness_dbfs'], '.1f')} dBFS, voiced {shown(item['voiced_share'], '.0%')}, "
        f"pitch {shown(item['median_pitch_hz'], '.0f')} Hz"
        for item in metrics["continuations"]
    ]
    return "\n".join([*lines, f"{out}: listen to prompt+continuation-*.wav, look at demo.png, read metrics.json"])


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
    import numpy as np

    return GenerationPlot(
        audio=np.concatenate([result.prompt_audio, result.audio]),
        sample_rate=result.sample_rate,
        surprise_bits=result.surprise_bits,
        frame_rate=lm.codec.frame_rate,
        prompt_s=len(result.prompt_audio) / result.sample_rate,
        title=f"seed {seed}",
    )
