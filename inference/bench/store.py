"""What a large token store costs: opening it, memory, planning an epoch, batches at 1, 8 and 64 ranks, warm and cold.

    python -m codeclm.inference.bench.store /tmp/big --utterances 1000000

makes a store of N utterances of 12 s (25 Hz, 8 codebooks of 1,024) where there is none, and prints a table. Each part
runs in a process of its own; times are CPU seconds, cold batches also wall time. The codes of a store that is made with
--sparse are holes that read as zeros and take no disk: then there is nothing cold.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HZ, CODEBOOKS, SIZE, SECONDS = 25, 8, 1024, 12
FRAMES = HZ * SECONDS
FILES_PER_SHARD, SAMPLE_RATE = 256, 16_000
STEPS = 50


def make(folder: Path, count: int, sparse: bool) -> None:
    """As `prepare` leaves a store; written without a codec."""
    import hashlib

    from ...data.store_index import CODE, Entry, ShardIndex, shard_name
    from ...data.store_writer import commit_store
    from ...model.codec_reference import CodecReference

    codec = CodecReference("synthetic", "0" * 64, SAMPLE_RATE, SAMPLE_RATE // HZ, CODEBOOKS, SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    rng, shards = np.random.default_rng(0), []
    for number, first in enumerate(range(0, count, FILES_PER_SHARD)):
        utterances = range(first, min(count, first + FILES_PER_SHARD))
        path, shape = folder / f"{shard_name(number)}.bin", (len(utterances) * FRAMES, CODEBOOKS)
        if sparse:
            with path.open("wb") as file:
                file.truncate(shape[0] * shape[1] * CODE.itemsize)
            sha256 = "0" * 64
        else:
            data = rng.integers(0, SIZE, shape, np.uint16).tobytes()
            path.write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
        entries = [
            Entry(f"speaker{i % 5000}/{i:09d}", FRAMES, SECONDS * SAMPLE_RATE, speaker=f"speaker{i % 5000}")
            for i in utterances
        ]
        shards.append(ShardIndex(path.stem, str(number), sha256, entries, []))
    commit_store(folder, codec, shards)


def resident() -> float:
    """Memory of this process in MB, mapped pages that it has touched included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure_open(folder: Path) -> dict[str, float]:
    from ...data.token_store import TokenStore

    before = resident()
    seconds, store = timed(lambda: TokenStore(folder))
    found = {"open, s": seconds, "memory after opening, MB": resident() - before}
    again, _ = timed(lambda: TokenStore(folder))
    found["open again, s"] = again
    assert len(store) and len(store.names[len(store) // 2])
    return found


def measure_split(folder: Path) -> dict[str, float]:
    from ...data.split import split_heldout
    from ...data.token_store import TokenStore

    store = TokenStore(folder)
    by_recording, _ = timed(lambda: split_heldout(store, 0.02, 0))
    by_speaker, _ = timed(lambda: split_heldout(store, 0.02, 0, by="speaker"))
    return {"split by recording, s": by_recording, "split by speaker, s": by_speaker}


def measure_batches(folder: Path) -> dict[str, float]:
    from ...data.dataset import TokenBatches
    from ...data.split import split_heldout
    from ...data.token_store import TokenStore

    before = resident()
    store = TokenStore(folder)
    training, _ = split_heldout(store, 0.02, 0)
    batches = TokenBatches(store, 4096, 512, 0, training)
    found = {"plan of an epoch, s": timed(lambda: batches.epoch_batches(0))[0]}
    found["memory of a rank, MB"] = resident() - before
    for ranks in (1, 8, 64):
        large = TokenBatches(store, 4096 * ranks, 512, 0, training)
        large.epoch_batches(0)
        for step in range(STEPS):  # into memory
            large.rows(step, 0, ranks)
        seconds, _ = timed(lambda large=large, ranks=ranks: [large.rows(i, 0, ranks) for i in range(STEPS)])
        found[f"batch of 4096 frames a rank, warm, {ranks} ranks, ms"] = 1000 * seconds / STEPS
    return found


def measure_cold(folder: Path) -> dict[str, float]:
    from ...data.dataset import TokenBatches
    from ...data.token_store import TokenStore

    store = TokenStore(folder)
    batches = TokenBatches(store, 4096, 512, 0)
    batches.epoch_batches(0)
    found = {}
    for name, ahead in (("cold", False), ("cold, announced 8 steps ahead", True)):
        for path in folder.glob("*.bin"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        first = 100 if ahead else 0
        if ahead:
            for step in range(first, first + 8):
                batches.announce(step)
        start, cpu = time.perf_counter(), time.process_time()
        for step in range(first, first + STEPS):
            if ahead:
                batches.announce(step + 8)
            batches.rows(step)
            time.sleep(0.01)  # a step of the device
        found[f"batch, {name}, wall ms"] = 1000 * (time.perf_counter() - start) / STEPS - 10
        found[f"batch, {name}, CPU ms"] = 1000 * (time.process_time() - cpu) / STEPS
    return found


PARTS = {"open": measure_open, "split": measure_split, "batches": measure_batches, "cold": measure_cold}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--sparse", action="store_true", help="codes that take no disk")
    parser.add_argument("--part", choices=PARTS, help="measure this alone and print JSON")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.folder)))
        return
    if not (given.folder / "store.json").is_file():
        make(given.folder, given.utterances, given.sparse)
    for part in PARTS:
        if part == "cold" and given.sparse:
            continue
        command = [sys.executable, "-m", __spec__.name, str(given.folder), "--part", part]  # pyright: ignore
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, value in found.items():
            print(f"| {name} | {value:.3g} |", flush=True)


if __name__ == "__main__":
    main()
