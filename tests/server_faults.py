"""A thousand bad requests to a real server, and what is left of it: python -m tests.server_faults [REQUESTS] [MODEL]

Fuzzed forms and JSON, cut audio, wrong types, huge numbers, bytes where text is due, requests that stop in the middle,
clients that leave, read nothing or are killed; the server can write to no file all the while, and at the end comes
SIGTERM under load. Told: answers by status, and memory and open files before and after. Exit status 1: a traceback, an
answer that is no line of JSON, a process that grew or kept files open, or a good request that was not answered.
"""

import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from codeclm.inference.client import Client

from .bad_requests import BadRequests, recordings
from .serving import process, wait_for

GROWTH = 0.05  # share of the memory that may be there more at the end
CLIENTS = 8  # at the same time
# is killed in the middle of its reply
KILLED = """
import sys
from codeclm.inference.client import Client
for chunk in Client(sys.argv[1]).stream(duration_s=50):
    print(len(chunk), flush=True)
"""


def killed_clients(address: str, count: int) -> None:
    """kill -9 in the middle of a reply."""
    for _ in range(count):
        client = subprocess.Popen([sys.executable, "-c", KILLED, address], stdout=subprocess.PIPE)
        assert client.stdout is not None and client.stdout.readline()
        client.kill()
        client.wait()


def settled(server: psutil.Process, client: Client) -> tuple[float, int]:
    """Megabytes and open files, once nothing is open any more."""
    wait_for(lambda: client.http.get("/health").json()["open"] == 0, 120)
    time.sleep(1)
    return server.memory_info().rss / 2**20, server.num_fds()


def run(model: str | Path, requests: int) -> list[str]:
    """What was found wrong."""
    limits = "--client-rate=0 --client-sessions=100 --stall-s=2 --max-body-mb=2 --drain-s=3"
    wrong: list[str] = []
    with process(model, *limits.split()) as (address, running), Client(address, timeout_s=120) as client:
        log: list[str] = []
        assert running.stdout is not None
        reader = threading.Thread(target=log.extend, args=(running.stdout,), daemon=True)
        reader.start()
        server, faults = psutil.Process(running.pid), BadRequests(address, recordings())
        server.rlimit(psutil.RLIMIT_FSIZE, (0, 0))  # as on a full disk, it can write to no file
        expected = client.generate(duration_s=0.3, seed=5).codes
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(faults.one, range(10_000, 10_000 + requests // 2)))  # memory reaches its plateau
        killed_clients(address, 1)
        before = settled(server, client)
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = Counter(pool.map(faults.one, range(requests)))
        killed_clients(address, 2)
        after = settled(server, client)
        for (kind, answer), count in sorted(answers.items()):
            print(f"{count:5}  {kind:16} {answer}")
        print(f"memory {before[0]:.1f} -> {after[0]:.1f} MB, open files {before[1]} -> {after[1]}")
        wrong += [answer for _, answer in answers if "NO LINE" in answer]
        if after[0] > (1 + GROWTH) * before[0]:
            wrong.append(f"memory grew from {before[0]:.1f} to {after[0]:.1f} MB")
        if after[1] > before[1]:
            wrong.append(f"open files grew from {before[1]} to {after[1]}")
        if not np.array_equal(client.generate(duration_s=0.3, seed=5).codes, expected):
            wrong.append("the codes of a good request changed")
        ends = under_load(address, running)
        print(f"SIGTERM under load: exit status {running.wait(30)}; requests {dict(ends)}")
        reader.join(10)
        if running.returncode:
            wrong.append(f"SIGTERM gave exit status {running.returncode}")
        wrong += [line.strip() for line in log if re.search(r"Traceback|^\s+File ", line)]
    return wrong


def under_load(address: str, running: subprocess.Popen[str]) -> Counter[str]:
    """How requests end that are open when SIGTERM comes: each with all it asked for, or told why not."""

    def ask(seconds: float) -> str:
        try:
            with Client(address) as one:
                made = one.generate(duration_s=seconds)
                return f"{made.finish_reason}"
        except (OSError, RuntimeError) as error:
            return type(error).__name__ + ("" if str(error) else " without a word")

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, 1.0 if number % 2 else 50) for number in range(CLIENTS)]
        with Client(address) as watch:
            wait_for(lambda: watch.http.get("/health").json()["open"] >= CLIENTS // 2, 120)
        running.send_signal(signal.SIGTERM)
        return Counter(one.result() for one in asked)


def main(requests: int = 1000, model: str = "default") -> int:
    wrong = run(model, requests)
    for line in wrong:
        print(f"wrong: {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*[kind(word) for kind, word in zip((int, str), sys.argv[1:], strict=False)]))
