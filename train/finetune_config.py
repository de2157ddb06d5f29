"""How a model is tuned to new speech, as plain dataclasses; what nobody chose is open, and by_hours.py chooses it."""

from dataclasses import dataclass

from .config import BatchConfig, OptimizerConfig, RunConfig, TextOptions, check_steps


class OpenWhole(int):
    """A default that by_hours.py replaces: nobody has chosen it."""


class OpenNumber(float):
    """The same for a number that need not be whole."""


def is_open(value: float) -> bool:
    return isinstance(value, OpenWhole | OpenNumber)


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters, which learn in place of the model's weights; needs the extra "lora"."""

    rank: int = 0  # rank of the adapters' matrices (0: no adapters, all weights learn)
    alpha: float = 0.0  # the adapters count alpha / rank times (0: twice)
    merge: bool = False  # also write the model with the adapters merged into its weights, to RUN/merged

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.alpha < float("inf"):
            raise ValueError(f"rank is {self.rank}, alpha is {self.alpha}: neither may be negative or infinite")


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """One run of a model that goes on with new speech."""

    copies: int = 8  # variants of each recording, where the data is audio
    replay: str = ""  # base speech heard again, so that it is not forgotten: a store, audio, or self (the model's own)
    replay_share: float = 0.2  # share of each batch that --replay gives
    lora: LoraOptions = LoraOptions()
    text: TextOptions = TextOptions()  # a text stream for a model that has none, learned from the data's transcripts

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(copies=self.copies)
        if not 0 < self.replay_share < 1:
            raise ValueError(f"replay_share is {self.replay_share}; it must lie between 0 and 1")
        if self.text.layout != "none" and self.lora.rank:
            raise ValueError("text.layout and lora.rank exclude each other: adapters leave no weights for a new stream")


# what is open is chosen by the hours of speech
FINETUNE = FinetuneConfig(
    steps=OpenWhole(320),
    input_dropout=OpenNumber(0.1),
    dropout=OpenNumber(0.0),
    copies=OpenWhole(8),
    evaluate_every=OpenWhole(40),
    save_every=OpenWhole(80),
    patience=3,
    batch=BatchConfig(frames_per_batch=OpenWhole(2048), heldout_share=OpenNumber(0.1)),
    optimizer=OptimizerConfig(learning_rate=OpenNumber(3e-4), warmup_steps=20, schedule="cosine"),
)
