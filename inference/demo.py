"""`codeclm demo`: continue the bundled human voice, and put what there is to hear, see and count into one folder.

A model with text also says a sentence in that voice, and writes what it hears.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..data.audio_out import save_audio
from ..model.files import write_whole
from .demo_made import SENTENCE, Made, make
from .demo_page import page_of, remarks
from .evaluate.report import DEFINITION
from .generation import Generation
from .generator import SpeechGenerator
from .loading import checkpoint_hash, load, model_folder
from .sound.manipulate import pieces
from .sound.measures import measure_speech
from .sound.surprise_plot import GenerationPlot, plot_generation
from .sound.transcribe import Transcriber

VOICE = "my_voice"  # the prompt in pieces: what a folder of recordings to tune on looks like
PIECE_S = 1.2
PAGE, SAID = "index.html", "said.wav"


def run(out: Path, duration_s: float, seeds: Sequence[int], lm: SpeechGenerator | None = None) -> str:
    """Write the prompt, what the model makes of it, a picture and metrics into `out` -> what to tell the user.

    prompt.wav is the recording, prompt-as-codec.wav the same after the codec: differences between them are the codec's
    doing, not the model's. The picture, demo.png, shows the first seed; it needs matplotlib.
    """
    lm = lm or load()
    out.mkdir(parents=True, exist_ok=True)
    made = make(lm, duration_s, seeds, Transcriber() if find_spec("faster_whisper") else None)
    save_sounds(made, out)
    metrics = metrics_of(made, lm)
    write_whole(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_whole(out / PAGE, page_of(made, lm.name).html())
    look = "there is no picture (it needs: pip install 'codeclm[demo]')"
    if find_spec("matplotlib") is not None:
        plot_generation(plot_of(made.continued[0], lm), out / "demo.png")
        look = "look at demo.png"
    return "\n".join([
        *lines_of(made, metrics), *remarks(made, lm.name),
        f"{out}: open {PAGE} in a browser, or listen to prompt+continuation-*.wav, {look}, read metrics.json",
    ])  # fmt: skip


def save_sounds(made: Made, out: Path) -> None:
    rate = made.continued[0].sample_rate
    save_audio(out / "prompt.wav", made.recording, rate)
    save_audio(out / "prompt-as-codec.wav", made.continued[0].prompt_audio, rate)
    for number, piece in enumerate(pieces(made.recording, rate, PIECE_S), 1):
        save_audio(out / VOICE / f"{number}.wav", piece, rate)
    for result in made.continued:
        result.save(out / f"continuation-{result.seed}.wav")
        result.save(out / f"prompt+continuation-{result.seed}.wav", with_prompt=True)
    if made.said is not None and len(made.said.audio):
        made.said.save(out / SAID)


def metrics_of(made: Made, lm: SpeechGenerator) -> dict:
    """For metrics.json. What is heard is by whisper: null where it is not installed."""
    first = made.continued[0]
    metrics = {
        "definition": DEFINITION,
        "checkpoint_hash": checkpoint_hash(model_folder(lm.name)),
        "codec": lm.codec.name,
        "codec_fingerprint": lm.codec.fingerprint,
        "prompt": measured(first, lm, prompt=True),
        "continuations": [{"seed": result.seed, **measured(result, lm)} for result in made.continued],
    }
    if made.said is not None:
        measures = measured(made.said, lm) if len(made.said.audio) else {"duration_s": 0.0}
        about = {"text": SENTENCE, "heard": made.said_heard, "finish_reason": made.said.finish_reason}
        metrics["said"] = {"seed": made.said.seed, **about, **measures}
    if made.written is not None:
        metrics["written"] = {"text": made.written, "heard": made.heard}
    return metrics


def measured(result: Generation, lm: SpeechGenerator, prompt: bool = False) -> dict:
    """Measures of the audio, and the bits/s that its codes cost the model."""
    cut = result.num_prompt_frames
    bits = result.surprise_bits[:cut] if prompt else result.surprise_bits[cut:]
    measures = asdict(measure_speech(result.prompt_audio if prompt else result.audio, result.sample_rate))
    measures = {key: value if math.isfinite(value) else None for key, value in measures.items()}
    return {"bits_per_second": float(bits.mean() * lm.codec.frame_rate), **measures}


def lines_of(made: Made, metrics: dict) -> list[str]:
    """The metrics for people."""
    lines = [
        f"seed {item['seed']}: {item['duration_s']:.1f} s, {item['bits_per_second']:.0f} bits/s, "
        f"{shown(item['loudness_dbfs'], '.1f')} dBFS, voiced {shown(item['voiced_share'], '.0%')}, "
        f"pitch {shown(item['median_pitch_hz'], '.0f')} Hz"
        for item in metrics["continuations"]
    ]
    if made.said is not None:
        seconds = metrics["said"]["duration_s"]
        said = f"{SAID}, {seconds:.1f} s" if seconds else "nothing, it ended at once"
        lines.append(f'it says "{SENTENCE}": {said}{by_whisper(made.said_heard)}')
    if made.written is not None:
        lines.append(f'it writes of the prompt: "{made.written}"{by_whisper(made.heard)}')
    return lines


def by_whisper(words: str | None) -> str:
    return "" if words is None else f'; whisper hears "{words}"'


def shown(value: float | None, spec: str) -> str:
    """A measure as text; a dash where it is not defined, as the pitch of silence."""
    return "-" if value is None else format(value, spec)


def plot_of(result: Generation, lm: SpeechGenerator) -> GenerationPlot:
    return GenerationPlot(
        audio=np.concatenate([result.prompt_audio, result.audio]),
        sample_rate=result.sample_rate,
        surprise_bits=result.surprise_bits,
        frame_rate=lm.codec.frame_rate,
        prompt_s=len(result.prompt_audio) / result.sample_rate,
        label=f"continuation, seed {result.seed}",
    )
