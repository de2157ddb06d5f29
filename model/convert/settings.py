"""Settings of Llama-like transformers and their blocks' tensor names: transformers' words <-> ours.

Every setting that we cannot express is refused by its name.
"""

from typing import Any

from ..rope_scaling import RopeScaling
from ..shapes import TransformerConfig
from ..speech_lm_config import SpeechLMConfig
from ..strict import shown

# our name in a block -> transformers' name in a layer
LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
QK_NORM = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
QKV = ("attention.query", "attention.key", "attention.value")


def require(config: Any, name: str, **legal: Any) -> None:
    """Raise ValueError naming the first setting of `config` that is not the only value that we can express."""
    for key, value in legal.items():
        found = getattr(config, key, value)
        if found != value:
            raise ValueError(f"{name}: {key} is {shown(found)}, which cannot be expressed; only {value!r} can")


def transformer_settings(config: Any, name: str, ff_dim: int, rope: bool = True) -> dict[str, Any]:
    """The fields of TransformerConfig that CSM, Moshi and Llama share the words for."""
    require(config, name, hidden_act="silu", attention_dropout=0, attention_bias=False, mlp_bias=False)
    fields = dict(
        dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        ff_dim=ff_dim,
        norm_eps=config.rms_norm_eps,
        rope=rope,
    )
    head_dim = getattr(config, "head_dim", None)
    if head_dim and head_dim * config.num_attention_heads != config.hidden_size:
        fields["head_dim"] = head_dim
    if rope:
        fields["rope_theta"], fields["rope_scaling"] = rope_settings(config, name)
    return fields


def rope_settings(config: Any, name: str) -> tuple[float, RopeScaling]:
    """rope_parameters -> (rope_theta, scaling). Raises ValueError for any kind but "default" and "llama3"."""
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type")
    if kind not in ("default", "llama3"):
        raise ValueError(f"{name}: rope_type {shown(kind)} cannot be expressed; only 'default' and 'llama3' can")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{name}: partial_rotary_factor cannot be expressed")
    if kind == "default":
        return float(rope["rope_theta"]), RopeScaling()
    positions = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    scaling = RopeScaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], positions)
    return float(rope["rope_theta"]), scaling


def rope_parameters(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `rope_settings`."""
    scaling = config.rope_scaling
    if scaling.factor == 1.0:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }


def hf_settings(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `transformer_settings`, ff_dim and rope excepted."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.size_of_head,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def require_ours(config: SpeechLMConfig, kind: str, legal: dict[str, Any]) -> None:
    """Raise ValueError naming the first setting of ours, such as "depth.rope", that `kind` cannot express."""
    parts = {"": config, "backbone": config.backbone, "depth": config.depth, "text": config.text}
    for key, value in legal.items():
        part, _, field = key.rpartition(".")
        found = getattr(parts[part], field)
        if found != value:
            raise ValueError(f"{key} is {found!r}, which {kind} cannot express; there it is {value!r}")


def block_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Our names of the tensors in one block -> their shapes."""
    dim, head = config.dim, config.size_of_head
    kv_dim = config.num_kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (dim,),
        "attention.query.weight": (config.num_heads * head, dim),
        "attention.key.weight": (kv_dim, dim),
        "attention.value.weight": (kv_dim, dim),
        "attention.output.weight": (dim, config.num_heads * head),
        "ff_norm.weight": (dim,),
        "gate.weight": (config.ff_dim, dim),
        "up.weight": (config.ff_dim, dim),
        "down.weight": (dim, config.ff_dim),
    }
    if config.qk_norm:
        shapes |= {f"{name}.weight": (head,) for name in QK_NORM}
    if config.qkv_bias:
        shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in QKV}
    return shapes


def llama_triples(config: TransformerConfig, ours: str, theirs: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(their name, our name, shape) of every block of a Llama-like stack, and of its last norm."""
    names = LLAMA_LAYER | QK_NORM
    triples = []
    for layer in range(config.num_layers):
        for key, shape in block_shapes(config).items():
            module, _, kind = key.rpartition(".")
            triples.append((f"{theirs}.layers.{layer}.{names[module]}.{kind}", f"{ours}.blocks.{layer}.{key}", shape))
    return [*triples, (f"{theirs}.norm.weight", f"{ours}.norm.weight", (config.dim,))]


def swapped(triples: list[tuple[str, str, tuple[int, ...]]]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The same triples for the way back."""
    return [(there, here, shape) for here, there, shape in triples]
