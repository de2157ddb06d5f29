"""The command `codeclm`: the verbs that change weights, and `main`, which knows every verb.

Heavy imports are inside the functions, so that --help answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from ..inference import cli as using
from ..inference.cli import Model, Options
from .config import FINETUNE, CodecTrainConfig, TrainConfig


def train(
    data: Positional[Path],
    out: Path,
    codec: str = "spectral",
    config: Annotated[TrainConfig, Options] = TrainConfig(),
) -> None:
    """Train a new speech LM on DATA (a token store, or audio) into the run folder --out; resumes what is there."""
    from ..data.prepare import open_or_prepare
    from ..model.codecs import load_codec
    from .loop import new_model
    from .loop import train as run

    coder = load_codec(codec)
    store = open_or_prepare(data, out / "tokens", coder)
    store.require_codec(coder.fingerprint, coder.name)
    print(f"{run(new_model(store, config), coder, store, out, config)}: the best weights on the held-out utterances")


def finetune(
    data: Positional[Path],
    out: Path,
    model: Annotated[Model, arg(name="from")] = "default",
    config: Annotated[TrainConfig, Options] = FINETUNE,
) -> None:
    """Go on training a model (--from) on DATA (audio, or a token store) into the run folder --out; resumable."""
    from ..data.prepare import open_or_prepare
    from ..inference.load import load
    from .loop import for_small_data
    from .loop import train as run

    lm = load(model)
    store = open_or_prepare(data, out / "tokens", lm.codec)
    config = for_small_data(config, len(store))
    print(f"{run(lm.model, lm.codec, store, out, config)}: the best weights on the held-out utterances")


def codec_train(
    data: Positional[Path], out: Path, config: Annotated[CodecTrainConfig, Options] = CodecTrainConfig()
) -> None:
    """Train a "spectral" codec on the audio in DATA, whose sub-folders are voices; resumes what --out holds."""
    from .codec import train_codec

    print(f"{train_codec(data, out, config)}: the codec; use it with --codec")


VERBS: dict[str, Callable[..., Any]] = {
    "prepare": using.prepare,
    "train": train,
    "finetune": finetune,
    "generate": using.generate,
    "evaluate": using.evaluate,
    "demo": using.demo,
}
CODEC_VERBS: dict[str, Callable[..., Any]] = {
    "train": codec_train,
    "roundtrip": using.codec_roundtrip,
    "report": using.codec_report,
}


def codec() -> None:
    """Train, try and measure codecs: codeclm codec train | roundtrip | report."""
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
    except KeyboardInterrupt:
        print("codeclm: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"codeclm: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
