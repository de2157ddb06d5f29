"""What generation is left of beside a process that keeps one core busy: frames/s in one run, quiet and busy in turn.

    python tests/shared_machine.py [--rounds 5] [--duration 4]

Run it where nothing else runs. Not a test: a figure of this machine at this moment. It asks for at least 60 %.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPIN = "while True: pass"
# the command itself, its frames counted from the first that is drawn: loading is not decoding
GENERATE = """
import sys, time
from codeclm.inference import generator
from codeclm.train.cli import main
real = generator.generate
def timed(*args, **kwargs):
    states = real(*args, **kwargs)
    yield next(states)
    start, count = time.perf_counter(), 0
    for state in states:
        count += 1
        yield state
    print(f"{count / (time.perf_counter() - start):.2f} frames/s")
generator.generate = timed
main(["generate", *sys.argv[1:]])
"""


@contextmanager
def busy(core: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        process.kill()
        process.wait()


def frames_per_second(options: list[str], folder: Path) -> float:
    command = [sys.executable, "-c", GENERATE, *options, "--out", str(folder / "out.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"([\d.]+) frames/s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def measured(name: str, options: list[str], rounds: int, folder: Path) -> float:
    """Print quiet and busy frames/s, and return busy / quiet, by the medians of the rounds."""
    quiet, beside = [], []
    last = (os.cpu_count() or 1) - 1
    for _ in range(rounds):
        quiet.append(frames_per_second(options, folder))
        with busy(last):
            beside.append(frames_per_second(options, folder))
    share = statistics.median(beside) / statistics.median(quiet)
    print(
        f"{name:24} quiet {statistics.median(quiet):6.1f} frames/s ({min(quiet):.1f}-{max(quiet):.1f}), beside a busy "
        f"process {statistics.median(beside):6.1f} ({min(beside):.1f}-{max(beside):.1f}): {share:.0%}",
        flush=True,
    )
    return share


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=4.0)
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{cores} cores, load average {load:.2f}, {asked.rounds} rounds of {asked.duration:g} s")
    options = ["--duration", str(asked.duration)]
    with tempfile.TemporaryDirectory() as folder:
        share = measured("the rule (one thread)", options, asked.rounds, Path(folder))
        if cores > 1:
            measured(f"--threads {cores}", [*options, "--threads", str(cores)], asked.rounds, Path(folder))
    sys.exit(0 if share >= 0.6 else f"generation kept {share:.0%} of its speed; at least 60 % was asked for")


if __name__ == "__main__":
    run()
