"""An aligner (aligner.py) is taught on a token store's own codes and texts, and says when these are said.

B utterances, T frames, S = 2 T steps, L characters of a text.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.progress import progress_bar
from ..data.text_encoder import clean_text
from ..data.text_times import NONE, UNHEARD, known_times, times_file, write_times
from ..data.token_store import TokenStore
from ..model.codecs import Codec
from ..model.device import has_fast_bf16
from .aligner import BLANK, STEPS_PER_FRAME, Aligner, Alphabet, likeliest_paths, spectra
from .aligner_config import AlignerConfig

DECODED_FRAMES = 1500  # at once

HELDOUT = 100  # utterances that are not learned from, at most, and at most a tenth
SURE = 2.0  # nats a character on these: two networks that need 1.2 put 98 % of them within a frame of each other

log = logging.getLogger(__name__)


class TextAlignment:
    """The texts of a store, and the network that is taught with them."""

    def __init__(self, store: TokenStore, codec: Codec, config: AlignerConfig = AlignerConfig()):
        """Raises ValueError for another codec's store, or if no text could be said in the time of its audio."""
        store.require_codec(codec)
        self.store, self.codec, self.config = store, codec, config
        texts = {i: clean_text(store.text(i) or "") for i in range(len(store))}
        self.alphabet = Alphabet(texts.values())
        self.texts: dict[int, tuple[list[int], list[int]]] = {}  # what `Alphabet.encode` gives
        self.lengths = [len(text) for text in texts.values()]
        for i, text in texts.items():
            numbers, places = self.alphabet.encode(text)
            needed = len(numbers) + sum(a == b for a, b in zip(numbers[1:], numbers[:-1], strict=True))
            if 0 < needed <= STEPS_PER_FRAME * int(store.num_frames[i]):
                self.texts[i] = numbers, places
        if not self.texts:
            raise ValueError(f"{store.folder}: has no text that could be said in the time of its audio")
        torch.manual_seed(config.seed)
        self.network = Aligner(len(self.alphabet), config.dim, config.num_layers)
        self.bf16 = has_fast_bf16(torch.device("cpu"))

    def chosen(self) -> list[int]:
        """The utterances that are learned from."""
        known = np.array(list(self.texts))
        order = np.random.default_rng(self.config.seed).permutation(known)
        frames = self.store.num_frames[order].cumsum()
        count = int(np.searchsorted(frames, self.config.hours * 3600 * self.codec.frame_rate)) + 1
        return order[:count].tolist()

    def by_length(self, utterances: Sequence[int], most: int, luck: np.ndarray | float = 0.0) -> list[list[int]]:
        """In batches of similar lengths, of at most `most` frames with their padding. luck: [N] of the order."""
        lengths = self.store.num_frames[np.array(utterances, np.int64)]
        batches: list[list[int]] = []
        longest = 0
        for place in np.argsort(lengths * (1 + np.asarray(luck)), kind="stable").tolist():
            longest = max(longest, int(lengths[place]))
            if not batches or longest * (len(batches[-1]) + 1) > most:
                batches.append([])
                longest = int(lengths[place])
            batches[-1].append(utterances[place])
        return batches

    def heard(self, utterances: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The spectra [T, F] of each, in float16."""
        for batch in self.by_length(utterances, DECODED_FRAMES):
            longest = int(self.store.num_frames[batch].max())
            codes = torch.zeros(len(batch), self.codec.num_codebooks, longest, dtype=torch.int64)
            for row, i in enumerate(batch):
                codes[row, :, : int(self.store.num_frames[i])] = torch.from_numpy(
                    self.store.codes(i).T.astype(np.int64)
                )
            for i, found in zip(batch, spectra(self.codec, codes).half(), strict=True):
                yield i, found[: int(self.store.num_frames[i])]

    def heard_in_parts(self, utterances: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """The same, with the frames of a batch at a time."""
        part: dict[int, Tensor] = {}
        for i, found in self.heard(utterances):
            part[i] = found
            if sum(map(len, part.values())) >= self.config.frames_per_batch:
                yield part
                part = {}
        yield part

    def teach(self, known: dict[int, Tensor]) -> None:
        """known: the spectra of the utterances to learn from."""
        config, utterances = self.config, list(known)
        optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=0.01)
        num_steps = max(1, round(config.epochs * len(self.by_length(utterances, config.frames_per_batch))))
        warmup = max(1, min(200, num_steps // 10))
        bar = progress_bar(total=num_steps, desc="learn", unit="step")
        step = epoch = 0
        while step < num_steps:
            rng = np.random.default_rng([config.seed, epoch])
            batches = self.by_length(utterances, config.frames_per_batch, rng.uniform(-0.1, 0.1, len(utterances)))
            for number in rng.permutation(len(batches))[: num_steps - step].tolist():
                rate = min(1.0, (step + 1) / warmup, (num_steps - step) / (0.5 * num_steps))
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * rate
                loss = self.loss(batches[number], known)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.set_postfix(nats=f"{loss.item():.3f}", refresh=False)
                bar.update()
            epoch += 1
        bar.close()

    def scores(self, batch: Sequence[int], known: dict[int, Tensor]) -> Tensor:
        """Log-probabilities [B, S, C] in float32."""
        heard = torch.nn.utils.rnn.pad_sequence([known[i].float() for i in batch], batch_first=True)
        frames = torch.from_numpy(self.store.num_frames[list(batch)].copy())
        present = torch.arange(heard.shape[1]) < frames[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.network(heard, present)
        return logits.float().log_softmax(dim=-1)

    def loss(self, batch: Sequence[int], known: dict[int, Tensor]) -> Tensor:
        """Nats a character."""
        texts = [self.texts[i][0] for i in batch]
        steps = torch.tensor([STEPS_PER_FRAME * int(self.store.num_frames[i]) for i in batch])
        targets = torch.tensor([number for text in texts for number in text])
        sizes = torch.tensor([len(text) for text in texts])
        scores = self.scores(batch, known).transpose(0, 1)
        return F.ctc_loss(scores, targets, steps, sizes, BLANK, reduction="sum", zero_infinity=True) / len(targets)

    @torch.inference_mode()
    def heldout_nats(self, utterances: Sequence[int], known: dict[int, Tensor]) -> float:
        """Nats a character."""
        sizes = [len(self.texts[i][0]) for i in utterances]
        costs = [self.loss([i], known).item() for i in utterances]
        return float(np.average(costs, weights=sizes))

    @torch.inference_mode()
    def times(self, batch: Sequence[int], known: dict[int, Tensor]) -> Iterator[np.ndarray]:
        """The frame [L] at which each character of each text begins; UNHEARD for those that are not heard."""
        num_steps = STEPS_PER_FRAME * self.store.num_frames[list(batch)]
        texts = [self.texts[i] for i in batch]
        found = likeliest_paths(self.scores(batch, known).numpy(), num_steps, [numbers for numbers, _ in texts])
        for i, begins, (_, places) in zip(batch, found, texts, strict=True):
            frames = np.full(self.lengths[i], UNHEARD)
            frames[places] = begins // STEPS_PER_FRAME
            yield frames


def align(tokens: Path, codec: Codec, config: AlignerConfig = AlignerConfig()) -> Path:
    """Write into a token store when its texts are said (text_times.py) -> the file. Times that it has stay as they are.

    Raises ValueError for what is no token store, for another codec's, or for a store without texts.
    """
    store = TokenStore(tokens)
    alignment = TextAlignment(store, codec, config)
    times = [NONE] * len(store) if config.again else known_times(store)
    sought = [i for i in alignment.texts if not len(times[i])]
    if not sought:
        log.info(f"{store.folder}: it is known when its texts are said; --again finds it out anew")
        return times_file(store)
    chosen = alignment.chosen()
    kept_out = chosen[: min(HELDOUT, len(chosen) // 10)]
    heard = progress_bar(alignment.heard(chosen), total=len(chosen), desc="decode", unit="utterance")
    known = dict(heard)
    alignment.teach({i: known[i] for i in chosen[len(kept_out) :]})
    if kept_out:
        nats = alignment.heldout_nats(kept_out, known)
        log.info(f"{nats:.2f} nats a character on {len(kept_out)} utterances that it did not learn from")
        if nats > SURE:
            more = "it needs more hours of speech, or more --epochs, and --again"
            log.warning(f"so the times are hardly better than guessed: {more}")
    heard_before = {i: known[i] for i in sought if i in known}
    others = [i for i in sought if i not in known]
    bar = progress_bar(total=len(sought), desc="align", unit="utterance")
    for spectra_of in chain([heard_before], alignment.heard_in_parts(others)):
        for batch in alignment.by_length(list(spectra_of), config.frames_per_batch):
            for i, frames in zip(batch, alignment.times(batch, spectra_of), strict=True):
                times[i] = frames
            bar.update(len(batch))
    bar.close()
    if missing := len(store) - len(alignment.texts):
        log.info(f"{missing} of {len(store)} utterances have no text, or one that cannot be said in their time")
    return write_times(store, times)
