"""AlignerConfig: what `codeclm align` takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AlignerConfig:
    """The network of an alignment, and how it is taught."""

    hours: float = 20.0  # hours of speech that it learns from, spread over the store
    epochs: float = 4.0  # times that it hears each utterance
    dim: int = 192  # width
    num_layers: int = 10  # convolutions over five frames
    frames_per_batch: int = 6000  # frames of a step, padding included
    learning_rate: float = 2e-3  # peak learning rate of AdamW
    seed: int = 0  # seed of the weights and of the order of utterances
    again: bool = False  # find out also for texts of which the store knows it

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("seed", "again") and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be more than 0, and finite")
