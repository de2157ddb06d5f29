"""The verb `verify`: show on the spot that a model scores, generates and trains one and the same distribution.

Heavy imports are inside the functions, so that --help answers at once.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..argument_checks import check_device, check_model, check_writable
from ..options import Device, Threads, open_model, write_json
from ..screen import say_loading
from ..threads import check_threads, decoding_threads

if TYPE_CHECKING:
    from .checks import Result


def verify(
    model: Positional[
        Annotated[str, arg(metavar="[MODEL]", help="a model folder or a training run; 'default' is the embedded model")]
    ] = "default",
    every_option: Annotated[bool, arg(help="also check tiny random models that cover every pair of options")] = False,
    json_file: Annotated[
        Path | None, arg(name="json", metavar="FILE", help="also write the results here, as JSON")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Check that MODEL scores, generates and trains one and the same distribution; exit status 1 if it does not."""
    check_writable(json_file)
    check_device(device)
    check_threads(threads)
    check_model(model, "MODEL")
    say_loading(f"the model '{model}'")
    from ..json_safe import json_safe
    from .report import failures, verdict

    with decoding_threads(threads):
        results = {model: verify_model(model, device)}
        if every_option:
            results |= verify_options()
    write_json(json_file, json_safe({name: [asdict(result) for result in found] for name, found in results.items()}))
    print(f"\n{verdict(results)}")
    if any(failures(found) for found in results.values()):
        sys.exit(1)


def verify_model(name: str, device: str = "auto") -> "list[Result]":
    """Load, check and print one model."""
    from ...model.pretrained import PROMPT
    from ..loading import checksum_note, model_folder
    from .checks import verify as run
    from .report import table

    lm = open_model(name, device)
    config, size = lm.model.config, sum(parameter.numel() for parameter in lm.model.parameters())
    results = run(lm.model, lm.encode(PROMPT), progress=True)
    print(
        f"{name}: {size / 1e6:.1f} M parameters, pattern {config.pattern}, "
        f"{config.num_codebooks} codebooks of {config.codebook_size} codes; "
        f"{checksum_note(model_folder(name))}\n\n{table(results)}",
        flush=True,
    )
    return results


def verify_options() -> "dict[str, list[Result]]":
    """Check and print the tiny models."""
    from .checks import verify as run
    from .options import tiny_models
    from .report import line, rows

    models, found = tiny_models(), {}
    print(f"\n{len(models)} tiny models with random weights; the largest difference in")
    print(f"{'float64':>9}{'float32':>9}")
    for tiny in models:
        results = found[tiny.name] = run(tiny.make())
        print("\n".join([line(tiny.name, results), *rows(results, only_failed=True)]), flush=True)
    return found
