"""The shapes of the networks as plain dataclasses; importing them needs neither torch nor transformers.

D width, K codebooks, V codebook size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from .rope_scaling import RopeScaling
from .strict import strict

# text columns before the audio, after it, or beside it; mixed: before, after or none, and a tag that says which; timed:
# the same tags, and the text beside its sound
TextLayout = Literal["first", "last", "aligned", "mixed", "timed"]
Pattern = Literal["depth", "delay", "parallel", "flatten"]  # how the codebooks of a frame are predicted
TEXT_LAYOUTS: tuple[str, ...] = get_args(TextLayout)
PATTERNS: tuple[str, ...] = get_args(Pattern)
TAGGED = ("mixed", "timed")  # layouts in which a tag says what a text is there for
# layouts of models that say a text, that say one also after speech, and that write what they hear
SAYS, SPEAKS, WRITES = (*TAGGED, "first"), (*TAGGED, "first", "aligned"), (*TAGGED, "last")
# more than any network has: a larger number is a slip of the pen, and would fill the memory
MAX_WIDTH, MAX_LAYERS, MAX_VOCABULARY = 1 << 20, 1000, 1 << 24
MAX_LEAD_S = 10.0
MAX_LOOKAHEAD = 64  # tokens


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer: RMSNorm, RoPE, SwiGLU, grouped-query attention; wide enough for Llama and Qwen."""

    dim: int = 256  # width of the residual stream
    num_layers: int = 8  # blocks of attention and feed-forward
    num_heads: int = 4  # query heads
    num_kv_heads: int = 4  # key and value heads, each shared by num_heads / num_kv_heads queries
    ff_dim: int = 768  # width of the feed-forward part, between gate and down
    head_dim: int = 0  # width of a head; 0: dim / num_heads
    rope: bool = True  # rotary positions; False: no positions at all (Moshi's depth decoder)
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    rope_scaling: RopeScaling = RopeScaling()
    norm_eps: float = 1e-6  # added to the variance in RMSNorm
    final_norm: bool = True  # RMSNorm after the last block
    qk_norm: bool = False  # RMSNorm of each query and key head (Qwen3)
    qkv_bias: bool = False  # biases of query, key and value (Qwen2)
    sliding_window: int = 0  # positions that a position sees, itself included; 0: all before it

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", strict(RopeScaling, self.rope_scaling, name="rope_scaling"))
        sizes = (self.dim, self.num_layers, self.num_heads, self.num_kv_heads, self.ff_dim)
        if min(sizes) < 1 or self.head_dim < 0:
            raise ValueError(
                "dim, num_layers, num_heads, num_kv_heads and ff_dim must be at least 1, head_dim at least 0"
            )
        if max(*sizes, self.head_dim) > MAX_WIDTH or self.num_layers > MAX_LAYERS:
            raise ValueError(
                f"dim {self.dim}, ff_dim {self.ff_dim}, heads {self.num_heads}, {self.num_kv_heads} of {self.head_dim} "
                f"must be at most {MAX_WIDTH}, num_layers {self.num_layers} at most {MAX_LAYERS}"
            )
        if not self.head_dim and self.dim % self.num_heads or self.size_of_head % 2:
            raise ValueError(f"dim {self.dim} must be num_heads {self.num_heads} times an even number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.rope_theta > 0 or not self.norm_eps >= 0:
            raise ValueError(f"rope_theta {self.rope_theta} must be more than 0, norm_eps {self.norm_eps} at least 0")
        if self.sliding_window < 0:
            raise ValueError(f"sliding_window {self.sliding_window} must not be negative (0: everything before)")

    @cached_property
    def size_of_head(self) -> int:
        return self.head_dim or self.dim // self.num_heads


@dataclass(frozen=True)
class DepthConfig(TransformerConfig):
    """The depth decoder: a transformer over the codebooks of one step, and how it is conditioned on the backbone.

    Moshi is conditioning "add", first_codebook "depth", weight_sets one for each codebook, no RoPE, no final norm.
    CSM is conditioning "prefix", embeddings "shared". The default is the cheapest without groups: no position for the
    context alone, shared weights.
    """

    dim: int = 192  # width of the residual stream
    num_layers: int = 3  # blocks of attention and feed-forward
    ff_dim: int = 512  # width of the feed-forward part, between gate and down
    # "add": the projected context is added at every position; "prefix": it is the first position of its own
    conditioning: str = "add"
    # who predicts codebook 0: the "backbone" (CSM) or the "depth" decoder, which then knows the step's text (Moshi)
    first_codebook: str = "backbone"
    # embeddings of the codes that it reads: "own", of its width; "wide", its own, of the backbone's width and projected
    # like the context; "shared", the backbone's, projected like the context
    embeddings: str = "own"
    sees_text: bool = False  # the step's text token is added at the first position (Moshi)
    group_size: int = 1  # codebooks that a position predicts, independently given all before them; codebook 0 is alone
    # which set of weights each position uses, such as (0, 1, 2, 3, 3, 3, 3, 3); empty: one set for all positions
    weight_sets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight_sets", tuple(self.weight_sets))
        for name, legal in (
            ("conditioning", ("add", "prefix")),
            ("first_codebook", ("backbone", "depth")),
            ("embeddings", ("own", "wide", "shared")),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(f"depth.{name} '{getattr(self, name)}' is unknown; choose one of {', '.join(legal)}")
        if self.group_size < 1:
            raise ValueError(f"depth.group_size is {self.group_size}; it must be at least 1")
        if self.weight_sets and self.qkv_bias:
            raise ValueError("depth.qkv_bias and depth.weight_sets exclude each other: sets of weights have no biases")
        if self.weight_sets and (min(self.weight_sets) < 0 or len(set(self.weight_sets)) <= max(self.weight_sets)):
            raise ValueError(f"depth.weight_sets {self.weight_sets} must number its sets 0, 1, 2, ... without a gap")

    def num_positions(self, num_codebooks: int) -> int:
        """Positions of the depth decoder in one step."""
        codeless = self.conditioning == "prefix" or self.first_codebook == "depth"
        return codeless + self.num_groups(num_codebooks)

    def num_groups(self, num_codebooks: int) -> int:
        """Groups of the codebooks after codebook 0."""
        return -(-(num_codebooks - 1) // self.group_size)


@dataclass(frozen=True)
class TextConfig:
    """A text token beside the codes of each step: before the audio (CSM), after it (transcription), or aligned (Moshi).

    A "mixed" or "timed" model knows speech from text, transcription and audio alone, by tags (data/forms.py). In a
    step, text comes before codes.
    """

    vocab_size: int = 0  # 0: no text
    predicted: bool = True  # False: text is only ever given (CSM)
    tied: bool = False  # the head is the embedding table
    layout: TextLayout = "first"  # the layout that the model was trained on
    tokenizer: str = ""  # sha256 of tokenizer.model
    # seconds between a token and its sound ("timed"): it is known before it is to be said, and told once it was heard
    lead_s: float = 0.16
    lag_s: float = 0.4
    # tokens that a text to be said runs ahead of its sound, all of which a step is told ("timed")
    lookahead: int = 0
    numbers: str = ""  # language in which numbers become words before they become tokens; "": digits stay digits
    phonemes: str = ""  # accent in which a text to be said becomes phonemes; "": it is told as it is written

    def __post_init__(self) -> None:
        if not 0 <= self.vocab_size <= MAX_VOCABULARY:
            raise ValueError(f"text.vocab_size {self.vocab_size} must be 0 (no text) to {MAX_VOCABULARY}")
        if self.layout not in TEXT_LAYOUTS:
            raise ValueError(f"text.layout '{self.layout}' is unknown; choose one of {', '.join(TEXT_LAYOUTS)}")
        for name in ("lead_s", "lag_s"):
            if not 0 <= getattr(self, name) <= MAX_LEAD_S:
                raise ValueError(f"text.{name} is {getattr(self, name)}; it must be 0 to {MAX_LEAD_S:g} seconds")
        if self.phonemes and self.layout not in SAYS:
            raise ValueError(f"text.phonemes: are for texts to be said, not for the layout '{self.layout}'")
        least, most = (1, MAX_LOOKAHEAD) if self.layout == "timed" else (0, 0)
        if not least <= self.lookahead <= most:
            raise ValueError(
                f"text.lookahead is {self.lookahead}; it must be 1 to {MAX_LOOKAHEAD} in the layout 'timed' (a model "
                "with 0 was told its texts in another way, by an earlier version: train it again), and 0 in all others"
            )

    @property
    def is_tagged(self) -> bool:
        """Whether tags say what a text is there for."""
        return self.layout in TAGGED


BACKBONE = TransformerConfig()
DEPTH = DepthConfig()
