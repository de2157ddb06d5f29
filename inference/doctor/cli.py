"""The verb `doctor`. Heavy imports are inside the functions, so that --help answers at once."""

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..argument_checks import check_codec, check_data, check_number, check_writable, is_run
from ..options import CodecName, Numbers, write_json
from ..screen import say_loading


def doctor(
    targets: Positional[
        Annotated[
            tuple[Path, ...], arg(metavar="DATA|RUN ...", help="token stores, audio, or folders of training runs")
        ]
    ],
    codec: Annotated[CodecName, arg(help="codec that tokenizes audio, and decodes stores made with it")] = "spectral",
    limit: Annotated[float, arg(help="minutes of sound that are measured in each DATA; codes are read whole")] = 10.0,
    json_file: Numbers = None,
    bundle: Annotated[
        Path | None, arg(metavar="FILE.zip", help="also pack what a bug report needs: no audio, no weights")
    ] = None,
) -> None:
    """Find what is wrong with speech, with splits that should share none, or with a run; exit status 1 for errors."""
    if not targets:
        raise ValueError("DATA or RUN is missing (codeclm doctor --help)")
    check_writable(json_file, bundle)
    if bundle is not None and bundle.suffix != ".zip":
        raise ValueError(f"--bundle is {bundle}; its name must end in .zip")
    check_number("--limit", limit, 0.1, unit=" minutes")
    check_codec(codec)
    runs = [path for path in targets if is_run(path)]
    from .curve import Curve

    for path in targets:
        if path in runs:
            Curve.read(path)
        elif not any(path.glob("shard-*.bin")):
            check_data(path)
    say_loading(f"the codec '{codec}'")
    from .checkup import checkup
    from .report import table, to_dict

    report = checkup(targets, codec, 60 * limit)
    write_json(json_file, to_dict(report))
    print(table(report))
    if bundle is not None:
        from .bundle import write_bundle

        write_bundle(bundle, runs, report)
        print(f"{bundle}: settings, metrics, versions and this report; no audio, no weights")
    if any(finding.severity == "error" for finding in report.findings):
        sys.exit(1)
