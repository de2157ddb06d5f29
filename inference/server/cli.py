"""The verb `serve`: a model behind HTTP. Checks first, heavy imports inside the function."""

import os
from dataclasses import replace
from typing import Annotated

from tyro.conf import arg

from ..argument_checks import check_device, check_model, check_number, check_package
from ..options import Device, Model, Options, Threads, Weights, open_model
from ..threads import check_threads
from .config import LOOPBACK, ServerConfig

TOKEN = "CODECLM_TOKEN"


def serve(
    model: Model = "default",
    host: Annotated[str, arg(help="address to listen at; one that others can reach needs --token")] = "127.0.0.1",
    port: Annotated[int, arg(help="port to listen at (0: any that is free)")] = 8000,
    weights: Weights = "float32",
    device: Device = "auto",
    threads: Threads = None,
    config: Annotated[ServerConfig, Options] = ServerConfig(),
) -> None:
    """Serve a model to browsers and programs: continuations, speech, likelihoods, conversation; see its page at /."""
    check_number("--port", port, 0, 65535)
    check_device(device)
    check_threads(threads)
    config = replace(config, token=config.token or os.environ.get(TOKEN, ""))
    if host not in LOOPBACK and not config.token:
        raise ValueError(f"--host {host}: others can reach it there, so it needs --token (or {TOKEN})")
    check_model(model)
    for package in ("fastapi", "uvicorn", "python_multipart", "websockets", "prometheus_client"):
        check_package("codeclm serve", package, "serve")
    lm = open_model(model, device, threads, weights, config.max_sessions)
    from ..threads import ASKED, set_threads
    from .run import serve as run

    # several threads compute, so torch's number of threads is set once, and never meanwhile
    lm.threads = threads or int(os.environ.get(ASKED) or 1)
    set_threads(lm.threads)
    run(lm, config, host, port)
