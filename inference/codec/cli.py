"""The verbs of `codeclm codec` that try and measure codecs: roundtrip, report, contract, bench.

`codec compress` and `decompress` are in ../compress/cli.py, `codec train` is in train/cli.py.
Checks first, heavy imports inside the functions.
"""

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ...model.files import write_whole
from ..argument_checks import (
    check_audio,
    check_audio_out,
    check_codec,
    check_device,
    check_distinct,
    check_number,
    check_package,
    check_recording,
    check_writable,
)
from ..options import Audio, AudioFile, AudioOut, CodecName, Device, Numbers, Threads, write_json
from ..screen import say_loading
from ..threads import check_threads, set_threads

if TYPE_CHECKING:
    from ...model.codecs import Codec

UNTRAINED = ("encodec", "mimi", "dac")


def codec_roundtrip(
    audio: Positional[AudioFile],
    out: Positional[AudioOut],
    codec: CodecName = "spectral",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Encode AUDIO, decode the codes into the audio file OUT, and print the losses. Audio of any length."""
    check_device(device)
    check_threads(threads)
    check_audio_out(out)
    check_distinct(out, [audio])
    check_recording(audio)
    check_codec(codec)
    say_loading(f"the codec '{codec}'")
    from .roundtrip import roundtrip

    coder = open_codec(codec, device)
    set_threads(threads)
    found = roundtrip(audio, out, coder)
    print(
        f"{out}: {found.num_samples / coder.sample_rate:.2f} s, {coder.num_codebooks} x {found.num_frames} codes, "
        f"{coder.bitrate:.0f} bits/s, log-mel distance {found.distance:.3f}"
    )


def codec_report(
    audio: Positional[Audio],
    codec: Annotated[
        tuple[str, ...],
        arg(metavar="CODEC ...", help="names of codecs, or folders that hold one; NAME:K: K codebooks; each is a row"),
    ] = ("spectral",),
    limit: Annotated[int, arg(help="measure only N of the files, spread evenly (0: all)")] = 0,
    asr: Annotated[
        bool, arg(help="compare whisper-base's transcripts, also with NAME.txt beside NAME.wav (extra 'asr')")
    ] = False,
    language: Annotated[
        str | None, arg(help="with --asr: language of the speech, such as fr; default: guessed for each clip")
    ] = None,
    anchors: Annotated[bool, arg(help="also classical codecs at the nearest rates, with the installed ffmpeg")] = True,
    json_file: Numbers = None,
    html_file: Annotated[
        Path | None, arg(name="html", metavar="FILE", help="also write a page with players and spectrograms")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Compare codecs on the speech in AUDIO: quality, word errors, codebook use, speed and memory."""
    check_writable(json_file, html_file)
    check_number("--limit", limit, 0)
    check_device(device)
    if language is not None and not asr:
        raise ValueError("--language needs --asr")
    if asr:
        check_package("--asr", "faster_whisper", "asr")
    check_codecs(codec)
    check_audio(audio)
    say_loading(", ".join(f"the codec '{name}'" for name in codec))
    from ...data.audio import evenly, find_audio
    from .report import codec_report as run
    from .table import notes, table

    files = find_audio(audio)
    chosen = evenly(files, limit) if limit else files
    codecs = {name: open_codec(name, device) for name in codec}
    report = run(chosen, codecs, asr, anchors, num_samples=3 if html_file else 0, language=language)
    write_json(json_file, report.to_dict() | {"notes": notes(report)})
    if html_file is not None:
        from .page import page

        write_whole(html_file, page(report, f"Codecs on {audio}"))
    print(table(report))


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
    every_codec: Annotated[bool, arg(help="also check tiny random codecs of every kind")] = False,
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
            f"{name}: {coder.sample_rate} Hz, {coder.frame_rate:g} frames/s, "
            f"{coder.num_codebooks} x {coder.codebook_size} codes, {coder.bitrate:.0f} bits/s; {blocks_line(coder)}",
            flush=True,
        )
        found[name] = check_contract(coder)
    print(f"\n{table(found)}")
    if any(reason for cells in found.values() for reason in cells.values()):
        sys.exit(1)


def codec_bench(
    codec: Positional[
        Annotated[
            tuple[str, ...],
            arg(metavar="[CODEC ...]", help="names of codecs, or folders that hold one; NAME:K: K codebooks"),
        ]
    ] = ("spectral",),
    random: Annotated[
        tuple[str, ...],
        arg(metavar="KIND ...", help="also encodec, mimi or dac in their published shapes with random weights; KIND:K"),
    ] = (),
    audio: Annotated[Path | None, arg(metavar="AUDIO", help="an audio file; default: the bundled recording")] = None,
    duration: Annotated[float, arg(help="seconds of the clip, repeated or cut")] = 10.0,
    rounds: Annotated[int, arg(help="rounds in which the codecs are measured in turn")] = 5,
    threads: Annotated[int | None, arg(metavar="N", help="torch threads; default: torch's own choice")] = None,
    device: Annotated[Literal["cpu", "cuda"], arg(help="where codecs compute")] = "cpu",
    hours: Annotated[float, arg(help="also measure memory over this many hours of streaming (0: off)")] = 0.0,
    json_file: Numbers = None,
) -> None:
    """Measure how fast codecs encode and decode the same clip, beside the limit of this machine."""
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
    from ...model.pretrained import PROMPT
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


def check_codecs(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("a codec is missing; name at least one, such as spectral")
    for name in names:
        check_codec(name)


def open_codec(name: str, device: str) -> "Codec":
    """`load_codec`, on a device."""
    from ...model.codecs import load_codec
    from ...model.device import resolve_device

    where = resolve_device(device)
    return load_codec(name).to(where)
