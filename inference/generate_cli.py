"""The verb `generate`: one prompt to continue, to regenerate or to join with another recording, or many prompts.

And `prefix`: a voice prompt that is kept.
"""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..model.shapes import SPEAKS
from .argument_checks import (
    check_audio_out,
    check_device,
    check_distinct,
    check_duration,
    check_folder,
    check_kept,
    check_layout,
    check_model,
    check_number,
    check_prompt,
    check_recording,
    check_seeds,
    check_stream,
    check_writable,
)
from .config import SamplingConfig
from .many_prompts import BATCH, Line, generate_many
from .options import Device, Model, Options, Seed, Threads, Weights, open_model
from .text_cli import stdin_parts
from .threads import check_threads

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
USELESS = {
    ".jsonl": ("--stream", "--with-prompt", "--report", "--keep-codebooks", "--then", "--best-of"),
    "--keep-codebooks": ("--stream", "--then", "--duration", "--with-prompt", "--stop-at-end", "--max-prompt-s"),
    "--then": ("--stream", "--stop-at-end"),
}
NEEDS = {
    "--keep-codebooks": (("PROMPT",), "the recording whose codes are kept"),
    "--then": (("PROMPT", "--duration"), "the recording before, and the seconds in between"),
    "--best-of": (("--then",), "what follows a gap tells which gap is best"),
    "--guidance": (("--text",), "it weighs the text"),
}


def generate(
    prompt: Positional[
        Annotated[
            Path | None,
            arg(metavar="[PROMPT]", help="the audio file to continue, a .safetensors of `prefix`, or a .jsonl"),
        ]
    ] = None,
    out: Annotated[
        Path, arg(help="the file to write: .wav, .flac, .ogg, .opus or .mp3; for a .jsonl the folder")
    ] = Path("continuation.wav"),
    stream: Annotated[
        str | None, arg(metavar="-|pcm", help="write to stdout while it is made: WAV, or bare 16-bit samples; no --out")
    ] = None,
    model: Model = "default",
    duration: Annotated[
        float | None,
        arg(
            metavar="S",
            help="seconds to generate (inf, with --stream: until it is stopped); "
            "else until the model ends, at most 20; after a PROMPT alone 8",
        ),
    ] = None,
    text: Annotated[
        str | None,
        arg(
            metavar="TEXT",
            help="text to say, for a model that was trained with text; - for stdin: "
            "with --stream each word is said as it comes, by a model of the text layout timed",
        ),
    ] = None,
    seed: Seed = 0,
    with_prompt: Annotated[
        bool, arg(help="write the prompt, as the codec renders it, before the continuation")
    ] = False,
    keep_codebooks: Annotated[
        int | None, arg(metavar="N", help="keep the N coarsest codebooks of all of PROMPT, and draw the others anew")
    ] = None,
    then: Annotated[
        Path | None, arg(metavar="AUDIO", help="audio to end with: --duration is a gap, drawn without looking ahead")
    ] = None,
    best_of: Annotated[
        int, arg(help="with --then: draw N gaps, and take the one after which AUDIO costs the fewest bits")
    ] = 1,
    report: Annotated[bool, arg(help="print loudness, pauses, voice, pitch and bits/s of each quarter")] = False,
    weights: Weights = "float32",
    device: Device = "auto",
    threads: Threads = None,
    sampling: Annotated[SamplingConfig, Options] = SamplingConfig(),
) -> None:
    """Continue the speech in PROMPT (WAV, FLAC, OGG, MP3, ...), or start from nothing."""
    is_many = prompt is not None and prompt.suffix == ".jsonl"
    given = {
        ".jsonl": is_many,
        "PROMPT": prompt is not None,
        "--stream": stream is not None,
        "--duration": duration is not None,
        "--text": text is not None,
        "--with-prompt": with_prompt,
        "--report": report,
        "--keep-codebooks": keep_codebooks is not None,
        "--then": then is not None,
        "--best-of": best_of != 1,
        "--guidance": sampling.guidance != 1,
        "--stop-at-end": sampling.stop_at_end,
        "--max-prompt-s": sampling.max_prompt_s != SamplingConfig.max_prompt_s,
    }
    check_together(given)
    check_seeds(seed)
    check_number("--best-of", best_of, 1)
    if duration is not None:
        check_duration(duration, endless=stream is not None)
    check_device(device)
    check_threads(threads)
    if stream is not None:
        check_stream(stream, {"--with-prompt": with_prompt, "--report": report})
    elif is_many:
        check_folder_out(out)
    else:
        check_audio_out(out)
        check_distinct(out, [prompt, then])
    if not is_many:
        check_prompt(prompt)
    if keep_codebooks is not None and prompt is not None and prompt.suffix == ".safetensors":
        raise ValueError(f"--keep-codebooks needs a recording, not {prompt}")
    check_recording(then)
    config = check_model(model)
    if text is not None:
        check_layout("--text", model, config, *SPEAKS)
    if keep_codebooks is not None:
        check_kept(keep_codebooks, sampling.num_codebooks or config.get("num_codebooks"))
    if text == "-" and stream is None:
        text = "".join(stdin_parts())
    if is_many:
        assert prompt is not None
        defaults = Line(0, "", None, text, duration, seed, sampling)
        print(generate_many(prompt, out, defaults, lambda: open_model(model, device, threads, weights, BATCH)))
        return
    lm = open_model(model, device, threads, weights, best_of)
    if stream is not None:
        from ..data.audio_out import audio_to

        said = text
        if text == "-":
            parts = stdin_parts()
            said = parts if lm.model.config.text.layout == "timed" else "".join(parts)  # others need all of a text
        chunks = lm.stream(prompt, duration, seed, sampling, said)
        audio_to(sys.stdout.buffer, chunks, lm.codec.sample_rate, with_header=stream == "-")
        return
    if prompt is not None and keep_codebooks is not None:
        result = lm.regenerate(prompt, keep_codebooks, seed, sampling, True, text)
    elif prompt is not None and then is not None and duration is not None:
        result = lm.fill(prompt, then, duration, seed, sampling, True, text, best_of)
    else:
        result = lm.generate(prompt, duration, seed, sampling, True, text)
    result.save(out, with_prompt)
    bits = result.surprise_bits[result.num_prompt_frames :].mean() * lm.codec.frame_rate
    print(f"{out}: {len(result.audio) / result.sample_rate:.2f} s, {bits:.0f} bits/s, seed {result.seed}")
    if result.text and text is None:
        print(f"text: {result.text}")
    if report:
        from .sound.drift import measure_drift

        surprise = result.surprise_bits[result.num_prompt_frames :]
        print(measure_drift(result.audio, result.sample_rate, surprise, lm.codec.frame_rate).table())


