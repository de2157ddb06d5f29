"""The verbs of `codeclm` that use a model, one function each; codec_cli.py has those of `codeclm codec`.

A verb first checks what can be known to be wrong without torch (checks.py), then imports what is heavy, inside the
function: --help and a bad argument answer at once. train/cli.py adds the verbs that change weights, and `main`.
"""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..data.config import PrepareConfig
from ..model.files import write_whole
from .argument_checks import (
    check_audio,
    check_audio_out,
    check_codec,
    check_data,
    check_device,
    check_distinct,
    check_duration,
    check_folder,
    check_layout,
    check_model,
    check_number,
    check_package,
    check_recording,
    check_seeds,
    check_writable,
)
from .config import EvaluateConfig, SamplingConfig
from .screen import say_loading
from .threads import check_threads, set_threads

if TYPE_CHECKING:
    from .generator import SpeechGenerator

Options = arg(name="")  # the fields of a config become flags without a prefix
Model = Annotated[str, arg(help="a model folder or a training run; 'default' is the embedded model")]
CodecName = Annotated[
    str,
    arg(help="spectral (embedded), mulaw, mdct, encodec, mimi, dac, a folder, or a hub id; NAME:K takes K codebooks"),
]
Audio = Annotated[Path, arg(metavar="AUDIO", help="an audio file, or a folder of them")]
AudioFile = Annotated[Path, arg(metavar="AUDIO", help="an audio file")]
Data = Annotated[Path, arg(metavar="DATA", help="a token store, an audio file, or a folder of them")]
Seed = Annotated[int, arg(help="same seed, same machine: same bytes")]
Device = Annotated[str, arg(help="where to compute: auto (a GPU where there is one), cpu, cuda, cuda:N or mps")]
Threads = Annotated[
    int | None, arg(metavar="N", help="threads of torch; default: OMP_NUM_THREADS, else one while decoding")
]
Numbers = Annotated[Path | None, arg(name="json", metavar="FILE", help="also write the numbers here")]
PROMPT_S, CONTINUATION_S = 3.0, 8.0  # of `evaluate --continuations`


def prepare(
    audio: Positional[Audio],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="folder of the token store")]],
    codec: CodecName = "spectral",
    device: Device = "auto",
    config: Annotated[PrepareConfig, Options] = PrepareConfig(),
) -> None:
    """Turn a folder of AUDIO into a token store in OUT (resumable; what cannot be used is named and skipped)."""
    check_device(device)
    if device not in ("auto", "cpu") and config.num_workers > 1:
        raise ValueError(f"--num-workers {config.num_workers}: workers compute on the CPU; --device {device} needs 1")
    check_folder(out)
    check_audio(audio)
    check_codec(codec)
    say_loading(f"the codec '{codec}'")
    from ..data.prepare import prepare as run

    # worker processes compute on the CPU, and what is made must not depend on their number
    device = "cpu" if device == "auto" and config.num_workers > 1 else device
    print(run(audio, out, open_codec(codec, device), config))


