"""The command `codeclm`: the verbs that change weights, and `main`, which knows every verb.

Heavy imports are inside the functions, so that --help answers at once.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from ..data.config import PrepareConfig
from ..inference import cli as using
from ..inference.bench_cli import codec_bench
from ..inference.cli import Audio, CodecName, Data, Model, Options
from ..inference.contract_cli import codec_contract
from ..inference.convert_cli import convert
from ..inference.verify_cli import verify
from .config import FINETUNE, CodecTrainConfig, PatternsConfig, RunConfig, TrainConfig

PIECES = PrepareConfig(max_utterance_s=20.0)  # so that one long recording can be split into training and held-out parts
Run = Annotated[Path, arg(help="folder of the run; the same command again goes on where it stood")]


def train(
    data: Positional[Data],
    out: Run,
    codec: CodecName = "spectral",
    init_from: Annotated[
        Path | None, arg(metavar="TEXT_MODEL", help="a Llama or Qwen text model (folder or .gguf): its backbone")
    ] = None,
    config: Annotated[TrainConfig, Options] = TrainConfig(),
) -> None:
    """Train a new speech LM on DATA (a token store, or audio) into the run folder --out; resumes what is there."""
    from .run_folder import LANGUAGE_MODEL, claim

    with claim(out, LANGUAGE_MODEL):
        from ..model.codecs import load_codec
        from .checkpoint import tensors_sha256
        from .loop import new_model, new_tokenizer
        from .loop import train as run
        from .processes import open_store

        coder = load_codec(codec)
        store = open_store(data, out / "tokens", coder, PIECES, config.device)
        store.require_codec(coder.fingerprint, coder.name)
        tokenizer = new_tokenizer(store, config)
        model = new_model(store, config, tokenizer, init_from)
        # random weights are a matter of the seed; their last digits differ from one processor to another
        start = tensors_sha256(model.backbone.state_dict()) if init_from else "random"
        best = run(model, coder, store, out, config, tokenizer, start)
    say(f"{best}: the best weights on the held-out utterances")


def finetune(
    data: Positional[Data],
    out: Run,
    model: Annotated[Model, arg(name="from")] = "default",
    config: Annotated[RunConfig, Options] = FINETUNE,
) -> None:
    """Go on training a model (--from) on DATA (audio, or a token store) into the run folder --out; resumable."""
    from .run_folder import LANGUAGE_MODEL, claim

    with claim(out, LANGUAGE_MODEL):
        from ..inference.loading import load
        from .loop import for_small_data
        from .loop import train as run
        from .processes import open_store

        lm = load(model)
        store = open_store(data, out / "tokens", lm.codec, replace(PIECES, copies=8), config.device)
        best = run(lm.model, lm.codec, store, out, for_small_data(config, store.names), lm.tokenizer)
    say(f"{best}: the best weights on the held-out utterances")


def patterns(
    data: Positional[Data],
    out: Run,
    codec: CodecName = "spectral",
    config: Annotated[PatternsConfig, Options] = PatternsConfig(),
) -> None:
    """Train every pattern on DATA, for the same time and for the same operations, and compare what they reach."""
    from .run_folder import PATTERNS, claim

    with claim(out, PATTERNS):
        from ..data.prepare import open_or_prepare
        from ..model.codecs import load_codec
        from .patterns import compare_patterns, table

        coder = load_codec(codec)
        store = open_or_prepare(data, out / "tokens", coder, PIECES)
        store.require_codec(coder.fingerprint, coder.name)
        print(table(compare_patterns(store, coder, out, config), config))


def codec_train(
    data: Positional[Audio], out: Run, config: Annotated[CodecTrainConfig, Options] = CodecTrainConfig()
) -> None:
    """Train a "spectral" codec on the audio in DATA, whose sub-folders are voices; resumes what --out holds."""
    from .run_folder import CODEC, claim

    with claim(out, CODEC):
        from .codec import train_codec

        folder = train_codec(data, out, config)
    say(f"{folder}: the codec; use it with --codec")


def say(text: str) -> None:
    """Print a result; one of torchrun's processes is enough."""
    from .run_folder import is_main

    if is_main():
        print(text)


VERBS: dict[str, Callable[..., Any]] = {
    "prepare": using.prepare,
    "train": train,
    "finetune": finetune,
    "patterns": patterns,
    "generate": using.generate,
    "evaluate": using.evaluate,
    "verify": verify,
    "convert": convert,
    "demo": using.demo,
}
CODEC_VERBS: dict[str, Callable[..., Any]] = {
    "train": codec_train,
    "roundtrip": using.codec_roundtrip,
    "report": using.codec_report,
    "contract": codec_contract,
    "bench": codec_bench,
    "compress": using.codec_compress,
    "decompress": using.codec_decompress,
}


def codec() -> None:
    """Train, try and measure codecs, and compress speech: codeclm codec train | roundtrip | report | compress | ..."""
    main(["codec", "--help"])


def main(args: list[str] | None = None) -> None:
    """Run one verb. Bad input ends in one line on stderr and exit status 2, without a traceback."""
    args = sys.argv[1:] if args is None else args
    prog, verbs = "codeclm", VERBS | {"codec": codec}
    if args[:1] == ["codec"]:
        prog, verbs, args = "codeclm codec", CODEC_VERBS, args[1:]
    try:
        tyro.extras.subcommand_cli_from_dict(
            verbs, prog=prog, description="A speech language model on neural codec tokens.", args=args or ["--help"]
        )
    except KeyboardInterrupt as interrupt:  # a run that has saved says so itself
        close_progress_bars()
        print(f"codeclm: {str(interrupt) or 'interrupted; run the same command again to go on'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "status", 130))
    except BrokenPipeError:  # `codeclm ... | head`: whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        close_progress_bars()
        print(f"codeclm: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def close_progress_bars() -> None:
    """End the lines of bars that are still open, so that a message gets a line of its own."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def one_line(error: Exception) -> str:
    """What went wrong, for people: the system's own errors as "file: reason"."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


if __name__ == "__main__":  # accelerate launch -m codeclm.train.cli
    main()
