"""The options that verbs share, and the two steps that go with them. Nothing heavy is imported before it is needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from ..model.files import write_whole
from .config import WeightPrecision
from .screen import say_loading

if TYPE_CHECKING:
    from .generator import SpeechGenerator

Options = arg(name="")  # the fields of a config become flags without a prefix
Model = Annotated[str, arg(help="a model folder or a training run; 'default' is the embedded model")]
CodecName = Annotated[
    str,
    arg(help="spectral (embedded), mulaw, mdct, encodec, mimi, dac, a folder, or a hub id; NAME:K takes K codebooks"),
]
Speech = Annotated[
    str,
    arg(
        metavar="AUDIO",
        help="an audio file or a folder of them; a list (.jsonl, .csv, .tsv, lhotse's cuts .jsonl.gz); .tar files "
        "(WebDataset); .parquet or .arrow files; a saved Hugging Face dataset, or the name of one on the hub, "
        "OWNER/NAME; an address that fsspec reads",
    ),
]
Audio = Annotated[Path, arg(metavar="AUDIO", help="an audio file, or a folder of them")]
AudioFile = Annotated[Path, arg(metavar="AUDIO", help="an audio file")]
AudioOut = Annotated[Path, arg(metavar="OUT", help="the file to write: .wav, .flac, .ogg, .opus or .mp3")]
Data = Annotated[Path, arg(metavar="DATA", help="a token store, an audio file, or a folder of them")]
Seed = Annotated[int, arg(help="random seed; same seed, same machine: same bytes")]
Device = Annotated[str, arg(help="where to compute: auto (a GPU where there is one), cpu, cuda, cuda:N or mps")]
Weights = Annotated[WeightPrecision, arg(help="precision of the weights; all but float32 are faster and less exact")]
Threads = Annotated[
    int | None, arg(metavar="N", help="torch threads; default: OMP_NUM_THREADS, else one while decoding")
]
Numbers = Annotated[Path | None, arg(name="json", metavar="FILE", help="also write the numbers here, as JSON")]


def open_model(
    name: str,
    device: str = "auto",
    threads: int | None = None,
    weights: WeightPrecision | None = None,
    rows: int = 1,
    codec: str | None = None,
) -> "SpeechGenerator":
    """`load`, with a sign of life. threads: torch's while decoding."""
    say_loading(f"the model '{name}'")
    from .loading import load

    lm = load(name, device=device, weights=weights, rows=rows, codec=codec)
    lm.threads = threads
    return lm


def write_json(path: Path | None, values: dict) -> None:
    """Write the numbers of a report where --json asks for them."""
    if path is not None:
        write_whole(path, json.dumps(values, indent=2) + "\n")