def generate(
    prompt: Positional[Annotated[Path | None, arg(metavar="[PROMPT]", help="the audio file to continue")]] = None,
    out: Annotated[Path, arg(help="the file to write: .wav, .flac, .ogg, .opus or .mp3")] = Path("continuation.wav"),
    model: Model = "default",
    duration: Annotated[float, arg(help="seconds to generate")] = 8.0,
    text: Annotated[str | None, arg(help="what to say, for a model that was trained with text")] = None,
    seed: Seed = 0,
    with_prompt: Annotated[
        bool, arg(help="write the prompt, as the codec renders it, before the continuation")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    sampling: Annotated[SamplingConfig, Options] = SamplingConfig(),
) -> None:
    """Continue the speech in PROMPT (WAV, FLAC, OGG, MP3, ...), or start from nothing."""
    check_seeds(seed)
    check_duration(duration)
    check_device(device)
    check_threads(threads)
    check_audio_out(out)
    check_distinct(out, [prompt])
    check_recording(prompt)
    config = check_model(model)
    if text is not None:
        check_layout("--text", model, config, "first", "aligned")
    lm = open_model(model, device, threads)
    result = lm.generate(prompt, duration, seed, sampling, progress=True, text=text)
    result.save(out, with_prompt)
    bits = result.surprise_bits[result.num_prompt_frames :].mean() * lm.codec.frame_rate
    print(f"{out}: {len(result.audio) / result.sample_rate:.2f} s, {bits:.0f} bits/s, seed {seed}")
    if result.text:
        print(f"text: {result.text}")


def transcribe(
    audio: Positional[AudioFile],
    model: Annotated[str, arg(help="a model folder or a training run, trained with --model.text.layout last")],
    seconds: Annotated[float, arg(help="how much of the end of AUDIO is heard")] = 20.0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write what is said in AUDIO, by a model that was trained with its text after the audio."""
    check_number("--seconds", seconds, 0.1, unit=" s")
    check_device(device)
    check_threads(threads)
    check_recording(audio)
    check_layout("transcribe", model, check_model(model), "last")
    print(open_model(model, device, threads).transcribe(audio, max_s=seconds))


def evaluate(
    data: Positional[Data],
    model: Model = "default",
    json_file: Numbers = None,
    baseline_data: Annotated[
        Path | None,
        arg(metavar="DATA", help="audio or tokens that the baselines are counted on, normally the training data"),
    ] = None,
    continuations: Annotated[int, arg(help="instead: continue this many of the files and measure the results")] = 0,
    prompt_s: Annotated[float, arg(help="continuations: seconds of each file that are continued")] = PROMPT_S,
    duration: Annotated[float, arg(help="continuations: seconds of each")] = CONTINUATION_S,
    asr: Annotated[bool, arg(help="continuations: transcribe them with whisper-base (extra 'asr')")] = False,
    out: Annotated[Path | None, arg(metavar="FOLDER", help="continuations: where to keep them")] = None,
    device: Device = "auto",
    threads: Threads = None,
    config: Annotated[EvaluateConfig, Options] = EvaluateConfig(),
) -> None:
    """Measure speech in DATA (audio or a token store): bits/s, perplexities and baselines, or continuations."""
    check_writable(json_file)
    check_folder(out)
    check_device(device)
    check_threads(threads)
    check_number("--continuations", continuations, 0)
    check_number("--prompt-s", prompt_s, 0.1, unit=" s")
    check_duration(duration)
    idle = {"--prompt-s": prompt_s != PROMPT_S, "--duration": duration != CONTINUATION_S, "--asr": asr, "--out": out}
    if continuations:
        idle = {"--baseline-data": baseline_data}
        for name, value in asdict(replace(config, seed=0)).items():
            idle["--" + name.replace("_", "-")] = value != getattr(EvaluateConfig(), name)
    if given := [flag for flag, value in idle.items() if value]:
        needs = "no use with --continuations" if continuations else "use only with --continuations N"
        raise ValueError(f"{' and '.join(given)}: of {needs}")
    if asr:
        check_package("--asr", "faster_whisper", "asr")
    settings = check_model(model)
    if continuations:
        check_audio(data)
        report = measure_continuations(
            data, model, continuations, prompt_s, duration, config.seed, asr, out, device, threads
        )
        write_json(json_file, report.to_dict())
        print(report.table())
        if out is None:
            print("the continuations were not kept; --out FOLDER keeps them")
        return
    check_data(data, settings)
    check_data(baseline_data, settings)
    lm = open_model(model, device)
    set_threads(threads)
    report = likelihood_report(lm, data, baseline_data, config)
    write_json(json_file, json.loads(report.to_json()))
    print(report.table())
    if report.model.bits_per_second > report.bigram.bits_per_second:
        print(
            "This speech is new to the model: counting which code follows which, on speech like this, predicts it "
            f"better. Tune it: codeclm finetune FOLDER --from {model} --out RUN, on other recordings of the same voice"
        )


def likelihood_report(lm: "SpeechGenerator", data: Path, baseline_data: Path | None, config: EvaluateConfig) -> Any:
    """Score audio or tokens; audio is tokenized in a temporary folder."""
    from ..data.prepare import open_or_prepare
    from .evaluate.score import evaluate as run
    from .loading import checkpoint_hash, model_folder

    with tempfile.TemporaryDirectory() as scratch:
        baseline_store = None
        if baseline_data is not None:  # the first to be read: what is wrong with it is told before anything is scored
            baseline_store = open_or_prepare(baseline_data, Path(scratch) / "baseline", lm.codec)
            baseline_store.require_codec(lm.codec)
        store = open_or_prepare(data, Path(scratch) / "tokens", lm.codec, limit=config.limit)
        if baseline_data is None and len(store) < 2:
            raise ValueError(
                f"{data}: one utterance is not enough for the baselines; add files or give --baseline-data"
            )
        report = run(lm.model, store, checkpoint_hash(model_folder(lm.name)), baseline_store, config, lm.tokenizer)
        return report if baseline_data is None else replace(report, baselines_from=str(baseline_data))


def measure_continuations(
    data: Path, model: str, count: int, prompt_s: float, duration_s: float, seed: int, asr: bool,
    out: Path | None, device: str, threads: int | None,
) -> Any:  # fmt: skip
    """Continue `count` of the files that can be, spread evenly over them."""
    files, skipped = usable_prompts(data, count, prompt_s)
    lm = open_model(model, device, threads)
    from .evaluate.continuations import continuation_report

    report = continuation_report(lm, files, prompt_s, duration_s, seed, asr, out)
    return replace(report, skipped=skipped + report.skipped)


def usable_prompts(data: Path, count: int, prompt_s: float) -> tuple[list[Path], list[str]]:
    """`count` files, spread evenly over those whose prompt can be used, and why others cannot: "file: reason".

    Raises AudioError if there is none.
    """
    from ..data.audio import AudioError, audio_header, find_audio

    files = find_audio(data)
    long = [file for file in files if audio_header(file)[1] >= prompt_s]
    skipped = [f"{file}: shorter than the prompt (--prompt-s {prompt_s:g})" for file in files if file not in long]
    first = spread(long, count)
    chosen: list[Path] = []
    for file in [*first, *(file for file in long if file not in first)]:
        if len(chosen) == count:
            break
        try:
            check_recording(file)
            chosen.append(file)
        except AudioError as error:
            skipped.append(str(error))
    if not chosen:
        raise AudioError(f"{data}: none of {len(files)} audio files can be continued (first: {skipped[0]})")
    return sorted(chosen), skipped if len(chosen) < count else []


def demo(
    out: Annotated[Path, arg(help="folder for what there is to hear, see and count")] = Path("runs/demo"),
    duration: Annotated[float, arg(help="seconds to generate")] = 8.0,
    seeds: Annotated[tuple[int, ...], arg(help="a continuation for each")] = (0, 1, 2),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Continue the bundled recording of a human voice: WAV files, a picture and metrics in OUT."""
    check_seeds(*seeds)
    check_duration(duration)
    check_device(device)
    check_threads(threads)
    check_folder(out)
    from .demo import run

    print(run(out, duration, seeds, open_model("default", device, threads)))


def open_model(name: str, device: str = "auto", threads: int | None = None) -> "SpeechGenerator":
    """`load`, with a sign of life. threads: of decoding."""
    say_loading(f"the model '{name}'")
    from .loading import load

    lm = load(name, device=device)
    lm.threads = threads
    return lm


def open_codec(name: str, device: str = "auto") -> Any:
    """`load_codec`, on a device."""
    from ..model.codecs import load_codec
    from ..model.device import resolve_device

    where = resolve_device(device)
    codec = load_codec(name)
    return codec.to(where)


def spread(files: list[Path], count: int) -> list[Path]:
    """At most `count` of the files, evenly spread over their order."""
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def write_json(path: Path | None, values: dict) -> None:
    if path is not None:
        write_whole(path, json.dumps(values, indent=2) + "\n")
