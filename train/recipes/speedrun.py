"""From nothing to a small speech LM that beats counting, in minutes on two CPU cores: `make speedrun`.

    python -m codeclm.train.recipes.speedrun --out runs/speedrun

A synthetic voice ("heart", hibari-tts, Apache-2.0) reads the docstrings of Python's own library. The embedded codec
turns that into tokens, and a new model learns them. It is compared with the baselines on speech that it never heard.
OUT/card.md tells how it went. Nothing is downloaded, and the same command goes on where it was stopped.
"""

import ast
import json
import os
import platform
import re
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from ...inference.screen import log_lines, say_error, terminable
from ...model.files import write_whole
from ...model.shapes import DepthConfig, TransformerConfig
from ..config import BatchConfig, ModelConfig, OptimizerConfig, TrainConfig
from .corpus import group_words, heart_voice, synthesise

if TYPE_CHECKING:
    from ...data import PrepareSummary
    from ...inference.evaluate.report import LikelihoodReport
    from ...inference.generator import SpeechGenerator

VOICE, WORDS_PER_UTTERANCE = "heart", 20
PROMPT_S, SAMPLE_S = 3.0, 6.0
SENTENCE = re.compile(r"[A-Z][A-Za-z ,;:'-]+[.:]")  # prose: no code, no numbers, no quotes
CARD, SAMPLE, SECONDS = "card.md", "sample.wav", "seconds.json"
TRAINING = TrainConfig(
    steps=500,
    evaluate_every=100,
    depth_fraction=0.3,
    model=ModelConfig(
        backbone=TransformerConfig(dim=192, num_layers=4, num_heads=4, num_kv_heads=4, ff_dim=512),
        depth=DepthConfig(dim=128, num_layers=2, num_heads=4, num_kv_heads=4, ff_dim=384),
    ),
    batch=BatchConfig(frames_per_batch=2048, max_frames=256),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, schedule="cosine"),
)


def main(
    out: Annotated[Path, arg(help="folder of the run; the same command resumes it")] = Path("runs/speedrun"),
    minutes: Annotated[float, arg(help="minutes of speech to make; Python's docstrings last about 240")] = 120.0,
    training: TrainConfig = TRAINING,
) -> None:
    """Make speech, train a small model on it, and print a report card."""
    if not (out / CARD).is_file():
        try:
            with log_lines(), terminable():
                run(out, minutes, training)
        except KeyboardInterrupt as interrupt:
            say_error(f"{out}: stopped; the same command goes on from there")
            sys.exit(getattr(interrupt, "status", 130))
    print((out / CARD).read_text(), end="")


def run(out: Path, minutes: float, training: TrainConfig) -> None:
    """The recipe, step by step; every step keeps what it finds in `out`."""
    with timed(out, "speech"):
        texts = group_words(sentences(), WORDS_PER_UTTERANCE)
        synthesise(VOICE, heart_voice(), texts, minutes / 60, out / "speech")

    from ...data import prepare
    from ...data.audio import audio_header, find_audio, load_audio
    from ...inference import load
    from .. import train

    with timed(out, "tokens"):
        data = prepare(out / "speech/train", out / "tokens")
    with timed(out, "training"):
        lm = load(train(out / "tokens", out / "lm", config=training))
    with timed(out, "evaluation"):
        report = lm.evaluate(out / "speech/heldout", baseline_data=out / "tokens")
    rate = lm.codec.sample_rate
    longest = max(find_audio(out / "speech/heldout"), key=lambda file: audio_header(file)[1])
    prompt = load_audio(longest, rate)[: round(PROMPT_S * rate)]
    lm.generate((prompt, rate), SAMPLE_S).save(out / SAMPLE, with_prompt=True)
    write_whole(out / CARD, report_card(out, lm, training, data, report))


def sentences() -> list[str]:
    """The prose in the docstrings of Python's standard library, each sentence once, in an order of its own."""
    found: set[str] = set()
    for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    found.update(re.split(r"(?<=[.:]) (?=[A-Z])", " ".join(paragraph.split())))
    prose = [text for text in found if SENTENCE.fullmatch(text) and 5 <= len(text.split()) <= 40]
    return sorted(prose, key=lambda text: (zlib.crc32(text.encode()), text))


@contextmanager
def timed(out: Path, step: str) -> Iterator[None]:
    """Add the seconds that a step takes to those of earlier runs."""
    start = time.monotonic()
    try:
        yield
    finally:
        spent = seconds(out)
        spent[step] = spent.get(step, 0.0) + time.monotonic() - start
        write_whole(out / SECONDS, json.dumps(spent, indent=2) + "\n")


def seconds(out: Path) -> dict[str, float]:
    """Step -> seconds so far."""
    path = out / SECONDS
    return json.loads(path.read_text()) if path.is_file() else {}


def report_card(
    out: Path, lm: "SpeechGenerator", training: TrainConfig, data: "PrepareSummary", report: "LikelihoodReport"
) -> str:
    """What was made and what came of it, in Markdown."""
    import torch

    spent = seconds(out)
    parameters = sum(p.numel() for p in lm.model.parameters()) / 1e6
    saved = 1 - report.model.bits_per_second / report.bigram.bits_per_second
    rows = [(name, getattr(report, name)) for name in ("model", "bigram", "unigram")]
    lines = [
        "# Speedrun",
        "",
        f"{abs(saved):.1%} {'fewer' if saved > 0 else 'more'} bits than the bigram, "
        f"after {sum(spent.values()) / 60:.1f} minutes.",
        "",
        "| held-out speech | bits/s | 95 % interval |",
        "|---|---|---|",
        *(
            f"| {name} | {row.bits_per_second:.1f} | {row.interval[0]:.1f} to {row.interval[1]:.1f} |"
            for name, row in rows
        ),
        f"| raw codes | {report.raw_bits_per_second:.1f} | |",
        "",
        f"- data: {data.hours:.2f} h of one synthetic voice, {data.num_utterances} utterances; "
        f"held out: {report.num_utterances} others, {report.duration_s / 60:.1f} min",
        f"- model: {parameters:.1f} M parameters, pattern {lm.model.pattern}, on the codec {report.codec}",
        f"- training: {training.steps} steps of at most {training.batch.frames_per_batch} frames, seed {training.seed}",
        f"- time: {', '.join(f'{step} {value:.0f} s' for step, value in spent.items())}",
        f"- machine: {platform.machine()}, {os.cpu_count()} cores, of which torch used {torch.get_num_threads()}, "
        f"{lm.device.type}, torch {torch.__version__}",
        f"- listen: {out / SAMPLE}, {PROMPT_S:g} s of held-out speech and {SAMPLE_S:g} s that the model adds",
        f"- definition: {report.definition}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
