"""pack, unpack, train and join on the command line; heavy imports are inside the functions."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .....inference.screen import log_lines, say_error, terminable

ABOUT = "Train the embedded language model on a machine that is lent for minutes (train/recipes/embedded/README.md)."


def main(arguments: Sequence[str] | None = None) -> None:
    begun = time.monotonic()
    chosen = parser().parse_args(arguments)
    try:
        with log_lines(), terminable():
            COMMANDS[chosen.command](chosen, begun)
    except KeyboardInterrupt as interrupt:
        say_error(str(interrupt) or "interrupted")
        sys.exit(getattr(interrupt, "status", 130))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        say_error(error)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """Not by tyro, which the lent machine does not have."""
    made = argparse.ArgumentParser(prog="lent", description=ABOUT)
    commands = made.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="tokens, tokenizer and the newest weights -> files to send")
    one.add_argument("recipe", type=Path, metavar="OUT", help="folder of the recipe, with tokens/")
    one.add_argument("--to", type=Path, required=True, help="folder of the parts")
    one.add_argument("--first", type=Path, metavar="RUN", help="weights to begin with (default: the newest in OUT)")
    one.add_argument("--new", action="store_true", help="begin with new weights, whatever OUT holds")
    one.add_argument("--part-mib", type=float, default=19.0, help="size of a part (default: 19)")
    one = commands.add_parser("unpack", help="files that were sent -> FOLDER/store and what is beside it")
    one.add_argument("parcel", type=Path, metavar="PARCEL")
    one.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    one = commands.add_parser("train", help="files that were sent -> files to bring back, within the minutes")
    one.add_argument("parcel", type=Path, metavar="PARCEL")
    one.add_argument("--out", type=Path, required=True, help="folder of the files to bring back")
    one.add_argument("--work", type=Path, required=True, help="folder of the run, and of what is unpacked")
    one.add_argument("--minutes", type=float, default=8.0, help="for everything, from the start (default: 8)")
    one = commands.add_parser("join", help="files that were brought back -> a run that codeclm reads")
    one.add_argument("parcel", type=Path, metavar="PARCEL")
    one.add_argument("--to", type=Path, required=True, metavar="RUN", help="a new folder")
    one.add_argument("--codec", type=Path, help="the codec of the tokens (default: the embedded one)")
    return made


def pack(chosen: argparse.Namespace, begun: float) -> None:
    from ..language_model import ON_GPU
    from .pack import MIB, newest_run, pack

    first = None if chosen.new else chosen.first or newest_run(chosen.recipe)
    pack(chosen.recipe, chosen.to, ON_GPU, first, round(chosen.part_mib * MIB))


def unpack(chosen: argparse.Namespace, begun: float) -> None:
    from .pack import unpack

    store = unpack(chosen.parcel, chosen.to)
    print(f"{store.folder}: {len(store)} utterances, {store.num_frames.sum()} frames, data {store.data_hash[:12]}")


def train(chosen: argparse.Namespace, begun: float) -> None:
    from .pack import read_settings, unpack
    from .timed_run import timed_run

    config, folder = read_settings(chosen.parcel), chosen.work / "parcel"
    store = unpack(chosen.parcel, folder)
    timed_run(folder, store, config, chosen.work / "run", chosen.out / "run", begun + 60 * chosen.minutes)


def join(chosen: argparse.Namespace, begun: float) -> None:
    from .pack import join

    join(chosen.parcel, chosen.to, chosen.codec)
    print(f"{chosen.to}: a run; codeclm evaluate DATA --model {chosen.to}")


COMMANDS = {"pack": pack, "unpack": unpack, "train": train, "join": join}
