"""How audio becomes tokens, as a plain dataclass; importing it needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrepareConfig:
    """How audio is cut and grouped. All but `num_workers` decide what the store holds."""

    files_per_shard: int = 256
    max_utterance_s: float = 600.0  # a longer file becomes pieces name#0, name#1, ... of at most this
    copies: int = 1  # of every utterance, each from a fraction of a frame later and a little louder or softer:
    # other codes for the same speech, which keeps a small corpus from being learnt by heart. Not for evaluation
    num_workers: int = 1  # processes with one thread each

    def __post_init__(self) -> None:
        if min(self.files_per_shard, self.copies, self.num_workers) < 1:
            raise ValueError(
                f"files_per_shard ({self.files_per_shard}), copies ({self.copies}) and num_workers "
                f"({self.num_workers}) must be at least 1"
            )
        if not 1 <= self.max_utterance_s < float("inf"):
            raise ValueError(f"max_utterance_s is {self.max_utterance_s}; it must be at least 1 second, and finite")
