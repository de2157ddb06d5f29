"""An adapter to copy: a Llama of transformers' over one stream of tokens, all codes of a frame after each other.

Llama-Mimi (arXiv 2509.14882) is such a model: `<|begin_of_text|><audio><12_0><97_1> ... </audio>` with the codebook's
number after the code. What its tokenizer calls them is all that is needed (F and M are its folder and Mimi's):

    names = AutoTokenizer.from_pretrained(F).convert_tokens_to_ids
    table = torch.tensor([[names(f"<{code}_{k}>") for code in range(2048)] for k in range(4)])
    prefix = names(["<|begin_of_text|>", "<audio>"])
    FlattenedLlama(LlamaForCausalLM.from_pretrained(F), load_codec(M, 4), table, prefix)

K codebooks of V entries, T frames; position P + t K + k has code (k, t) after a prefix of P tokens.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ...model.codec_reference import CodecReference
from ...model.codecs import Codec, load_codec
from ..windows import windows


class FlattenedLlama:
    """The three methods of `Adapter`."""

    def __init__(self, model: LlamaForCausalLM, codec: Codec, table: Tensor, prefix: Sequence[int]):
        """table [K, V]: the token of each code. prefix: tokens before the first one."""
        self.model, self.coder, self.table, self.prefix = model.eval(), codec, table, list(prefix)
        self.name, self.codec = "flattened Llama", CodecReference.of(codec)
        # a longer utterance is scored in windows, each of which is given the last half of the one before
        self.most_frames = (model.config.max_position_embeddings - len(self.prefix)) // codec.num_codebooks

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.model.config.to_json_string()} {self.prefix} {self.table.tolist()}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().float().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, audio: np.ndarray) -> np.ndarray:
        return self.coder.encode(torch.from_numpy(audio)[None, None])[0].numpy()

    def nats(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._utterance(torch.from_numpy(each)) for each in codes]

    def _utterance(self, codes: Tensor) -> np.ndarray:
        parts = [
            self._window(codes[:, window.start : window.stop])[:, window.first - window.start :]
            for window in windows(codes.shape[1], self.most_frames)
        ]
        return torch.cat(parts, dim=1).numpy()

    @torch.inference_mode()
    def _window(self, codes: Tensor) -> Tensor:
        """codes [K, T] -> nats [K, T]. Whose turn it is, is known: a code has a share among those of its codebook."""
        tokens = self.table.gather(1, codes).T.flatten()  # [T K]
        row = torch.cat([torch.tensor(self.prefix), tokens])[None, :-1]
        logits = self.model(row, use_cache=False).logits[0, len(self.prefix) - 1 :]  # [T K, tokens]
        turns = self.table.repeat(codes.shape[1], 1)  # [T K, V]
        shares = logits.float().gather(1, turns).log_softmax(dim=1)
        return -shares.gather(1, codes.T.flatten()[:, None]).view(-1, len(codes)).T


def random_llama() -> FlattenedLlama:
    """A small one with random weights on the embedded codec, seeded: it shows how, and that it knows nothing."""
    codec = load_codec()
    codebooks, size = codec.num_codebooks, codec.codebook_size
    table = 1 + torch.arange(codebooks * size).view(codebooks, size)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1 + codebooks * size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=2048, bos_token_id=0,
    )  # fmt: skip
    return FlattenedLlama(LlamaForCausalLM(config), codec, table, [0])
