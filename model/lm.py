"""SpeechLM: a temporal backbone over frames and a depth decoder over the codebooks of one frame (RQ-Transformer).

    frame = embeddings(codes of the step before).sum         # [B, K, S] -> [B, S, D]
    context = backbone(frame)                                # [B, S, D]
    codebook 0 <- head_0(context)                            # V codes and EOS
    codebook k <- head_k(depth_decoder(project(context) + embedding(codebook k - 1), ...))

B batch, K codebooks, T frames, S steps (frames plus the largest delay, plus one for EOS), D width, V codebook size,
N frames given to the depth decoder. Others say depformer or fast transformer for the depth decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from .delay_pattern import ABSENT, delay, undelay
from .hf_config import SpeechLMConfig
from .transformer import KVCache, Transformer


@dataclass
class SpeechLMOutput(ModelOutput):
    """What `SpeechLM.forward` gives."""

    loss: Tensor | None = None  # mean nats per code (and EOS), codebooks weighted as asked
    nll: Tensor | None = None  # [B, K, T] nats, 0 where the code is absent; None with depth_fraction < 1
    eos_nll: Tensor | None = None  # [B] nats of the end, 0 where `ends` is false


class SpeechLM(PreTrainedModel):
    config_class = SpeechLMConfig
    config: SpeechLMConfig
    base_model_prefix = "speech_lm"

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        backbone, depth = config.backbone_config, config.depth_config
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.bos = self.eos = config.codebook_size  # one past the codes: a row of the embeddings, a class of head 0
        rows = config.codebook_size + 1
        # one table: codebook k has rows k * (V + 1) ...; the last row stands for "absent" and is never read
        self.frame_embedding = nn.Embedding(config.num_codebooks * rows + 1, backbone.dim)
        self.backbone = Transformer(backbone)
        self.head_0 = nn.Linear(backbone.dim, config.codebook_size + 1, bias=False)
        self.project = nn.Linear(backbone.dim, depth.dim, bias=False)
        self.depth_embedding = nn.Embedding((config.num_codebooks - 1) * rows + 1, depth.dim)
        self.depth_decoder = Transformer(depth)
        self.depth_heads = nn.Parameter(torch.empty(config.num_codebooks - 1, depth.dim, config.codebook_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, SpeechLM):
            nn.init.normal_(module.depth_heads, std=0.02)
        elif isinstance(module, Transformer):
            for block in module.blocks:
                nn.init.normal_(block.attention.output.weight, std=module.output_std())  # pyright: ignore
                nn.init.normal_(block.down.weight, std=module.output_std())  # pyright: ignore

    # --- codes in ---

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless codes are integers [B, K, T >= 1] in -1..V-1."""
        if codes.ndim != 3 or codes.is_floating_point():
            raise ValueError(f"codes must be integers [B, K, T], not {codes.dtype} {list(codes.shape)}")
        if codes.shape[1] != self.num_codebooks:
            raise ValueError(f"codes have {codes.shape[1]} codebooks; this model has {self.num_codebooks}")
        if codes.shape[0] == 0 or codes.shape[2] == 0:
            raise ValueError("codes hold no frame: there is nothing to score")
        low, high = int(codes.min()), int(codes.max())
        if low < ABSENT or high >= self.codebook_size:
            raise ValueError(f"codes span {low}..{high}; this model has 0..{self.codebook_size - 1} (-1: absent)")

    def embed_frames(self, steps: Tensor) -> Tensor:
        """Delayed codes [B, K, S], BOS and ABSENT allowed -> [B, S, D], the sum over codebooks."""
        batch, num_codebooks, num_steps = steps.shape
        absent = self.frame_embedding.num_embeddings - 1
        offsets = torch.arange(num_codebooks, device=steps.device)[:, None] * (self.codebook_size + 1)
        index = torch.where(steps == ABSENT, absent, steps + offsets).transpose(1, 2).reshape(-1, num_codebooks)
        total = F.embedding_bag(index, self.frame_embedding.weight, mode="sum", padding_idx=absent)
        return total.view(batch, num_steps, -1)

    def embed_depth(self, codes: Tensor, first: int = 0) -> Tensor:
        """Codes [N, J] of codebooks first..first+J-1 of a step, ABSENT allowed -> [N, J, depth width]."""
        absent = self.depth_embedding.num_embeddings - 1
        offsets = (torch.arange(codes.shape[1], device=codes.device) + first) * (self.codebook_size + 1)
        index = torch.where(codes == ABSENT, absent, codes + offsets)
        return F.embedding(index, self.depth_embedding.weight) * (codes != ABSENT)[..., None]

    def sequence(self, codes: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor]:
        """codes [B, K, T] -> (inputs, targets), each [B, K, S]: the delayed codes one step later, and in place.

        Codebook 0's target after the last frame of a row that ends is EOS; what is ABSENT is not scored.
        """
        steps = delay(codes, self.config.delays)
        if self.config.delays[0] == max(self.config.delays):
            steps = F.pad(steps, (0, 1), value=ABSENT)  # room for EOS
        inputs = torch.cat([torch.full_like(steps[:, :, :1], self.bos), steps[:, :, :-1]], dim=2)
        targets = steps.clone()
        if ends is not None:
            num_frames = (codes[:, 0] != ABSENT).sum(dim=1)
            rows = ends.nonzero().flatten()
            targets[rows, 0, self.config.delays[0] + num_frames[rows]] = self.eos
        return inputs, targets

    # --- the whole sequence at once ---

    def forward(
        self,
        codes: Tensor,
        ends: Tensor | None = None,
        depth_fraction: float = 1.0,
        codebook_weights: Tensor | None = None,
        input_dropout: float = 0.0,
    ) -> SpeechLMOutput:
        """Score codes [B, K, T] (ABSENT pads the end of shorter rows) given everything before each code.

        ends: [B] bool, rows after whose last frame EOS is expected (default: none, EOS is not scored).
        depth_fraction: share of the frames, drawn anew at each call, on which codebooks 1..K-1 are scored; their sum is
        scaled up, so the loss and its gradient keep their expectation. codebook_weights: [K], for training only.
        input_dropout: share of the codes, drawn anew at each call, that are ABSENT as input, though scored as targets;
        keeps a small corpus from being learnt by heart. For training only: the nll is then not the model's.
        Raises ValueError for codes that are not this model's.
        """
        self.check_codes(codes)
        inputs, targets = self.sequence(codes, ends)
        given = targets
        if input_dropout > 0:
            inputs = drop_codes(inputs, input_dropout, keep=self.bos)
            given = drop_codes(targets, input_dropout)
        context = self.backbone(self.embed_frames(inputs))  # [B, S, D]
        nll_0 = cross_entropy(self.head_0(context), targets[:, 0])  # [B, S]
        chosen, scale = self._depth_frames(targets, depth_fraction)
        given, scored = (x.transpose(1, 2).flatten(0, 1)[chosen] for x in (given, targets))  # [N, K]
        depth_nll = self._depth_nll(context.flatten(0, 1)[chosen], given[:, :-1], scored[:, 1:])

        weights = torch.ones(self.num_codebooks) if codebook_weights is None else codebook_weights
        weights = weights.to(nll_0)
        total = weights[0] * nll_0.sum() + scale * (depth_nll.sum(dim=0) * weights[1:]).sum()
        loss = total / (targets != ABSENT).sum().clamp_min(1)
        if depth_fraction < 1:
            return SpeechLMOutput(loss=loss)
        is_eos = targets[:, 0] == self.eos
        eos_nll = (nll_0 * is_eos).sum(dim=1)
        rest = nll_0.new_zeros(targets[:, 0].numel(), self.num_codebooks - 1)
        rest = rest.index_copy(0, chosen, depth_nll.to(rest.dtype)).view(*targets[:, 0].shape, self.num_codebooks - 1)
        nll = torch.cat([(nll_0 * ~is_eos)[:, None], rest.transpose(1, 2)], dim=1)  # [B, K, S]
        nll = nll[:, :, : codes.shape[2] + max(self.config.delays)]  # without the room for EOS
        return SpeechLMOutput(loss=loss, nll=undelay(nll, self.config.delays), eos_nll=eos_nll)

    def _depth_frames(self, targets: Tensor, fraction: float) -> tuple[Tensor, float]:
        """Indices into the flattened [B * S] steps that the depth decoder scores, and 1 / their share."""
        scored = (targets[:, 1:] != ABSENT).any(dim=1).flatten().nonzero().flatten()
        if fraction >= 1 or len(scored) == 0:
            return scored, 1.0
        count = max(1, round(fraction * len(scored)))
        return scored[torch.randperm(len(scored), device=scored.device)[:count]], len(scored) / count

    def _depth_nll(self, context: Tensor, given: Tensor, targets: Tensor) -> Tensor:
        """context [N, D], codebooks 0..K-2 given and 1..K-1 as targets, both [N, K-1] -> nats [N, K-1], 0 if absent."""
        if len(targets) == 0:  # a single codebook leaves the depth decoder nothing to do
            return context.new_zeros(0, self.num_codebooks - 1)
        given = torch.where(given == self.eos, ABSENT, given)
        x = self.project(context)[:, None] + self.embed_depth(given)  # [N, K-1, depth width]
        return cross_entropy(self.depth_logits(self.depth_decoder(x)), targets.t()).t()

    def depth_logits(self, x: Tensor, first: int = 1) -> Tensor:
        """Outputs of the depth decoder [N, J, width] for codebooks first..first+J-1 -> logits [J, N, V]."""
        return torch.bmm(x.transpose(0, 1), self.depth_heads[first - 1 : first - 1 + x.shape[1]])

    # --- one frame at a time ---

    def start_step(self, inputs: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Steps [B, K, S] (BOS first) through the backbone -> (logits of codebook 0 [B, V+1], context [B, D]) at the
        last of them; the cache grows by S."""
        context = self.backbone(self.embed_frames(inputs), cache)[:, -1]
        return self.head_0(context), context

    def depth_step(self, context: Tensor, code: Tensor, codebook: int, cache: KVCache) -> Tensor:
        """Logits [B, V] of `codebook` >= 1, given `code` [B] of the one before (ABSENT allowed).

        The depth decoder's cache starts afresh every frame.
        """
        x = self.project(context)[:, None] + self.embed_depth(code[:, None], codebook - 1)
        return self.depth_logits(self.depth_decoder(x, cache), codebook)[0]


def drop_codes(codes: Tensor, share: float, keep: int | None = None) -> Tensor:
    """A random `share` of codes becomes ABSENT, but not those that are `keep`."""
    dropped = torch.rand(codes.shape, device=codes.device) < share
    return codes.masked_fill(dropped if keep is None else dropped & (codes != keep), ABSENT)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats in float32 at least: logits [..., V], targets [...] -> [...], 0 where the target is ABSENT."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = F.cross_entropy(wide.flatten(0, -2), targets.flatten(), ignore_index=ABSENT, reduction="none")
    return flat.view(targets.shape)


AutoConfig.register("codeclm", SpeechLMConfig)
AutoModel.register(SpeechLMConfig, SpeechLM)
