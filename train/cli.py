"""The command `codeclm`: the verbs that change weights, and `main`, which knows every verb.

Heavy imports are inside the functions, so that --help answers at once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from ..inference import cli as using
from ..inference import text_cli
from ..inference.argument_checks import (
    STORE,
    check_audio,
    check_audio_folder,
    check_codec,
    check_data,
    check_folder,
    check_model,
    check_package,
    check_speech,
    check_text_model,
)
from ..inference.bench.cli import bench
from ..inference.codec.cli import check_codecs, codec_bench, codec_contract, codec_report, codec_roundtrip, open_codec
from ..inference.compress.cli import codec_compress, codec_decompress
from ..inference.doctor.cli import doctor
from ..inference.generate_cli import generate, prefix
from ..inference.options import CodecName, Data, Model, Options, Speech
from ..inference.parsing import choose, parse
from ..inference.report.cli import report
from ..inference.screen import log_lines, say_error, say_loading, terminable
from ..inference.server.cli import serve
from ..inference.threads import wait_asleep
from ..inference.verify.cli import verify
from ..model.files import check_absent
from .aligner_config import AlignerConfig
from .codec_config import CodecTrainConfig
from .config import TrainConfig
from .config_file import with_config_file
from .finetune_config import FINETUNE, FinetuneConfig
from .patterns_config import PatternsConfig
from .run_folder import CODEC, LANGUAGE_MODEL, PATTERNS, TOKENIZERS, claim, is_main
from .tokenizers.config import TokenizersConfig, run_folders

ABOUT = "A speech language model on neural codec tokens."
DATA = "a token store, an audio file, or a folder of them; several are mixed (--batch.mix)"
Corpora = Annotated[tuple[Path, ...], arg(metavar="DATA", help=DATA, help_behavior_hint="(required)")]
Run = Annotated[Path, arg(help="folder of the run; the same command resumes it")]
ConfigFile = Annotated[
    Path | None,
    arg(name="config", metavar="FILE", help="a run's config.json: its settings, where no flag says otherwise"),
]


def train(
    data: Positional[Corpora],
    out: Run,
    codec: CodecName = "spectral",
    init_from: Annotated[
        Path | None, arg(metavar="TEXT_MODEL", help="a Llama or Qwen text model (folder or .gguf): its backbone")
    ] = None,
    config_file: ConfigFile = None,
    config: Annotated[TrainConfig, Options] = TrainConfig(),
) -> None:
    """Train a new speech LM on DATA (a token store, or audio) into the run folder --out, or resume that run."""
    check_folder(out)
    check_codec(codec)
    check_text_model(init_from)
    for one in data:
        check_data(one)
    say_loading(f"the codec '{codec}'")
    with claim(out, LANGUAGE_MODEL):  # a wrong folder is told before torch is loaded
        from .runs import train as run

        with failing_check():
            best = run(data, out, codec, config, init_from)
    say(DONE if config.check else f"{best}: the best weights on the held-out utterances")


def align(
    tokens: Positional[Annotated[Path, arg(metavar="TOKENS", help="a token store with texts")]],
    codec: CodecName = "spectral",
    config: Annotated[AlignerConfig, Options] = AlignerConfig(),
) -> None:
    """Find out when the texts of a token store are said, for models with --model.text.layout timed.

    A small network is taught to hear characters on the store itself, and aligns its texts; times that came with the
    speech stay as they are.
    """
    if not (tokens / STORE).is_file():
        raise ValueError(f"{tokens}: is no token store; make one with codeclm prepare")
    check_codec(codec)
    say_loading(f"the codec '{codec}'")
    from .text_alignment import align as run

    print(run(tokens, open_codec(codec, "cpu"), config))


def finetune(
    data: Positional[Data],
    out: Run,
    model: Annotated[Model, arg(name="from")] = "default",
    compare: Annotated[
        tuple[str, ...], arg(metavar="NAME=DATA", help="other speech to compare both models on at the end")
    ] = (),
    config_file: ConfigFile = None,
    config: Annotated[FinetuneConfig, Options] = FINETUNE,
) -> None:
    """Fine-tune a model (--from) on DATA (audio, or a token store) into the run folder --out, or resume that run.

    Steps, learning rate, batch, dropout and copies that are not given are chosen by the hours of speech in DATA.
    """
    check_folder(out)
    base = check_model(model, "--from")
    check_data(data, base)
    others = named(compare)
    for path in others.values():
        check_data(path, base)
    if config.replay not in ("", "self"):
        check_data(Path(config.replay), base)
    if config.lora.rank:
        check_package("--lora.rank", "peft", "lora")
    say_loading(f"the model '{model}'")
    with claim(out, LANGUAGE_MODEL):
        from .comparison import read, table
        from .runs import finetune as run

        with failing_check():
            best = run(model, data, out, config, others)
        if is_main() and not config.check:
            print(table(read(out)))
    kept = "adapters" if config.lora.rank else "weights"
    say(DONE if config.check else f"{best}: the best {kept} on the held-out utterances")


def named(pairs: tuple[str, ...]) -> dict[str, Path]:
    """NAME=DATA, ... -> the data of each name. Raises ValueError for a word without a name, or a name twice."""
    split = [pair.partition("=") for pair in pairs]
    for pair, (name, _, data) in zip(pairs, split, strict=True):
        if not name or not data:
            raise ValueError(f"--compare '{pair}' is not NAME=DATA, such as others=recordings/")
    if len({name for name, *_ in split}) < len(split):
        raise ValueError("--compare: a name was given twice; each needs one of its own")
    return {name: Path(data) for name, _, data in split}


def patterns(
    data: Positional[Data],
    out: Run,
    codec: CodecName = "spectral",
    config: Annotated[PatternsConfig, Options] = PatternsConfig(),
) -> None:
    """Train every pattern on DATA under an equal time budget, then an equal FLOP budget, and compare bits/s."""
    check_folder(out)
    check_codec(codec)
    check_data(data)
    say_loading(f"the codec '{codec}'")
    with claim(out, PATTERNS):
        from ..data.preparation import open_or_prepare
        from ..model.codecs import load_codec
        from .compare_patterns import compare_patterns, table
        from .runs import PIECES

        coder = load_codec(codec)
        store = open_or_prepare(data, out / "tokens", coder, PIECES)
        store.require_codec(coder)
        print(table(compare_patterns(store, coder, out, config), config))


def tokenizers(
    data: Positional[Annotated[Path, arg(metavar="DATA", help="a folder of recordings")]],
    out: Run,
    codec: Annotated[
        tuple[str, ...],
        arg(metavar="CODEC ...", help="names of codecs, or folders that hold one; NAME:K: K codebooks; each is a row"),
    ] = ("spectral", "spectral:4", "mulaw", "mdct"),
    config: Annotated[TokenizersConfig, Options] = TokenizersConfig(),
) -> None:
    """Train the same small model on each codec's codes of DATA, for the same FLOPs, and compare bits/s and quality."""
    check_folder(out)
    check_codecs(codec)
    run_folders(codec, out)
    check_audio_folder(data)
    check_package("the picture", "matplotlib", "demo")
    say_loading(", ".join(f"the codec '{name}'" for name in codec))
    with claim(out, TOKENIZERS):
        from ..inference.options import write_json
        from ..model.files import write_whole
        from .tokenizers.compare import compare_codecs
        from .tokenizers.picture import draw
        from .tokenizers.table import PICTURE, markdown, table, to_dict

        codecs = {name: open_codec(name, config.device) for name in codec}
        results, speech = compare_codecs(data, codecs, out, config)
        write_json(out / "results.json", to_dict(results, speech, config))
        write_whole(out / "table.md", markdown(results, speech, config))
        draw(results, out / PICTURE)
        print(table(results, speech, config))
    say(f"{out}: table.md, results.json, {PICTURE}, and what each model said in CODEC/continuations")


