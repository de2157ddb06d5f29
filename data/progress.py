"""Progress of long work: a live bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 15.0


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar on stderr with rate and remaining time; where stderr is no terminal it is written rarely."""
    if not sys.stderr.isatty():
        options["mininterval"], options["miniters"] = LOG_INTERVAL_S, 1
    if not options.get("disable"):
        options.pop("disable", None)  # else TQDM_DISABLE in the environment would count for nothing
    return tqdm(iterable, **options)
