"""SIGKILL of `prepare` at random moments: alone, as ranks, and an actor of Ray; resumed, the bytes are the same.

python -m tests.killed_prepare 10     as many kills of each kind; test_many_machines.py makes one of each
"""

import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch

from codeclm.data.config import PrepareConfig
from codeclm.data.preparation import prepare, prepare_rank
from codeclm.data.ranks import Rank
from codeclm.model.codecs import EMBEDDED_CODEC, Codec, load_codec

NUM_CLIPS, NUM_RANKS = 48, 3
CONFIG = PrepareConfig(files_per_shard=2)
PAUSE_S = 0.05  # before each call of the codec, so that there is a middle to be killed in


def write_clips(folder: Path) -> Path:
    """Speech, in parts that differ, and a broken file."""
    folder.mkdir(parents=True)
    speech, rate = soundfile.read(EMBEDDED_CODEC / "prompt.flac", dtype="int16")
    for i in range(NUM_CLIPS):
        start = i * (len(speech) - rate) // NUM_CLIPS
        soundfile.write(folder / f"{i:03d}.wav", speech[start : start + rate // 2 + 100 * i], rate)
        (folder / f"{i:03d}.txt").write_text(f"words {i}")
    (folder / "010-broken.wav").write_bytes(b"RIFF no audio")
    return folder


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def slowed(codec: Codec) -> Codec:
    encode = codec.encode
    codec.encode = lambda *args: (time.sleep(PAUSE_S), encode(*args))[1]  # type: ignore[method-assign]
    return codec


def forked(work: Callable[[], object]) -> int:
    """A process that does it, with all that is loaded here."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        work()
    except BaseException as error:  # noqa: BLE001
        print(f"child: {error!r}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def finished(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_alone(audio: Path, out: Path, codec: Codec, after_s: float) -> int:
    """Shards that were finished when it was killed."""
    pid = forked(lambda: prepare(audio, out, slowed(codec), CONFIG, progress=False))
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    finished(pid)
    done = len(list(out.glob("shard-*.json")))
    assert finished(forked(lambda: prepare(audio, out, codec, CONFIG, progress=False))) == 0
    return done


def killed_ranks(audio: Path, out: Path, codec: Codec, after_s: float) -> int:
    """All ranks at once, one of them killed, then run again."""

    def start(number: int, coder: Codec) -> int:
        return forked(lambda: prepare_rank(audio, out, Rank(number, NUM_RANKS), coder, CONFIG, progress=False))

    slow = slowed(load_codec("spectral"))
    pids = [start(number, slow) for number in range(NUM_RANKS)]
    time.sleep(after_s)
    victim = random.randrange(NUM_RANKS)
    os.kill(pids[victim], signal.SIGKILL)
    codes = [finished(pid) for pid in pids]
    assert all(code == 0 for number, code in enumerate(codes) if number != victim), codes
    done = len(list(out.glob("shard-*.json")))
    assert finished(start(victim, codec)) == 0
    prepare(audio, out, codec, CONFIG, progress=False, commit=True)
    return done


def actors() -> list[int]:
    """The processes of our Ray that make shards: below this process, and no other's."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, title = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid], titles[pid] = int(stat.rpartition(")")[2].split()[1]), title

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid, title in titles.items() if title.startswith(b"ray::ShardMaker") and is_ours(pid)]


def killed_actor(audio: Path, out: Path, codec: Codec, after_shards: float) -> int:
    """One actor, once that many shards are there: to load an actor takes longer than its work. Ray is running."""
    killed = []

    def kill() -> None:
        while not (found := actors()) or len(list(out.glob("shard-*.json"))) < after_shards:
            time.sleep(0.01)
        for pid in random.sample(found, 1):
            os.kill(pid, signal.SIGKILL)
            killed.append(len(list(out.glob("shard-*.json"))))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    prepare(audio, out, codec, CONFIG, progress=False, ray=True)
    killer.join(10)
    return killed[0] if killed else -1


def main(count: int) -> None:
    import ray

    torch.set_num_threads(1)
    codec, folder = load_codec("spectral"), Path(tempfile.mkdtemp())
    audio, out = write_clips(folder / "audio"), folder / "out"
    prepare(audio, folder / "truth", codec, CONFIG, progress=False)
    truth = content(folder / "truth")
    for kind in [globals()[name] for name in sys.argv[2:]] or (killed_alone, killed_ranks, killed_actor):
        if kind is killed_actor:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        equal, middles = 0, []
        for _ in range(count):
            most = {killed_alone: 4.0, killed_ranks: 6.0, killed_actor: 20.0}[kind]
            middles.append(kind(audio, out, codec, random.uniform(0, most)))
            equal += content(out) == truth
            shutil.rmtree(out)
        print(f"{kind.__name__}: {equal} of {count} byte-identical; shards finished at the kill: {middles}", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
