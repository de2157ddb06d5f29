"""A config.json as transformers' own class, checked before a network is made of it."""

from typing import Any

from transformers import PretrainedConfig

from ..strict import refusing, shown

# settings of transformers' codecs that count modules with tensors of their own
COUNTS = ("num_hidden_layers", "num_quantizers", "num_residual_layers", "num_lstm_layers", "n_codebooks")


def read_settings(kind: type[PretrainedConfig], values: dict[str, Any], name: str) -> Any:
    """A config.json as transformers' own class, defaults filled in. Raises ValueError if the class refuses it."""
    try:
        return kind.from_dict(dict(values))
    except Exception as error:  # its checks raise several classes that share no base
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name}: transformers does not accept this config ({reason})") from None


def check_counts(config: PretrainedConfig, num_tensors: int, name: str) -> None:
    """Raise ValueError for a codec's config with more layers or codebooks than its file has tensors."""
    for key in COUNTS:
        with refusing(name):
            count = getattr(config, key, 0)  # EnCodec's num_quantizers comes of other settings
        if isinstance(count, int) and count > num_tensors:
            raise ValueError(f"{name}: {key} is {shown(count)}, but its weights have {num_tensors} tensors")
