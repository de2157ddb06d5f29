"""SpeechLMConfig: what `config.json` beside a SpeechLM's weights says, in transformers' format."""

import inspect
import json
from dataclasses import asdict, replace
from typing import Any

from transformers import PretrainedConfig

from .codec_reference import CodecReference
from .shapes import BACKBONE, DEPTH, MAX_VOCABULARY, PATTERNS, DepthConfig, TextConfig, TransformerConfig
from .strict import check_value, shown, strict

MAX_CODEBOOKS = MAX_DELAY = 4096  # more than any codec has: what lies beyond would fill the memory
PARTS = ("backbone", "depth", "text", "codec")  # settings that are dataclasses, in JSON objects


class SpeechLMConfig(PretrainedConfig):
    """Configuration of `SpeechLM`. K codebooks are predicted, V codes each.

    pattern: "depth": a depth decoder over the codebooks of a step; "delay": one head for each codebook on the backbone,
        all codebooks of a step at once ("parallel" is "delay" without delays); "flatten": a position for each code.
    backbone, depth, text, codec: the parts, given as their dataclass or a dict of its fields, kept as the dataclass.
        depth counts for pattern "depth" only.
    delays: frames that each codebook lags (default: none; 0, 1, 2, ... for "delay").
    user_codebooks: codebooks of another speaker that are heard, never predicted; delayed as the first ones are (Moshi).
    bos: whether a row begins with a step of BOS; without, its first step is given, and has equal probabilities (CSM).
    end: how a row ends: "eos" is a class of codebook 0, one past its codes; "zeros" a frame of which every code is 0
        (CSM); "never" (Moshi).
    gaps: where delays leave no code, the input is nothing at all ("absent") or the BOS code ("bos", Moshi).
    context_frames: what the model was trained to look back on; more is scored and generated window by window.

    Raises ValueError for an unknown key or value, or settings that exclude each other.
    """

    model_type = "codeclm"

    def __init__(
        self,
        num_codebooks: int = 8,
        codebook_size: int = 1024,
        backbone: TransformerConfig | dict[str, Any] = BACKBONE,
        depth: DepthConfig | dict[str, Any] = DEPTH,
        delays: list[int] | None = None,
        codec: CodecReference | dict[str, Any] | None = None,
        pattern: str = "depth",
        text: TextConfig | dict[str, Any] | None = None,
        user_codebooks: int = 0,
        bos: bool = True,
        end: str = "eos",
        gaps: str = "absent",
        context_frames: int = 512,
        **kwargs: Any,
    ):
        self.num_codebooks = check_value(int, num_codebooks, "num_codebooks")
        self.codebook_size = check_value(int, codebook_size, "codebook_size")
        if not 1 <= num_codebooks <= MAX_CODEBOOKS or not 2 <= codebook_size <= MAX_VOCABULARY:
            raise ValueError(
                f"num_codebooks {num_codebooks} must be 1 to {MAX_CODEBOOKS}, "
                f"codebook_size {codebook_size} 2 to {MAX_VOCABULARY}"
            )
        self.pattern = check_value(str, pattern, "pattern")
        if delays is None:
            delays = list(range(num_codebooks)) if pattern == "delay" else [0] * num_codebooks
        self.delays = check_value(list[int], delays, "delays")
        self.backbone = strict(TransformerConfig, backbone, name="backbone")
        self.depth = strict(DepthConfig, depth, name="depth")
        self.text = strict(TextConfig, TextConfig() if text is None else text, name="text")
        reference = strict(CodecReference, CodecReference() if codec is None else codec, name="codec")
        self.codec = replace(
            reference,
            num_codebooks=reference.num_codebooks or num_codebooks,
            codebook_size=reference.codebook_size or codebook_size,
        )
        self.user_codebooks = check_value(int, user_codebooks, "user_codebooks")
        self.bos = check_value(bool, bos, "bos")
        self.end = check_value(str, end, "end")
        self.gaps = check_value(str, gaps, "gaps")
        self.context_frames = check_value(int, context_frames, "context_frames")
        self._check()
        if self.pattern == "parallel":
            self.pattern = "delay"
        super().__init__(**kwargs)

    def _check(self) -> None:
        num_codebooks, delays = self.num_codebooks, self.delays
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern '{self.pattern}' is unknown; choose one of {', '.join(PATTERNS)}")
        if len(delays) != num_codebooks or min(delays) < 0 or max(delays) > MAX_DELAY:
            raise ValueError(f"delays {shown(delays)} must be {num_codebooks} numbers from 0 to {MAX_DELAY}")
        if min(delays) < delays[0]:
            # else what a codebook that runs ahead does not have would tell of the end before codebook 0 does
            raise ValueError(f"delays {delays}: no codebook may lag less than codebook 0")
        if self.pattern in ("parallel", "flatten") and any(delays):
            raise ValueError(f"delays {delays}: the pattern '{self.pattern}' has none; give pattern 'delay' or 'depth'")
        if self.pattern == "flatten" and (self.user_codebooks or not self.bos or self.gaps == "bos"):
            raise ValueError(
                "the pattern 'flatten' has no user_codebooks, no start without BOS and no gaps 'bos'; give 'depth'"
            )
        for name, legal in (("gaps", ("absent", "bos")), ("end", ("eos", "zeros", "never"))):
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} '{getattr(self, name)}' is unknown; choose one of {', '.join(legal)}")
        if not 0 <= self.user_codebooks <= num_codebooks:
            raise ValueError(f"user_codebooks {self.user_codebooks} must be 0 to num_codebooks ({num_codebooks})")
        if self.context_frames < 2:
            raise ValueError(f"context_frames {self.context_frames} must be at least 2")
        if self.pattern == "depth":
            sets, positions = self.depth.weight_sets, self.depth.num_positions(num_codebooks)
            if sets and len(sets) != positions:
                raise ValueError(f"depth.weight_sets has {len(sets)} entries for {positions} positions")
            if self.depth.sees_text and not self.text.vocab_size:
                raise ValueError("depth.sees_text: this model has no text stream; give text.vocab_size")

    @property
    def num_recent_tokens(self) -> int:
        """Text tokens that a step is told beside its own: the one being said, and those ahead; none in "flatten"."""
        return 0 if self.pattern == "flatten" or self.text.layout != "timed" else self.text.lookahead + 1

    def canonical(self) -> str:
        """The settings that decide numbers, as JSON: two models of the same settings have the same.

        A setting that has its default is left out, so that one which a later version adds changes nothing.
        """
        own, defaults = self.own_settings(), SpeechLMConfig().own_settings()
        for name in ("name", "num_codebooks", "codebook_size"):  # the fingerprint decides
            own["codec"].pop(name)
        return json.dumps(_without(own, defaults), sort_keys=True, separators=(",", ":"))

    def own_settings(self) -> dict[str, Any]:
        """The settings of `__init__`, as JSON has them."""
        values = self.to_dict()
        return json.loads(json.dumps({name: values[name] for name in SETTINGS}))

    def changed(self, **settings: Any) -> "SpeechLMConfig":
        """The same with other settings, given as to the class."""
        return SpeechLMConfig.from_dict(self.to_dict() | settings)

    def to_dict(self) -> dict[str, Any]:
        """transformers' own, with the parts as dicts."""
        return super().to_dict() | {name: asdict(getattr(self, name)) for name in PARTS}


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Whatever differs from the defaults, also inside of what is nested."""
    parts = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _without(value, defaults[key])
        if value != ({} if isinstance(value, dict) else defaults[key]):
            parts[key] = value
    return parts


SETTINGS = tuple(inspect.signature(SpeechLMConfig).parameters)[:-1]  # transformers' own, in **kwargs, left out