def codec_train(
    data: Positional[Speech], out: Run, config: Annotated[CodecTrainConfig, Options] = CodecTrainConfig()
) -> None:
    """Train a "spectral" codec on the speech in DATA, by voices: its speakers, or sub-folders; resumes --out."""
    check_folder(out)
    check_speech(data)
    check_audio(Path(config.heldout) if config.heldout else None)
    say_loading("torch")
    with claim(out, CODEC):
        from .codec import train_codec

        folder = train_codec(data, out, config)
    say(f"{folder}: the codec; use it with --codec")


def codec_transfer(
    model: Positional[Annotated[str, arg(metavar="MODEL", help="a model folder or run, or default")]],
    old: Positional[Annotated[Path, arg(metavar="OLD", help="a token store by the model's codec")]],
    new: Positional[Annotated[Path, arg(metavar="NEW", help="the same recordings by --codec")]],
    codec: CodecName,
    out: Annotated[Path, arg(help="the new model folder")],
) -> None:
    """Let MODEL read another codec's codes, by recordings that both have encoded; then fine-tune it."""
    check_model(model)
    check_codec(codec)
    for store in (old, new):
        if not (store / STORE).is_file():
            raise ValueError(f"{store}: is no token store; make one with codeclm prepare")
    check_absent(out)
    say_loading(f"the model '{model}'")
    from ..data.token_store import TokenStore
    from ..inference.loading import load
    from .codec_transfer import transfer_codec

    transfer_codec(load(model, device="cpu"), TokenStore(old), TokenStore(new), open_codec(codec, "cpu"), out)
    print(f"{out}: reads {codec}; go on with: codeclm finetune {new} --from {out}")


