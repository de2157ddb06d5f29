"""The verb `codec contract`: show on the spot that a codec's batches, streams and copies give the same codes and audio.

Heavy imports are inside the function, so that --help answers at once.
"""

import itertools
import sys
from typing import Annotated

from tyro.conf import Positional, arg

from ..argument_checks import check_device
from ..cli import Device, open_codec
from ..screen import say_loading
from .cli import check_codecs


def codec_contract(
    codec: Positional[
        Annotated[
            tuple[str, ...],
            arg(
                metavar="[CODEC ...]",
                help="spectral, mulaw, mdct, encodec, mimi, dac, a hub id, a folder or a .th file",
            ),
        ]
    ] = ("spectral", "mulaw", "mdct"),
    every_codec: Annotated[bool, arg(help="also tiny codecs of every kind, with random weights")] = False,
    device: Device = "auto",
) -> None:
    """Check that every CODEC keeps the contract, property by property; exit status 1 if one does not."""
    check_device(device)
    check_codecs(codec)
    say_loading(", ".join(f"the codec '{name}'" for name in codec))
    from ...model.device import resolve_device
    from .contract import blocks_line, check_contract, table
    from .random_codecs import TINY, load_tiny

    found = {}
    coders = itertools.chain(
        ((name, open_codec(name, device)) for name in codec),
        ((f"tiny {name}", load_tiny(name).to(resolve_device(device))) for name in TINY if every_codec),
    )
    for name, coder in coders:
        print(
            f"{name}: {coder.sample_rate} Hz, {coder.frame_rate:g} frames/s x {coder.num_codebooks} codebooks of "
            f"{coder.codebook_size} codes = {coder.bitrate:.0f} bits/s; {blocks_line(coder)}",
            flush=True,
        )
        found[name] = check_contract(coder)
    print(f"\n{table(found)}")
    if any(reason for cells in found.values() for reason in cells.values()):
        sys.exit(1)
