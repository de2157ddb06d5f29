"""The verb `report`: recordings on a page to listen to, with all that a model says of them."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..argument_checks import (
    check_audio,
    check_device,
    check_duration,
    check_folder,
    check_model,
    check_number,
    check_package,
    check_seeds,
)
from ..options import Device, Model, Options, Threads, open_model
from ..threads import check_threads
from .config import ReportConfig

PAGE = "report.html"


def report(
    audio: Positional[Annotated[tuple[Path, ...], arg(metavar="AUDIO [AUDIO ...]", help="audio files, or folders")]],
    out: Annotated[Path, arg(metavar="FOLDER", help="folder of the page, report.html")] = Path("runs/report"),
    model: Model = "default",
    device: Device = "auto",
    threads: Threads = None,
    config: Annotated[ReportConfig, Options] = ReportConfig(),
) -> None:
    """Show AUDIO on one HTML page: sound, spectrogram, codes, the model's surprise, and continuations beside it."""
    check_folder(out)
    check_number("--continuations", config.continuations, 0, 100)
    check_number("--prompt-s", config.prompt_s, 0.1, unit=" s")
    check_number("--limit-s", config.limit_s, 0.1, 600, " s")
    check_number("--files", config.files, 1)
    check_duration(config.duration)
    check_seeds(config.seed)
    check_device(device)
    check_threads(threads)
    if not audio:
        raise ValueError("AUDIO is missing; name at least one file or folder")
    for path in audio:
        check_audio(path)
    if config.asr:
        check_package("--asr", "faster_whisper", "asr")
    check_model(model)
    lm = open_model(model, device, threads)
    from ...data.audio import evenly, find_audio
    from ...model.files import write_whole
    from .recordings import recordings_page

    files = [file for path in audio for file in evenly(find_audio(path), config.files)]
    page = recordings_page(lm, files, config)
    write_whole(out / PAGE, page.html())
    print(f"{out / PAGE}: open it in a browser; it needs no network")
