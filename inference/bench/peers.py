"""Other generation at a shape of ours, with random weights: a hand-written loop, and libraries as users call them.

A peer whose package is not installed is left out. transformers' draw a frame more than is asked for, whose begin marks
the end of the last one; the codecs that their models hold are as small as can be, and not used.
B batch, K codebooks, T prompt frames.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ...model.shapes import TransformerConfig
from ...model.speech_lm_config import SpeechLMConfig
from .minimal import TEMPERATURE, TOP_K, HandWrittenLoop

TEXT_SIZE = 1024  # tokens of the text that they cannot do without
RING = 128  # positions; its default of 3000 makes it slower
# a codec that takes no memory and no time: it makes no sound here
TINY_MIMI = dict(
    hidden_size=16, num_filters=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    intermediate_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8, upsample_groups=16,
)  # fmt: skip


class Csm:
    """transformers' CSM: a `generate` of the depth decoder inside of each step of the backbone's."""

    def __init__(self, config: SpeechLMConfig, prompt: Tensor):
        from transformers import CsmConfig, CsmForConditionalGeneration

        self.name, self.prompt = "transformers CSM", prompt.transpose(1, 2).contiguous()
        shared = dict(num_codebooks=config.num_codebooks, vocab_size=config.codebook_size, codebook_pad_token_id=0)
        special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=None, codebook_eos_token_id=0)
        special |= dict(audio_token_id=2, audio_eos_token_id=3)
        theirs = CsmConfig(
            **shared, **special, **transformer_values(config.backbone), text_vocab_size=TEXT_SIZE,
            max_position_embeddings=2048, codec_config=dict(model_type="mimi", **TINY_MIMI),
            depth_decoder_config=shared | transformer_values(config.depth)
            | dict(backbone_hidden_size=config.backbone.dim, max_position_embeddings=config.num_codebooks + 1),
        )  # fmt: skip
        self.model = random_weights(CsmForConditionalGeneration, theirs, prompt.device)
        sampling = dict(do_sample=True, top_k=TOP_K, temperature=TEMPERATURE)
        self.model.depth_decoder.generation_config.update(**sampling)
        self.sampling = sampling | (dict(cache_implementation="static") if prompt.is_cuda else {})

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        with marked(self.model.backbone_model, mark):
            self.model.generate(self.prompt, max_new_tokens=num_frames + 1, **self.sampling)


class Moshi:
    """transformers' Moshi, which hears another speaker (here silent codes) and writes text beside its codes."""

    def __init__(self, config: SpeechLMConfig, prompt: Tensor):
        from transformers import MoshiConfig, MoshiForConditionalGeneration

        self.name, self.prompt = "transformers Moshi", prompt.contiguous()
        K, size = config.num_codebooks, config.codebook_size
        theirs = MoshiConfig(
            vocab_size=TEXT_SIZE, audio_vocab_size=size, num_codebooks=K, **moshi_values(config.backbone),
            audio_encoder_config=dict(model_type="mimi", codebook_size=size, num_quantizers=K, **TINY_MIMI),
            depth_decoder_config=moshi_values(config.depth) | dict(max_position_embeddings=K + 1, sliding_window=K),
        )  # fmt: skip
        self.model = random_weights(MoshiForConditionalGeneration, theirs, prompt.device)
        self.text = torch.randint(0, TEXT_SIZE, (len(prompt), prompt.shape[2]), device=prompt.device)

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        with marked(self.model.decoder, mark):
            self.model.generate(
                self.text, user_audio_codes=self.prompt, moshi_audio_codes=self.prompt, max_new_tokens=num_frames + 1,
                concat_unconditional_inputs=False, return_audio_waveforms=False, do_sample=True, top_k=TOP_K,
            )  # fmt: skip


class KyutaiMoshi:
    """Kyutai's own package. It takes a prompt frame by frame, and reads a ring of RING positions whole every time."""

    def __init__(self, config: SpeechLMConfig, prompt: Tensor):
        lm = importlib.import_module("moshi.models.lm")  # not in our environment
        self.name, self.prompt = "moshi package", prompt
        K, (backbone, depth) = config.num_codebooks, (config.backbone, config.depth)
        torch.manual_seed(0)
        # its feed-forward parts are 2/3 as wide as it is told; one set of weights for all positions, as ours
        model = lm.LMModel(
            delays=[0] * (K + 1), n_q=K, dep_q=K, card=config.codebook_size, text_card=TEXT_SIZE,
            dim=backbone.dim, num_heads=backbone.num_heads, num_layers=backbone.num_layers,
            hidden_scale=1.5 * backbone.ff_dim / backbone.dim, norm="rms_norm_f32", gating="silu",
            positional_embedding="rope", max_period=10000, context=RING,
            depformer_dim=depth.dim, depformer_dim_feedforward=3 * depth.ff_dim // 2,
            depformer_num_heads=depth.num_heads, depformer_num_layers=depth.num_layers, depformer_gating="silu",
            depformer_pos_emb="none", depformer_multi_linear=True, depformer_weights_per_step=True,
            depformer_weights_per_step_schedule=[0] * K,
        )  # fmt: skip
        self.generator = lm.LMGen(model.eval().to(prompt.device), top_k=TOP_K)

    def run(self, num_frames: int, mark: Callable[[], None]) -> None:
        nobody = self.prompt.new_zeros(len(self.prompt), 0, 1)  # it hears no other speaker
        with torch.no_grad(), self.generator.streaming(len(self.prompt)):
            for frame in self.prompt.split(1, dim=2):
                self.generator.step(nobody, depformer_replace_tokens=frame)
            for _ in range(num_frames):
                self.generator.step(nobody)
                mark()


Peer = Callable[[SpeechLMConfig, Tensor], Any]
PEERS: dict[str, tuple[str, Peer]] = {  # name -> (package, how it is made)
    "hand-written loop": ("torch", HandWrittenLoop),
    "transformers CSM": ("transformers", Csm),
    "transformers Moshi": ("transformers", Moshi),
    "moshi package": ("moshi", KyutaiMoshi),
}


def missing_peers() -> dict[str, str]:
    """Peers that are left out -> the package that each needs."""
    return {name: package for name, (package, _) in PEERS.items() if find_spec(package) is None}


def make_peer(name: str, config: SpeechLMConfig, prompt: Tensor) -> Any:
    """prompt: [B, K, T]."""
    return PEERS[name][1](config, prompt)


def transformer_values(config: TransformerConfig) -> dict[str, Any]:
    """As transformers' Llama and those after it call them."""
    return dict(
        hidden_size=config.dim, intermediate_size=config.ff_dim, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, head_dim=config.size_of_head,
    )  # fmt: skip


def moshi_values(config: TransformerConfig) -> dict[str, Any]:
    """As Moshi calls them; its ffn_dim is the width of gate and up together."""
    values = transformer_values(config)
    return values | dict(ffn_dim=2 * values.pop("intermediate_size"))


def random_weights(kind: Any, config: Any, device: torch.device) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()  # they warn of settings that a model without speech does not have
    torch.manual_seed(0)
    return kind(config).eval().to(device)


@contextmanager
def marked(backbone: nn.Module, mark: Callable[[], None]) -> Iterator[None]:
    """Within: when the backbone is called for another frame, the one before it is complete."""
    calls = 0

    def called(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            mark()

    hook = backbone.register_forward_pre_hook(called)
    try:
        yield
    finally:
        hook.remove()
