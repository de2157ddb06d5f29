"""The verb `bench`: how fast models generate, beside the limits of this machine and other libraries.

Checks first, heavy imports inside the function.
"""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ...model.files import write_whole
from ...model.presets import PRESETS
from ..argument_checks import check_model, check_number, check_writable
from ..options import Numbers, Weights, write_json
from ..screen import say_loading
from ..text_table import markdown_table, text_table
from ..threads import check_threads, decoding_threads


def bench(
    shape: Positional[
        Annotated[
            tuple[str, ...],
            arg(
                metavar="[SHAPE ...]",
                help=f"shapes with random weights: S (8 x 512, 4 x 256), CSM-1B, {', '.join(PRESETS)}; "
                "default: S, or none beside --model",
            ),
        ]
    ] = (),
    model: Annotated[
        tuple[str, ...],
        arg(metavar="MODEL ...", help="also model folders or training runs; 'default' is the embedded model"),
    ] = (),
    batch: Annotated[tuple[int, ...], arg(metavar="B ...", help="rows that are generated together")] = (1, 8),
    prompt_frames: Annotated[int, arg(help="frames of the prompt")] = 25,
    frames: Annotated[int, arg(help="frames to draw in each round")] = 100,
    rounds: Annotated[int, arg(help="rounds in which the engines are measured in turn")] = 3,
    peers: Annotated[
        bool, arg(help="also a hand-written loop, transformers' CSM and Moshi and the moshi package, at the same shape")
    ] = False,
    with_codec: Annotated[bool, arg(help="also wait for the first sound; needs --model")] = False,
    load: Annotated[
        bool,
        arg(help="instead, let listeners ask for speech at random times, all of them drawn together; needs --model"),
    ] = False,
    load_rates: Annotated[tuple[float, ...], arg(metavar="R ...", help="with --load: requests a second")] = (
        1,
        6,
        10,
        20,
    ),
    load_seconds: Annotated[float, arg(help="with --load: seconds in which requests arrive, at each rate")] = 20.0,
    load_speech: Annotated[float, arg(help="with --load: seconds of speech that each asks for")] = 4.0,
    load_rows: Annotated[int, arg(help="with --load: requests that are drawn at the same time; as many may wait")] = 16,
    memory: Annotated[bool, arg(help="also measure memory, each engine in a process of its own")] = True,
    weights: Weights = "float32",
    threads: Annotated[int | None, arg(metavar="N", help="torch threads; default: OMP_NUM_THREADS, else one")] = None,
    device: Annotated[Literal["cpu", "cuda"], arg(help="where models compute")] = "cpu",
    clock: Annotated[
        Literal["wall", "cpu"], arg(help="cpu: time of the processor, which a busy machine changes less")
    ] = "wall",
    json_file: Numbers = None,
    markdown_file: Annotated[
        Path | None, arg(name="markdown", metavar="FILE", help="also write the tables here, as Markdown")
    ] = None,
) -> None:
    """Measure how fast models generate, beside the limits of this machine and, with --peers, other generation."""
    check_writable(json_file, markdown_file)
    for name in shape:
        if name not in ("S", "CSM-1B", *PRESETS):
            raise ValueError(f"shape '{name}' is unknown; choose from S, CSM-1B, {', '.join(PRESETS)}")
    if not batch:
        raise ValueError("--batch: a number of rows is missing; give at least one, such as 1")
    for rows in batch:
        check_number("--batch", rows, 1)
    check_number("--prompt-frames", prompt_frames, 1)
    check_number("--frames", frames, 2)
    check_number("--rounds", rounds, 1)
    check_threads(threads)
    for name in model:
        check_model(name)
    if with_codec and not model:
        raise ValueError("--with-codec needs --model: a shape has no codec")
    if load and (shape or not model):
        raise ValueError("--load needs --model, and no shape: a shape has no codec")
    for rate in load_rates:
        check_number("--load-rates", rate, 0.01)
    check_number("--load-seconds", load_seconds, 0.1, unit=" s")
    check_number("--load-speech", load_speech, 0.1, unit=" s")
    check_number("--load-rows", load_rows, 1)
    shapes = shape or (() if model else ("S",))
    say_loading(", ".join([*(f"the shape {name}" for name in shapes), *(f"the model '{name}'" for name in model)]))
    import torch

    from .bench import BenchConfig
    from .bench import bench as run
    from .subjects import Subject
    from .table import markdown, notes, table

    with decoding_threads(threads):
        num_threads = torch.get_num_threads()
    if load:
        from .load import LoadConfig, bench_load, describe_load

        settings = LoadConfig(load_rates, load_seconds, load_speech, load_rows, load_rows)
        found = bench_load(model, settings, device, weights, num_threads)
        write_json(json_file, found.to_dict())
        if markdown_file is not None:
            write_whole(markdown_file, describe_load(found, markdown_table, "- ") + "\n")
        print(describe_load(found, text_table))
        return
    config = BenchConfig(
        batch, prompt_frames, frames, rounds, num_threads, device, clock, peers, memory, with_codec, weights
    )
    subjects = [Subject(name, True) for name in shapes] + [Subject(name, False) for name in model]
    report = run(subjects, config)
    write_json(json_file, report.to_dict() | {"notes": notes(report)})
    if markdown_file is not None:
        write_whole(markdown_file, markdown(report))
    print(table(report))