@contextmanager
def failing_check() -> Iterator[None]:
    """A check that fails ends the command in its line and exit status 1."""
    from .alarms import CheckFailed

    try:
        yield
    except CheckFailed as failed:
        say_error(str(failed))
        sys.exit(1)


def say(text: str) -> None:
    """Print a result; one of torchrun's processes is enough."""
    if is_main():
        print(text)


VERBS: dict[str, Callable[..., Any]] = {
    "prepare": using.prepare,
    "align": align,
    "train": train,
    "finetune": finetune,
    "patterns": patterns,
    "tokenizers": tokenizers,
    "generate": generate,
    "prefix": prefix,
    "say": text_cli.say,
    "transcribe": text_cli.transcribe,
    "evaluate": using.evaluate,
    "report": report,
    "verify": verify,
    "doctor": doctor,
    "bench": bench,
    "convert": using.convert,
    "demo": using.demo,
    "serve": serve,
}
CODEC_VERBS: dict[str, Callable[..., Any]] = {
    "train": codec_train,
    "transfer": codec_transfer,
    "roundtrip": codec_roundtrip,
    "report": codec_report,
    "contract": codec_contract,
    "bench": codec_bench,
    "compress": codec_compress,
    "decompress": codec_decompress,
}
DONE = "every check passes; without --check the run begins"
RESUMABLE = (using.prepare, train, finetune, patterns, tokenizers, codec_train)
WRITES_AS_IT_GOES = (using.evaluate, using.demo, bench, codec_bench, serve)


def codec() -> None:
    """Train, try and measure codecs, and compress speech: codeclm codec train | roundtrip | report | compress | ..."""


def main(args: list[str] | None = None) -> None:
    """Run one verb. Bad input ends in one line on stderr and exit status 2, without a traceback."""
    args = list(sys.argv[1:] if args is None else args)
    wait_asleep()
    verb: Callable[..., Any] | None = None
    try:
        with log_lines(), terminable():
            verb, call = parsed(args)
            call()
    except KeyboardInterrupt as interrupt:  # a run that has saved says so itself
        if is_main():
            say_error(str(interrupt) or f"interrupted{interrupted(verb)}")
        sys.exit(getattr(interrupt, "status", 130))
    except BrokenPipeError:  # `codeclm ... | head`: whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        say_error(error)
        sys.exit(2)
    except RuntimeError as error:
        if "memory" not in str(error):  # torch's own kind of MemoryError
            raise
        say_error(error)
        sys.exit(2)


def parsed(args: list[str]) -> tuple[Callable[..., Any] | None, Callable[[], Any]]:
    """The verb that is named and a call with its arguments. --help and --version are printed; SystemExit(0)."""
    prog, verbs = "codeclm", VERBS
    if args[:1] == ["codec"]:
        prog, verbs, args = "codeclm codec", CODEC_VERBS, args[1:]
    if args[:1] in (["--version"], ["-V"]) and verbs is VERBS:
        print(version_line())
        sys.exit(0)
    if not args or args[0] in ("-h", "--help"):
        listed = VERBS | {"codec": codec} if verbs is VERBS else verbs
        tyro.extras.subcommand_cli_from_dict(listed, prog=prog, description=ABOUT, args=["--help"])
    name = choose(args[0], [*verbs, "codec"] if verbs is VERBS else list(verbs), prog)
    return verbs[name], parse(with_config_file(verbs[name], args[1:]), f"{prog} {name}", args[1:])


def version_line() -> str:
    from importlib.metadata import version

    python = ".".join(map(str, sys.version_info[:3]))
    return f"codeclm {version('codeclm')} (Python {python}, torch {version('torch')})"


def interrupted(verb: Callable[..., Any] | None) -> str:
    """What an interrupted verb leaves behind, in words."""
    if verb in RESUMABLE:
        return "; run the same command again to go on"
    return "" if verb is None or verb in WRITES_AS_IT_GOES else "; nothing was written"


if __name__ == "__main__":  # accelerate launch -m codeclm.train.cli
    main()
