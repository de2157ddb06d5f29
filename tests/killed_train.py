"""SIGKILL of `train` at random moments, alone and as ranks under torchrun; resumed, the last checkpoint is the same.

python -m tests.killed_train 10 --ranks 2     as many kills of one run, then weights and optimizer beside a run unbroken

Each time all of its processes are killed at once, or one rank, and torchrun ends the others.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from codeclm.data.store_writer import Utterance, commit_store, write_shard
from codeclm.data.token_store import TokenStore
from codeclm.model import CodecReference
from codeclm.model.codecs import SpectralCodec, SpectralConfig
from codeclm.train.checkpoint import latest_checkpoint

from .training import SHORT, SIZE, SOURCE, assert_same_bits, draw, program, state_of

CONFIG = replace(
    SHORT,
    dropout=0.1,
    input_dropout=0.1,
    steps=600,
    evaluate_every=100,
    save_every=5,
    batch=replace(SHORT.batch, frames_per_batch=80, max_frames=40),
)
PATIENCE_S = 120.0


def make_data(folder: Path) -> tuple[TokenStore, SpectralCodec]:
    torch.manual_seed(0)
    config = SpectralConfig(
        sample_rate=8000, trunk_hop=40, window=80, stride=2, encoder_dim=8, dim=8, encoder_layers=1, latent_layers=0,
        bottleneck_layers=0, decoder_layers=1, kernel=3, expansion=2, num_codebooks=2, codebook_size=SIZE,
        codebook_dim=4,
    )  # fmt: skip
    codec = SpectralCodec(config, name="tiny").eval()
    info = CodecReference.of(codec)
    codes = draw(SOURCE, [20, 33, 7, 50, 12, 28, 41, 5] * 4, 0)
    entries = [Utterance(f"voice/u{i}", len(part) * info.hop_length, part, None) for i, part in enumerate(codes)]
    folder.mkdir(parents=True)
    commit_store(folder, info, [write_shard(folder, 0, entries, info)])
    return TokenStore(folder), codec


def start(script: Path, ranks: int) -> subprocess.Popen:
    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.Popen(
        [*(torchrun if ranks > 1 else [sys.executable]), script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(script.parent / "errors.txt").open("a"),
    )


def workers(launcher: int) -> list[int]:
    """Processes that it has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == launcher:
            found.append(int(path.parent.name))
    return found


def wait_for_start(out: Path, process: subprocess.Popen, since: float) -> None:
    """Until the run has written its config.json."""
    config = out / "config.json"
    while not (config.exists() and config.stat().st_mtime >= since):
        assert process.poll() is None and time.time() < since + PATIENCE_S, "the run did not start"
        time.sleep(0.02)


def killed(script: Path, out: Path, ranks: int, most_s: float) -> str | None:
    """-> whom it hit, and the newest checkpoint; None: the run had finished."""
    since = time.time()
    process = start(script, ranks)
    wait_for_start(out, process, since)
    time.sleep(random.uniform(0, most_s))
    if process.poll() is not None:
        assert process.returncode == 0
        return None
    pids = workers(process.pid) if ranks > 1 else []
    assert len(pids) == ranks or ranks == 1
    hits_one = ranks > 1 and random.random() < 0.5
    for pid in [random.choice(pids)] if hits_one else [*pids, process.pid]:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(PATIENCE_S) != 0
    newest = latest_checkpoint(out)
    return f"{'one' if hits_one else 'all'} at {int(newest.name.removeprefix('step-')) if newest else 0}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    count, ranks = options.count, options.ranks
    folder = Path(tempfile.mkdtemp())
    store, codec = make_data(folder / "store")
    whole, run = (program(store, codec, folder / name, CONFIG, "") for name in ("whole", "run"))
    since = time.time()
    process = start(whole, ranks)
    wait_for_start(folder / "whole", process, since)
    since = time.time()
    assert process.wait() == 0
    took = time.time() - since
    print(f"the unbroken run took {took:.0f} s, {folder}", flush=True)
    hits: list[str] = []
    while len(hits) < count and (hit := killed(run, folder / "run", ranks, 1.4 * took / count)):
        hits.append(hit)
        print(hit, flush=True)
    assert start(run, ranks).wait() == 0
    assert_same_bits(state_of(folder / "run", CONFIG.steps), state_of(folder / "whole", CONFIG.steps))
    print(f"{ranks} ranks: {len(hits)} kills, then the weights and the optimizer are bit-identical; {', '.join(hits)}")


if __name__ == "__main__":
    main()
