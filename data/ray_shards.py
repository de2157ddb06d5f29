"""Shards made by the actors of a Ray cluster (extra `ray`): the same function over the same plan, so the same bytes.

The machines of the cluster see the audio and the store's folder under the same paths. An actor that dies is started
again, elsewhere if need be, and its shard is made once more.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..model.codecs import Codec, load_codec
from .config import PrepareConfig, with_settings
from .make_shards import HoursBar, make_shards
from .plan import Shard

CODEC = ".codec.partial"  # a folder in that of the store: all actors see it, also one that is started again


class ShardMaker:
    """An actor: a codec, and shards one after another."""

    def __init__(self, out: Path, config: PrepareConfig, device: str):
        self.codec = load_codec(out / CODEC).to(device)
        self.out, self.config = out, with_settings(config, {"num_workers": 1})

    def make(self, shard: Shard) -> tuple[int, float]:
        """Bytes and hours of audio that were read."""
        (index,) = make_shards([shard], self.out, self.codec, self.config, progress=False).values()
        samples = sum(entry.num_samples for entry in index.utterances)
        return shard.size, samples / self.codec.sample_rate / 3600


def make_shards_with_ray(
    todo: Sequence[Shard], out: Path, codec: Codec, config: PrepareConfig, progress: bool = True
) -> None:
    """Make the shards with an actor for each GPU of the cluster, or, where it has none, for each CPU.

    RAY_ADDRESS says which cluster; without it one is started on this machine. Raises as `make_shards` does.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would phone home
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util import ActorPool

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        resources: dict[str, Any] = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        device = "cuda" if gpus else "cpu"
        needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        # an actor that dies is started again, and the call that died with it is made again, however often
        remote = ray.remote(max_restarts=-1, max_task_retries=-1, **needs)(ShardMaker)
        codec.save(out / CODEC)
        count = min(gpus or int(resources.get("CPU", 1)), len(todo))
        pool = ActorPool([remote.remote(out.absolute(), config, device) for _ in range(count)])
        with HoursBar(sum(shard.size for shard in todo), progress) as bar:
            for num_bytes, hours in pool.map_unordered(lambda actor, shard: actor.make.remote(shard), list(todo)):
                bar.add(num_bytes, hours)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, OSError | ValueError) else error from None
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OSError(f"{out}: Ray gave up ({reason}); what is finished is kept: run it again") from None
    finally:
        if ours:
            ray.shutdown()
        shutil.rmtree(out / CODEC, ignore_errors=True)
