"""Many listeners of `codeclm serve` over HTTP, on loopback: python -m codeclm.inference.bench.server --rates 1 2 4 8

As load.py, which asks a `Scheduler`: requests arrive at random times, whatever the server manages (an open loop). Each
uploads a voice prompt, and listens to a stream. The server is a process of its own, beside this one.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from ...model.pretrained import PROMPT
from ..argument_checks import check_package
from ..client import PcmPieces
from ..options import Model, Numbers, write_json
from ..text_table import text_table
from .load import Listener, Load, LoadConfig, LoadReport, arrivals, summary

GRACE = 1.0  # times the seconds in which requests arrive, that those which are open get


@dataclass(frozen=True)
class ServerLoadReport(LoadReport):
    ends: list[dict[str, int]]  # how requests ended, at each rate

    def notes(self) -> list[str]:
        """How the numbers were made, a sentence each."""
        config, machine = self.config, self.machine
        ends = "; ".join(
            f"{rate:g} a second: " + ", ".join(f"{count} {end}" for end, count in sorted(found.items()))
            for rate, found in zip(config.rates, self.ends, strict=True)
        )
        return [
            machine.describe(),
            f"Requests arrive for {config.seconds:g} s at random times (Poisson, the same in each run); each uploads "
            f"the bundled recording, and hears {config.speech_s:g} s of speech as a stream; {config.rows} are drawn "
            f"at the same time, {config.waiting} may wait, more are refused (rejects). Client and server share the "
            "cores.",
            "first sample, audible: from sending the request to samples at the client, and to the first above -50 "
            "dBFS; times real: speech over the time from a request's arrival to its last sample, median.",
            f"How requests ended: {ends}. Unfinished: neither with all its speech nor told why.",
        ]


@contextmanager
def server(model: str, config: LoadConfig, threads: int) -> Iterator[str]:
    """The address of a server that refuses nobody for asking often."""
    options = {
        "model": model, "port": 0, "max-sessions": config.rows, "max-waiting": config.waiting, "threads": threads,
        "client-sessions": 10**6, "client-rate": 0,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    started = subprocess.Popen([sys.executable, "-m", "codeclm", "serve", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        if " at http" not in line:
            raise RuntimeError(f"the server did not start: {line}")
        yield line.split(" at ")[1].split()[0]
    finally:
        started.terminate()
        started.wait()


async def run_load(address: str, model: str, config: LoadConfig, rate: float) -> tuple[Load, dict[str, int]]:
    """One rate -> its numbers, and how requests ended."""
    import httpx2

    prompt, listeners, ends = Path(PROMPT).read_bytes(), [], Counter[str]()
    start, limits = time.perf_counter(), httpx2.Limits(max_connections=None)
    sample_rate = 0

    async def ask(client: Any, arrival: float, seed: int) -> None:
        nonlocal sample_rate
        await asyncio.sleep(arrival - (time.perf_counter() - start))
        fields = {"duration": config.speech_s, "seed": seed, "format": "pcm", "stream": "true"}
        try:
            async with client.stream("POST", "/v1/continuations", data=fields, files={"audio": prompt}) as reply:
                if reply.status_code != 200:
                    ends[f"refused with {reply.status_code}"] += 1
                    return
                sample_rate = int(reply.headers["x-sample-rate"])
                listener = Listener(arrival, None)
                listeners.append(listener)
                pieces = PcmPieces()
                async for content in reply.aiter_bytes():
                    listener.hear(time.perf_counter() - start, pieces.add(content), sample_rate)
                if abs(listener.num_samples / sample_rate - config.speech_s) < 0.1:
                    listener.end = time.perf_counter() - start
                ends["with all their speech" if listener.end < np.inf else "too early"] += 1
        except httpx2.HTTPError as error:
            ends[f"by {type(error).__name__}"] += 1

    async with httpx2.AsyncClient(
        base_url=address, limits=limits, timeout=GRACE * config.seconds + 60, trust_env=False
    ) as client:
        asked = [ask(client, arrival, seed) for seed, arrival in enumerate(arrivals(rate, config.seconds))]
        await asyncio.gather(*asked)
    refused = sum(count for end, count in ends.items() if end.startswith("refused"))
    load = summary(model, sample_rate, rate, refused, listeners, time.perf_counter() - start)
    return load, dict(ends)


def main(
    model: Model = "default",
    rates: Annotated[tuple[float, ...], arg(metavar="R ...", help="requests a second")] = (1, 2, 4, 8),
    seconds: Annotated[float, arg(help="seconds in which requests arrive, at each rate")] = 60.0,
    speech_s: Annotated[float, arg(help="seconds of speech that each asks for")] = 4.0,
    rows: Annotated[int, arg(help="requests that are drawn at the same time")] = 8,
    waiting: Annotated[int, arg(help="requests that may wait beyond those")] = 16,
    threads: Annotated[int, arg(help="torch threads of the server")] = 1,
    json_file: Numbers = None,
) -> None:
    """Measure a server over HTTP on loopback, rate by rate."""
    check_package("this bench", "httpx2", "serve")
    import torch

    from ..machine import Machine, load_average, matmul_rate, processor_name

    config, busy, loads, ends = LoadConfig(rates, seconds, speech_s, rows, waiting), load_average(), [], []
    with server(model, config, threads) as address:
        asyncio.run(run_load(address, model, LoadConfig(rates, 3, speech_s, rows, waiting), 1.0))  # warms up
        for rate in rates:
            load, found = asyncio.run(run_load(address, model, config, rate))
            loads.append(load)
            ends.append(found)
    peak = matmul_rate(torch.device("cpu")) / 1e9
    machine = Machine(processor_name("cpu"), os.cpu_count() or 1, threads, torch.__version__, "cpu", busy, peak)
    report = ServerLoadReport(config, machine, "float32", loads, ends)
    write_json(json_file, report.to_dict())
    print("\n".join([*text_table(report.rows()), "", *report.notes()]))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
