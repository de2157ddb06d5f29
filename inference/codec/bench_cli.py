"""The verb `codec bench`: how fast codecs are on this machine, what it could do at most, and what memory they take.

Heavy imports are inside the function, so that --help answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..argument_checks import check_number, check_recording, check_writable
from ..cli import Numbers, write_json
from ..screen import say_loading
from ..threads import check_threads
from .cli import check_codecs

UNTRAINED = ("encodec", "mimi", "dac")


def codec_bench(
    codec: Positional[
        Annotated[
            tuple[str, ...],
            arg(metavar="[CODEC ...]", help="names of codecs, or folders that hold one; NAME:K: K codebooks"),
        ]
    ] = ("spectral",),
    random: Annotated[
        tuple[str, ...],
        arg(metavar="KIND ...", help="also encodec, mimi, dac in their published shapes with random weights; KIND:K"),
    ] = (),
    audio: Annotated[Path | None, arg(metavar="AUDIO", help="an audio file; default: the bundled recording")] = None,
    duration: Annotated[float, arg(help="seconds of the clip, repeated or cut")] = 10.0,
    rounds: Annotated[int, arg(help="how often each codec is measured, in turn")] = 5,
    threads: Annotated[
        int | None, arg(metavar="N", help="threads of torch; default: as many as it takes by itself")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], arg(help="where codecs compute")] = "cpu",
    hours: Annotated[float, arg(help="also the memory while this many hours stream through each codec; 0: not")] = 0.0,
    json_file: Numbers = None,
) -> None:
    """Measure how fast codecs encode and decode the same clip, and how fast this machine could at most."""
    check_writable(json_file)
    check_number("--duration", duration, 0.1, 600, " s")
    check_number("--rounds", rounds, 1)
    check_number("--hours", hours, 0)
    check_threads(threads)
    check_codecs(codec)
    for kind in random:
        if kind.partition(":")[0] not in UNTRAINED:
            raise ValueError(f"--random '{kind}' is unknown; choose from {', '.join(UNTRAINED)}")
    check_recording(audio)
    say_loading(", ".join(f"the codec '{name}'" for name in (*codec, *random)))
    from ..demo import PROMPT
    from ..json_safe import json_safe
    from .memory import CodecSource, stream_memory
    from .speed import BenchConfig, bench
    from .speed_table import memory_table, notes, table

    config = BenchConfig(duration, rounds, threads, device)
    sources = [CodecSource(name) for name in codec] + [CodecSource(kind, untrained=True) for kind in random]
    report = bench({source.label: source.load() for source in sources}, audio or PROMPT, config)
    print(table(report), flush=True)
    values = report.to_dict() | {"notes": notes(report), "memory": []}
    write_json(json_file, values)
    if hours:
        found = [stream_memory(source, audio or PROMPT, hours, threads, device) for source in dict.fromkeys(sources)]
        write_json(json_file, values | {"memory": json_safe([asdict(row) for row in found])})
        print(f"\n{memory_table(found)}")
