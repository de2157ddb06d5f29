"""SpeechLM: a temporal backbone over frames, and a depth decoder or heads over the codebooks of one frame.

    frame = embeddings(codes of the step before).sum         # [B, K, S] -> [B, S, D]
    context = backbone(frame)                                # [B, S, D]
    text       <- text_head(context)                         # where there is a text stream
    codebook 0 <- head_0(context)                            # V codes and EOS
    codebook k <- head_k(depth_decoder(project(context) + embedding(codebook k - 1), ...))

This is pattern "depth" (RQ-Transformer) with its default options. In "delay" all codebooks of a step have heads on the
context; in "flatten" every code is a position of the backbone (flatten.py). How frames become steps is layout.py, the
depth decoder depth.py, walking step by step walk.py. B batch, K codebooks (U of another speaker), T frames, S steps,
D width, V codebook size, C classes: V, and EOS where codebook 0 has one. Others say depformer or fast transformer for
the depth decoder.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils.generic import ModelOutput

from .check_inputs import check_inputs
from .delay_pattern import ABSENT
from .depth import DepthDecoder, DepthRows, depth_loss
from .depth_logits import depth_logits
from .flatten import Contexts, SlotEmbedding, embed, slot_contexts
from .layout import Steps, arrange, given_first, num_scored, scored_part, to_frames
from .linear import GroupedLinear
from .losses import Weights, cross_entropy, text_cross_entropy
from .pieces import Scored, is_long, score_in_pieces
from .random_bits import FRAMES, HEARD, TOLD, chosen, fold
from .recent_tokens import is_heard_beside, only_timed
from .speech_lm_config import SpeechLMConfig
from .strict_model import StrictModel
from .transformer import Block, KVCache, Transformer


@dataclass
class SpeechLMOutput(ModelOutput):
    """What `SpeechLM.forward` gives."""

    loss: Tensor | None = None  # mean nats per code, EOS and text token, weighted as asked
    nll: Tensor | None = None  # [B, K, T] nats, 0 where the code is absent; None with depth_fraction < 1
    eos_nll: Tensor | None = None  # [B] nats of the end(s), 0 where none is expected; of packed rows [B, documents]
    text_nll: Tensor | None = None  # [B, T] nats, 0 where there is no text or it is not predicted
    logits: Tensor | None = None  # [B, K, T, C], EOS last, -inf for codebooks that have none; where asked for
    text_logits: Tensor | None = None  # [B, T, text vocabulary]; where asked for


class SpeechLM(StrictModel):
    """The model alone; `load` gives one with its codec. `AutoModel` knows it once this class was imported.

    `from_pretrained` keeps the type of the file, bfloat16 for the embedded model (say dtype=torch.float32 for the
    numbers that `load` gives), and checks no checksums: `load` does.
    """

    config_class = SpeechLMConfig
    config: SpeechLMConfig
    base_model_prefix = "speech_lm"
    # the parts that some patterns and options have and others do not
    text_embedding: nn.Embedding
    text_recent_embedding: nn.Embedding
    text_head: nn.Linear
    head_0: nn.Linear
    heads: nn.Parameter
    depth_decoder: DepthDecoder
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: SpeechLMConfig):
        super().__init__(config)
        width, text = config.backbone.dim, config.text
        self.pattern = config.pattern
        self.num_codebooks = config.num_codebooks
        self.codebook_size = config.codebook_size
        self.text_size = text.vocab_size
        self.bos = self.eos = config.codebook_size  # one past the codes: a row of the embeddings, a class of head 0
        self.num_classes = config.codebook_size + (config.end == "eos")  # of codebook 0
        rows = config.codebook_size + 1
        # one table: codebook k has rows k * (V + 1) ...; the last row stands for "absent" and is never read
        self.frame_embedding = nn.Embedding((config.num_codebooks + config.user_codebooks) * rows + 1, width)
        self.backbone = Transformer(config.backbone, config)
        if text.vocab_size:
            self.text_embedding = nn.Embedding(text.vocab_size + 1, width)  # the last row is BOS
            if config.num_recent_tokens:  # the i-th of them, from the oldest on, has rows i * vocab_size and on
                self.text_recent_embedding = nn.Embedding(config.num_recent_tokens * text.vocab_size, width)
            if text.predicted and not text.tied:
                self.text_head = nn.Linear(width, text.vocab_size, bias=False)
        if config.pattern == "depth":
            self.depth_decoder = DepthDecoder(config)
        else:
            self.heads = nn.Parameter(torch.empty(config.num_codebooks - 1, width, config.codebook_size))
        if not self.depth_is_first:
            self.head_0 = nn.Linear(width, self.num_classes, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | GroupedLinear):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, DepthDecoder) or (isinstance(module, SpeechLM) and self.pattern != "depth"):
            nn.init.normal_(module.heads, std=0.02)
        elif isinstance(module, Transformer):
            for block in module.blocks:
                nn.init.normal_(block.attention.output.weight, std=module.output_std())  # pyright: ignore
                nn.init.normal_(block.down.weight, std=module.output_std())  # pyright: ignore

    def get_input_embeddings(self) -> nn.Embedding:
        """The codes' table: codebook k has rows k * (V + 1) and on."""
        return self.frame_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding) and value.weight.shape == self.frame_embedding.weight.shape
        self.frame_embedding = value

    def embed_frames(self, steps: Tensor, text: Tensor | None = None, recent: Tensor | None = None) -> Tensor:
        """Steps [B, K + U, S] and text [B, S], BOS and ABSENT allowed -> [B, S, D], the sum over codebooks and text.

        recent: [B, A, S] the tokens that were told last, for a model with a lookahead (recent_tokens.py).
        """
        batch, num_streams, num_steps = steps.shape
        absent = self.frame_embedding.num_embeddings - 1
        offsets = torch.arange(num_streams, device=steps.device)[:, None] * (self.codebook_size + 1)
        index = torch.where(steps == ABSENT, absent, steps + offsets).transpose(1, 2).reshape(-1, num_streams)
        total = F.embedding_bag(index, self.frame_embedding.weight, mode="sum", padding_idx=absent)
        total = total.view(batch, num_steps, -1)
        total = total if text is None else total + self.embed_text(text)
        if recent is None:
            return total
        offsets = torch.arange(recent.shape[1], device=steps.device)[:, None] * self.text_size
        index = torch.where(recent == ABSENT, ABSENT, recent + offsets)
        return total + embed(index, self.text_recent_embedding).sum(dim=1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Text tokens [...], BOS and ABSENT allowed -> [..., D]."""
        return embed(text, self.text_embedding)

    @property
    def slot_embedding(self) -> SlotEmbedding:
        """For "flatten": the same tables, a token at a time."""
        text = self.text_embedding if self.text_size else None
        return SlotEmbedding(self.frame_embedding, text, self.num_codebooks, self.codebook_size)

    def forward(
        self,
        codes: Tensor,
        ends: Tensor | None = None,
        text: Tensor | None = None,
        user: Tensor | None = None,
        documents: Tensor | None = None,
        given: Tensor | None = None,
        weights: Weights = Weights(),
        depth_fraction: float = 1.0,
        depth_chunk: int = 0,
        input_dropout: float = 0.0,
        frame_dropout: float = 0.0,
        row_keys: Tensor | None = None,
        return_logits: bool = False,
        contexts: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SpeechLMOutput | tuple:
        """Score codes [B, K, T] (ABSENT pads the end of shorter rows) given everything before each code.

        Every code that is present is scored. In the first step of a model without BOS all have equal probabilities.

        ends: [B] bool, rows after whose last frame EOS is expected (default: none, EOS is not scored); or [B, T], the
        frames that are last. text: [B, T], ABSENT where there is none. user: [B, U, T], heard and never scored.
        documents: [B, T] numbers that rise along a row: several utterances packed into it, none sees another.
        given: [B, T] bool, columns that are heard and not scored (default: none); an end after one is.

        For training only: weights; depth_fraction, share of the frames, drawn anew at each call, on which the depth
        decoder is trained (its sum is scaled up, so the loss and its gradient keep their expectation); depth_chunk,
        steps whose activations are held at a time (0: by the device); input_dropout, share of the codes, drawn anew at
        each call, that are ABSENT as input, though scored as targets (the nll is then not the model's); frame_dropout,
        the same of whole frames, for the backbone alone; row_keys, [B] int64, from which all of this and dropout is
        drawn (default: drawn by torch's own generator).

        contexts: [B, S, D] the backbone's output at the first S steps, from a walk that has taken them; codes that lag
        beyond these steps are then not scored (0).

        return_dict: False gives a tuple of what there is, in the order of SpeechLMOutput's fields.
        Raises ValueError for input that is not this model's.
        """
        check_inputs(self.config, codes, text, user)
        if self.text_size and text is None:
            text = torch.full_like(codes[:, 0], ABSENT)
        if self.config.user_codebooks and user is None:
            user = torch.full_like(codes[:, : self.config.user_codebooks], ABSENT)
        everything = arrange(self.config, codes, ends, text, user, documents)
        predicted, learned = text, codes
        if text is not None and self.config.text.layout == "timed":
            predicted = only_timed(text) if weights.time_only else text
            learned = codes if weights.written_codes else codes.masked_fill(is_heard_beside(text)[:, None], ABSENT)
        is_all = given is None and predicted is text and learned is codes
        learned, text = scored_part(learned, predicted, given)
        codes, _ = scored_part(codes, None, given)
        steps = everything if is_all else arrange(self.config, learned, ends, text, user, documents)
        if row_keys is None and (depth_fraction < 1 or max(input_dropout, frame_dropout) > 0 or self.has_dropout):
            row_keys = torch.randint(1 << 62, (len(codes),), device=codes.device)
        steps, heard = replace(steps, keys=row_keys), replace(everything, keys=row_keys)
        if input_dropout > 0:
            heard = drop_codes(heard, input_dropout, self.bos)
        if frame_dropout > 0:
            if self.pattern == "flatten":
                raise ValueError("frame_dropout: the backbone of pattern flatten hears the codes of a frame one by one")
            heard = drop_frames(heard, frame_dropout, self.bos)
        options = weights, depth_fraction, depth_chunk
        parts = None
        if contexts is not None:
            scored = self.score_first(contexts, steps, *options)
        elif is_long(self.config.backbone, steps) and not return_logits:
            scored = score_in_pieces(self, heard, steps, *options)
        else:
            parts = self.contexts(heard)
            scored = self.score(parts, steps, heard, *options)
        # a model without BOS has nothing before its first step: equal probabilities there
        delays, place, dtype = self.config.delays, steps.place, scored.total.dtype
        first_nats = given_first(place, delays, learned != ABSENT).to(dtype) * math.log(self.codebook_size)
        total = scored.total + (first_nats.sum(dim=(0, 2)) * weights.of(self.num_codebooks, first_nats)).sum()
        # from steps back to frames; EOS is reported apart
        output = SpeechLMOutput()
        if scored.nll is not None:
            is_eos = steps.targets[:, 0] == self.eos
            output.eos_nll = for_each_document(scored.nll[:, 0] * is_eos, steps.documents)
            nll = torch.cat([(scored.nll[:, 0] * ~is_eos)[:, None], scored.nll[:, 1:]], dim=1)
            output.nll = to_frames(nll, place, delays) + first_nats
        if scored.text_nll is not None and text is not None:
            first_text = given_first(place, [0], (text != ABSENT)[:, None]).to(dtype) * math.log(self.text_size)
            output.text_nll = (to_frames(scored.text_nll[:, None], place, [0]) + first_text)[:, 0]
            total = total + weights.text * first_text.sum()
        output.loss = total / num_scored(self.config, codes, ends, text).clamp_min(1)
        if parts is not None and return_logits:
            logits, text_logits = self.all_logits(parts, everything)
            output.logits = to_frames(logits, place, delays)  # 0, so equal, for what comes first
            if not self.config.bos:
                output.logits[..., self.codebook_size :].masked_fill_(first_nats[..., None] > 0, float("-inf"))
            if text_logits is not None:
                output.text_logits = to_frames(text_logits[:, None], place, [0])[:, 0]
        if return_dict is False:
            values = (getattr(output, field.name) for field in fields(output))
            return tuple(value for value in values if value is not None)
        return output

    def contexts(self, steps: Steps, cache: KVCache | None = None, seen: int = 0) -> "Contexts":
        """Steps through the backbone, but for the first `seen`, which are in the cache."""
        if self.pattern == "flatten":
            x = slot_contexts(self.backbone, self.slot_embedding, steps, cache, seen)
            return Contexts.of_slots(x, bool(self.text_size))
        steps = steps.part(seen)
        x = self.embed_frames(steps.inputs, steps.text_inputs, steps.recent_inputs)
        x = self.backbone(x, cache, steps.documents, steps.keys)
        return Contexts(x, x, x[:, :, None])

    def score(
        self, contexts: "Contexts", steps: Steps, known: Steps, weights: Weights, fraction: float, chunk: int
    ) -> Scored:
        """The weighted sum of all nats, and the nats of each step. known: what the depth decoder is told."""
        targets = steps.targets
        codebook_weights = weights.of(self.num_codebooks, contexts.first)
        total = codebook_weights.new_zeros(())
        text_nll = None
        if self.predicts_text and steps.text_targets is not None:
            logits = self.text_logits(contexts.text)
            cost = text_cross_entropy if weights.time_only else cross_entropy
            text_nll, penalty = cost(logits, steps.text_targets, weights.z_loss)
            total = total + weights.text * text_nll.sum() + penalty.sum()
        parts = []
        if not self.depth_is_first:
            nll, penalty = cross_entropy(self.head_0(contexts.first), targets[:, 0], weights.z_loss)
            total = total + codebook_weights[0] * nll.sum() + penalty.sum()
            parts.append(nll[:, None])
        if self.pattern == "depth":
            rows = DepthRows.of(self.depth_decoder, steps, known)
            modules = self.depth_decoder, self.frame_embedding
            depth_total, depth_nll = depth_loss(
                *modules, contexts.first, rows, codebook_weights, weights.z_loss, fraction, chunk, steps.keys
            )
            total = total + depth_total
            parts = None if depth_nll is None else [*parts, depth_nll]
        elif self.num_codebooks > 1:
            nll, penalty = cross_entropy(self.head_logits(contexts.others), targets[:, 1:], weights.z_loss)
            total = total + (nll.sum(dim=(0, 2)) * codebook_weights[1:]).sum() + penalty.sum()
            parts.append(nll)
        return Scored(total, None if parts is None else torch.cat(parts, dim=1), text_nll)

    def score_first(self, contexts: Tensor, steps: Steps, *options: Any) -> Scored:
        """`score` of the steps that contexts [B, S, D] are of; 0 for those after them."""
        count = contexts.shape[1]
        first, after = steps.part(0, count), (0, steps.targets.shape[2] - count)
        scored = self.score(Contexts(contexts, contexts, contexts[:, :, None]), first, first, *options)
        nll, text_nll = (None if x is None else F.pad(x, after) for x in (scored.nll, scored.text_nll))
        return Scored(scored.total, nll, text_nll)

    @property
    def predicts_text(self) -> bool:
        return bool(self.text_size) and self.config.text.predicted

    @property
    def has_dropout(self) -> bool:
        return self.training and any(block.dropout for block in self.modules() if isinstance(block, Block))

    @property
    def depth_is_first(self) -> bool:
        """Whether the depth decoder predicts codebook 0, too."""
        return self.pattern == "depth" and self.config.depth.first_codebook == "depth"

    def text_logits(self, context: Tensor) -> Tensor:
        """[..., D] -> [..., text vocabulary]."""
        if self.config.text.tied:
            return F.linear(context, self.text_embedding.weight[:-1])
        return self.text_head(context)

    def head_logits(self, contexts: Tensor) -> Tensor:
        """Contexts [B, S, 1 or K - 1, D] -> codebooks 1..K-1 of every step by heads on the backbone [B, K-1, S, V]."""
        return torch.einsum("bskd,kdv->bksv", contexts, self.heads.to(contexts.dtype))

    def all_logits(self, contexts: Contexts, steps: Steps) -> tuple[Tensor, Tensor | None]:
        """-> [B, K, S, C] and, with a text stream that is predicted, [B, S, text vocabulary]."""
        parts = [] if self.depth_is_first else [self.head_0(contexts.first)[:, None]]
        if self.pattern == "depth":
            rows = DepthRows.of(self.depth_decoder, steps, steps)
            parts.append(depth_logits(self.depth_decoder, self.frame_embedding, contexts.first, rows))
        elif self.num_codebooks > 1:
            parts.append(self.head_logits(contexts.others))
        padded = [F.pad(part, (0, self.num_classes - part.shape[-1]), value=float("-inf")) for part in parts]
        text = self.text_logits(contexts.text) if self.predicts_text else None
        return torch.cat(padded, dim=1), text


def for_each_document(values: Tensor, documents: Tensor | None) -> Tensor:
    """The sum of values [B, S] -> [B], or [B, documents] where documents [B, S] are numbered."""
    if documents is None:
        return values.sum(dim=1)
    sums = values.new_zeros(len(values), int(documents.max()) + 1)
    return sums.scatter_add(1, documents, values)


def drop_codes(steps: Steps, share: float, bos: int) -> Steps:
    """A random `share` of the codes that the model hears becomes ABSENT, by the rows' keys; BOS stays."""

    def dropped(codes: Tensor, purpose: int) -> Tensor:
        assert steps.keys is not None
        return chosen(fold(steps.keys, purpose), codes.shape[2], codes.shape[1], share).transpose(1, 2)

    inputs = steps.inputs.masked_fill(dropped(steps.inputs, HEARD) & (steps.inputs != bos), ABSENT)
    return replace(steps, inputs=inputs, targets=steps.targets.masked_fill(dropped(steps.targets, TOLD), ABSENT))


def drop_frames(steps: Steps, share: float, bos: int) -> Steps:
    """All codes that go in at a random `share` of the steps become ABSENT, by the rows' keys; BOS and text stay."""
    assert steps.keys is not None
    gone = chosen(fold(steps.keys, FRAMES), steps.inputs.shape[2], 1, share).transpose(1, 2)
    return replace(steps, inputs=steps.inputs.masked_fill(gone & (steps.inputs != bos), ABSENT))


AutoConfig.register("codeclm", SpeechLMConfig)
AutoModel.register(SpeechLMConfig, SpeechLM)
