"""The verbs of `codeclm` that use a model, one function each. Options that verbs share are options.py's.

`verify` is in verify/cli.py, `codec ...` in codec/cli.py and compress/cli.py; train/cli.py has the verbs that change
weights, and `main`. A verb first checks what can be known to be wrong without torch (argument_checks.py), then imports
what is heavy, inside the function: --help and a bad argument answer at once.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..data.config import PrepareConfig
from ..model.presets import PRESETS
from ..model.shapes import PATTERNS, TAGGED
from .argument_checks import (
    check_audio,
    check_codec,
    check_conversion,
    check_data,
    check_device,
    check_duration,
    check_folder,
    check_layout,
    check_missing_codec,
    check_model,
    check_number,
    check_package,
    check_rank,
    check_seeds,
    check_speech,
    check_writable,
)
from .config import EvaluateConfig, PairsConfig
from .evaluate.named_adapter import check_options, names_adapter, open_adapter
from .evaluate.run_split import check_split
from .options import (
    CodecName,
    Data,
    Device,
    Model,
    Numbers,
    Options,
    Seed,
    Speech,
    Threads,
    Weights,
    open_model,
    write_json,
)
from .screen import say_loading
from .threads import check_threads, set_threads

ScoredModel = Annotated[
    str,
    arg(
        help="a model folder or a training run; 'default' is the embedded model; a CSM or Moshi folder of "
        "transformers'; MODULE:OBJECT, an adapter of yours to any other model"
    ),
]
PROMPT_S, CONTINUATION_S = 3.0, 8.0  # `evaluate --continuations`: seconds of each


def prepare(
    audio: Positional[Speech],
    out: Positional[Annotated[Path, arg(metavar="OUT", help="folder of the token store")]],
    codec: CodecName = "spectral",
    device: Device = "auto",
    rank: Annotated[int | None, arg(help="one of several processes or machines on one OUT: which, from 0")] = None,
    world_size: Annotated[int | None, arg(help="with --rank: how many there are")] = None,
    commit: Annotated[bool, arg(help="when all ranks are done: make their shards a store")] = False,
    ray: Annotated[bool, arg(help="encode with the actors of a Ray cluster (extra 'ray')")] = False,
    config: Annotated[PrepareConfig, Options] = PrepareConfig(num_workers=0),
) -> None:
    """Encode AUDIO into a token store in OUT; resumable; files that cannot be used are named and skipped."""
    check_device(device)
    share = check_rank(rank, world_size, commit, ray)
    if device not in ("auto", "cpu") and config.num_workers > 1:
        raise ValueError(f"--num-workers {config.num_workers}: workers compute on the CPU; --device {device} needs 1")
    check_folder(out)
    check_speech(audio)
    check_codec(codec)
    say_loading(f"the codec '{codec}'")
    from ..data.preparation import prepare as run
    from ..data.preparation import prepare_rank

    if share is not None:
        from ..data.ranks import Rank

        print(prepare_rank(audio, out, Rank(*share), codec, config, device=device))
    else:
        print(run(audio, out, codec, config, device=device, commit=commit, ray=ray))


def evaluate(
    data: Positional[Data],
    model: ScoredModel = "default",
    json_file: Numbers = None,
    baseline_data: Annotated[
        Path | None,
        arg(metavar="DATA", help="audio or tokens to count the baselines on, normally the training data"),
    ] = None,
    continuations: Annotated[int, arg(help="continue this many files and judge the results, instead of scoring")] = 0,
    prompt_s: Annotated[float, arg(help="with --continuations: seconds of each file that are the prompt")] = PROMPT_S,
    duration: Annotated[float, arg(help="with --continuations: seconds to generate")] = CONTINUATION_S,
    asr: Annotated[bool, arg(help="with --continuations: judge what is said, by whisper-base (extra 'asr')")] = False,
    out: Annotated[
        Path | None, arg(metavar="FOLDER", help="folder to keep continuations, or the results of pairs, in")
    ] = None,
    codec: Annotated[str | None, arg(metavar="MIMI", help="codec of a CSM or Moshi folder that holds none")] = None,
    weights: Weights = "float32",
    device: Device = "auto",
    threads: Threads = None,
    config: Annotated[EvaluateConfig, Options] = EvaluateConfig(),
    pairs: Annotated[PairsConfig, Options] = PairsConfig(),
) -> None:
    """Score DATA (audio or a token store): bits/s, perplexities and baselines; or measure continuations of it.

    Where DATA is pairs of recordings, count how often the better one is the likelier: a .jsonl file of pairs, the
    folder of a benchmark with --suite, or the word 'hearing' for probes that are made of speech at hand. The word
    'probes' asks what the model's hidden states tell of speech, by linear probes.
    """
    check_writable(json_file)
    check_folder(out)
    check_device(device)
    check_threads(threads)
    check_number("--continuations", continuations, 0)
    check_number("--prompt-s", prompt_s, 0.1, unit=" s")
    check_duration(duration)
    continued: dict[str, object] = {
        "--prompt-s": prompt_s != PROMPT_S,
        "--duration": duration != CONTINUATION_S,
        "--asr": asr,
    }
    are_pairs = bool(pairs.suite) or data.suffix == ".jsonl" or str(data) == "hearing"
    are_probes = str(data) == "probes"
    check_idle(
        continuations,
        continued | ({} if are_pairs or are_probes else {"--out": out}),
        {"--baseline-data": baseline_data},
        config,
    )
    if are_probes:
        check_probes(model, continuations, baseline_data, pairs, config)
    else:
        check_pairs(data, are_pairs, continuations, pairs, config)
    if asr:
        check_package("--asr", "faster_whisper", "asr")
    is_adapter = names_adapter(model)
    if is_adapter:
        fixed = {"--continuations": continuations, "--codec": codec, "--weights": weights != "float32"}
        check_options(fixed | {"--device": device != "auto", "--given-text": config.given_text})
    settings = {} if is_adapter else check_model(model)
    if config.given_text:
        check_layout("--given-text", model, settings, *TAGGED)
    check_missing_codec(codec, model, settings)
    if continuations:
        check_audio(data)
        from .evaluate.prompts import usable_prompts

        files, skipped = usable_prompts(data, continuations, prompt_s)
        from .evaluate.quality.judges import installed_judges
        from .evaluate.quality.run import Continuing, continuation_report

        lm = open_model(model, device, threads, weights, codec=codec)
        continuing = Continuing(prompt_s, duration, config.seed)
        report = continuation_report(lm, files, continuing, installed_judges(asr), out, skipped)
        write_json(json_file, report.to_dict())
        print(report.table())
        if out is None:
            print("the continuations were not kept; --out FOLDER keeps them, with a page to listen to")
        else:
            from ..model.files import write_whole
            from .evaluate.quality.page import PAGE, continuations_page

            write_whole(out / PAGE, continuations_page(report, out, lm).html())
            print(f"{out / PAGE}: open it in a browser; it needs no network")
        return
    if are_probes:
        from .evaluate.probes import evaluate_probes

        lm = open_model(model, device, codec=codec)
        set_threads(threads)
        probed = evaluate_probes(lm, Path(pairs.speech) if pairs.speech else None, out, config)
        write_json(json_file, probed.to_dict())
        print(probed.table())
        return
    check_data(None if are_pairs else data, settings)
    check_data(baseline_data, settings)
    check_split(config, data, model)
    # in float32 the blocks stay as they were trained
    if is_adapter:
        lm = open_adapter(model)
    else:
        lm = open_model(model, device, weights=None if weights == "float32" else weights, codec=codec)
    set_threads(threads)
    if are_pairs:
        from .evaluate.suite import evaluate_pairs

        found = evaluate_pairs(lm, data, out, baseline_data, pairs, config)
        write_json(json_file, found.to_dict())
        print(found.table())
        return
    report = lm.evaluate(data, baseline_data, config)
    write_json(json_file, json.loads(report.to_json()))
    from .evaluate.meaning import meaning

    print(f"{report.table()}\n\n{meaning(report, None if is_adapter else model)}")


def check_idle(
    continuations: int, continued: dict[str, object], scored: dict[str, object], config: EvaluateConfig
) -> None:
    """Raise ValueError for options of `evaluate` that do nothing in what was asked for. Flag -> whether it is given."""
    for name, value in asdict(replace(config, seed=0)).items():
        scored["--" + name.replace("_", "-")] = value != getattr(EvaluateConfig(), name)
    if given := [flag for flag, value in (scored if continuations else continued).items() if value]:
        needs = "no use with --continuations" if continuations else "use only with --continuations N"
        raise ValueError(f"{' and '.join(given)}: of {needs}")


def check_pairs(data: Path, are_pairs: bool, continuations: int, pairs: PairsConfig, config: EvaluateConfig) -> None:
    """Raise ValueError or OSError for pairs that cannot be read, and for options that do nothing."""
    given = {"--" + name.replace("_", "-"): value for name, value in asdict(pairs).items()}
    changed = [flag for flag, value in given.items() if value != getattr(PairsConfig(), flag[2:].replace("-", "_"))]
    if not are_pairs or continuations:
        if changed:
            needs = "pairs: a .jsonl file of them, a folder with --suite, or the word 'hearing'"
            raise ValueError(f"{' and '.join(changed)}: of use only where DATA is {needs}")
        return
    idle = {"--scope": config.scope != "all", "--limit": config.limit, "--given-text": config.given_text}
    idle |= {flag: str(data) != "hearing" and flag in changed for flag in ("--pairs", "--speech")}
    if found := [flag for flag, value in idle.items() if value]:
        raise ValueError(f"{' and '.join(found)}: of no use with these pairs")
    from .evaluate.pairs import read_pairs
    from .evaluate.suites import read_suite

    if pairs.suite:
        read_suite(data, pairs.suite)
    elif str(data) != "hearing":
        read_pairs(data)
    else:
        from .evaluate.voices import voice_folders

        voice_folders(Path(pairs.speech) if pairs.speech else None)
    if pairs.against:
        from .evaluate.items import check_run

        check_run(Path(pairs.against))


def check_probes(
    model: str, continuations: int, baseline_data: Path | None, pairs: PairsConfig, config: EvaluateConfig
) -> None:
    """Raise ValueError or OSError where there is no speech, for a model without layers, and for idle options."""
    kept = replace(EvaluateConfig(), seed=config.seed, bootstrap_samples=config.bootstrap_samples)
    idle = {"--continuations": continuations, "--baseline-data": baseline_data}
    for given, plain in ((pairs, replace(PairsConfig(), speech=pairs.speech)), (config, kept)):
        values = asdict(plain)
        idle |= {"--" + key.replace("_", "-"): value != values[key] for key, value in asdict(given).items()}
    if found := [flag for flag, value in idle.items() if value]:
        raise ValueError(f"{' and '.join(found)}: of no use with 'probes'")
    if names_adapter(model):
        raise ValueError(f"--model {model}: 'probes' looks into the layers of a model of codeclm, not of an adapter")
    from .evaluate.voices import voice_folders

    voice_folders(Path(pairs.speech) if pairs.speech else None)


def convert(
    kind: Positional[
        Annotated[
            Literal["csm", "moshi", "text", "store"],
            arg(help="kind of SRC: CSM, Moshi, a text LM, or a token store of an older codeclm"),
        ]
    ],
    src: Positional[
        Annotated[
            Path,
            arg(metavar="SRC", help="a folder in transformers' format, or a hub id; text: or a .gguf file; or a store"),
        ]
    ],
    dst: Positional[Annotated[Path, arg(metavar="DST", help="the new folder")]],
    back: Annotated[bool, arg(help="convert back, from a codeclm model folder to one for transformers")] = False,
    codec: CodecName = "spectral",
    depth: Annotated[str, arg(help=f"text: preset of the new depth decoder, one of {', '.join(PRESETS)}")] = "default",
    pattern: Annotated[str, arg(help=f"text: one of {', '.join(PATTERNS)}")] = "depth",
    bos_token: Annotated[int | None, arg(help="text: BOS token; default: the checkpoint's")] = None,
    seed: Seed = 0,
) -> None:
    """Convert a CSM or Moshi checkpoint to a model folder, or --back; start from a text LM; or renew a token store."""
    check_conversion(kind, src, dst, back, codec, depth, pattern, seed)
    if kind == "store":
        from ..data.store_writer import convert_store

        convert_store(src, dst)
        print(f"{dst}: {src} in today's format; where the disk can, the two share their files")
        return
    say_loading(src.name or str(src))
    from .convert import export_folder, import_folder, warm_start

    if kind == "text":
        warm_start(src, dst, codec, depth, pattern, bos_token, seed)
        print(f"{dst}: has the text of {src} and no speech yet; go on with: codeclm finetune --from {dst}")
        return
    (export_folder if back else import_folder)(kind, src, dst)
    print(f"{dst}: {kind} {'for transformers' if back else 'as a model folder'}, from {src}")


def demo(
    out: Annotated[Path, arg(help="folder for the sounds, the picture and the metrics")] = Path("runs/demo"),
    duration: Annotated[float, arg(help="seconds to generate")] = 8.0,
    seeds: Annotated[tuple[int, ...], arg(help="seeds, one continuation each")] = (0, 1, 2),
    model: Model = "default",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Continue the bundled recording of a human voice: WAV files, a page, a picture and metrics in OUT.

    A model with text also says a sentence in that voice, and writes what it hears.
    """
    check_seeds(*seeds)
    check_duration(duration)
    check_device(device)
    check_threads(threads)
    check_folder(out)
    check_model(model)
    from .demo import run

    print(run(out, duration, seeds, open_model(model, device, threads)))
