"""SpeechLMConfig: what `config.json` beside a SpeechLM's weights says, in transformers' format."""

from dataclasses import asdict
from typing import Any

from transformers import PretrainedConfig

from .config import BACKBONE, DEPTH, CodecReference, TransformerConfig, nested


class SpeechLMConfig(PretrainedConfig):
    """Configuration of `SpeechLM`.

    backbone, depth: the temporal backbone and the depth decoder, as TransformerConfig or a dict of its fields.
    delays: frames that each codebook lags (default: none). Raises ValueError for an unknown key in a nested part, or a
    `delays` that has not one non-negative number for each codebook.
    """

    model_type = "codeclm"

    def __init__(
        self,
        num_codebooks: int = 8,
        codebook_size: int = 1024,
        backbone: TransformerConfig | dict[str, Any] = BACKBONE,
        depth: TransformerConfig | dict[str, Any] = DEPTH,
        delays: list[int] | None = None,
        codec: CodecReference | dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.backbone = asdict(nested(TransformerConfig, backbone, "backbone"))
        self.depth = asdict(nested(TransformerConfig, depth, "depth"))
        self.delays = list(delays) if delays is not None else [0] * num_codebooks
        self.codec = asdict(nested(CodecReference, codec or CodecReference(), "codec"))
        if num_codebooks < 1 or codebook_size < 2:
            raise ValueError(
                f"num_codebooks {num_codebooks} must be at least 1, codebook_size {codebook_size} at least 2"
            )
        if len(self.delays) != num_codebooks or min(self.delays) < 0:
            raise ValueError(f"delays {self.delays} must be {num_codebooks} numbers, none negative")
        if min(self.delays) < self.delays[0]:
            # else what a codebook that runs ahead does not have would tell of the end before codebook 0 does
            raise ValueError(f"delays {self.delays}: no codebook may lag less than codebook 0")
        super().__init__(**kwargs)

    @property
    def backbone_config(self) -> TransformerConfig:
        return TransformerConfig(**self.backbone)

    @property
    def depth_config(self) -> TransformerConfig:
        return TransformerConfig(**self.depth)

    @property
    def codec_reference(self) -> CodecReference:
        return CodecReference(**self.codec)