def prefix(
    voice: Positional[Annotated[Path, arg(metavar="VOICE", help="the audio file to go on from")]],
    out: Annotated[Path, arg(help="the .safetensors file to write, a PROMPT for `generate`")] = Path(
        "voice.safetensors"
    ),
    model: Model = "default",
    max_prompt_s: Annotated[float, arg(help="keep at most the last N seconds of VOICE")] = SamplingConfig.max_prompt_s,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Keep a voice prompt as it is after it was encoded and read: generation goes on from it at once."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: a prefix is a .safetensors file; give it such a name")
    check_number("--max-prompt-s", max_prompt_s, 0.1, unit=" s")
    check_device(device)
    check_threads(threads)
    check_writable(out)
    check_recording(voice)
    check_model(model)
    lm = open_model(model, device, threads)
    kept = lm.prefix(voice, max_prompt_s)
    kept.save(out)
    print(f"{out}: {kept.codes.shape[1] / lm.codec.frame_rate:.2f} s, for this model only")


def check_together(given: dict[str, bool]) -> None:
    """Raise ValueError for options that do nothing beside others, or need others. given: whether each is."""
    for flag, others in USELESS.items():
        if given[flag] and (idle := [other for other in others if given[other]]):
            raise ValueError(f"{' and '.join(idle)}: of no use with {flag}")
    for flag, (others, reason) in NEEDS.items():
        if given[flag] and not all(given[other] for other in others) and not given[".jsonl"]:
            raise ValueError(f"{flag} needs {' and '.join(others)}: {reason}")


def check_folder_out(out: Path) -> None:
    """Raise ValueError or OSError for no folder to write many files to."""
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise ValueError(f"--out {out}: many prompts need a folder, for a file of each line")
    check_folder(out)
