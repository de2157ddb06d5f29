"""A speech LM with its codec: prompts as audio in, continuations as audio out. The codes between are engine.py's.

K codebooks, T frames, S samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.align import spread, text_first
from ..data.config import with_settings
from ..data.progress import progress_bar
from ..data.text_tokenizer import EOS, TextTokenizer, clean_text
from ..model.codecs import Codec
from ..model.delay_pattern import ABSENT
from ..model.device import resolve_device
from ..model.lm import SpeechLM
from .adapters import Base, adapter_folder, check_base, merged_weights, put
from .argument_checks import check_kept
from .config import EvaluateConfig, SamplingConfig
from .engine import generate
from .generation import Generation
from .grid import Request, State
from .out_of_memory import is_out_of_memory, out_of_memory
from .precision import weights_of
from .prefix import SUFFIX, Prefix, fingerprint_of, make_prefix, read_prefix
from .prompt import Audio, Prompt, encode_end
from .rendering import rendered
from .threads import decoding_threads
from .windows import NO_END

if TYPE_CHECKING:
    from .evaluate.held_out import Speech
    from .evaluate.report import LikelihoodReport

# seconds of a continuation whose duration is not given: at most, if the model ends by itself, and without an end
LONGEST_S, CONTINUATION_S = 20.0, 8.0


class SpeechGenerator:
    """A speech LM with its codec, ready to use; `load` makes one. Deterministic: same seed and machine, same bytes."""

    def __init__(self, model: SpeechLM, codec: Codec, name: str, tokenizer: TextTokenizer | None = None):
        self.model, self.codec, self.name, self.tokenizer = model.eval(), codec, name, tokenizer
        self._base: Base | None = None  # under adapters
        self.threads: int | None = None  # of torch while decoding; None: threads.py's rule
        model.config.codec.require(codec, name)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the model's settings and weights, as they were when it was first asked for."""
        return fingerprint_of(self.model)

    def use_adapter(self, folder: str | Path | None) -> None:
        """Put LoRA adapters (a folder of them, or their run) on the base model, in place of any before; None: none.

        `name` becomes the folder's. Raises ImportError without peft, FileNotFoundError or ValueError in one line: no
        adapters there, broken ones, or those of another base.
        """
        if precision := weights_of(self.model):
            raise ValueError(f"a model loaded with weights={precision!r} takes no adapters any more; give them to load")
        found = None if folder is None else adapter_folder(folder)
        if self._base is None:
            self._base = Base(self.name, self.fingerprint, {})
        if found is not None:
            check_base(found, self._base.fingerprint, self._base.name)
        now = put(self.model, self._base.weights)
        try:
            changed = {} if found is None else merged_weights(self.model, found)
        except Exception:
            put(self.model, now)
            raise
        self._base = replace(self._base, weights=put(self.model, changed))
        self.name = self._base.name if folder is None else str(folder)
        vars(self).pop("fingerprint", None)  # it was that of the weights before

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: str | torch.device) -> "SpeechGenerator":
        """Move model and codec to "auto", "cpu", "cuda", "cuda:N" or "mps"; ValueError if it is not there."""
        target = resolve_device(device)
        if target.type != self.device.type and (precision := weights_of(self.model)):
            raise ValueError(
                f"a model with weights={precision!r} stays where it was loaded; load it with device='{target}'"
            )
        torch.nn.Module.to(self.model, target)
        self.codec.to(target)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, codec, tokenizer, checksums and a model card into a new folder, which `load` reads anywhere.

        Raises FileExistsError if there is something in `folder`, OSError if the disk does not take it.
        """
        from .share import save_shared

        save_shared(self, Path(folder))

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to "owner/name" on the Hugging Face hub -> its address.

        Raises OSError in one line if the hub does not take it; log in with `hf auth login` first.
        """
        from .share import push

        return push(self, repo_id, private, token)

    def generate(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
        text: str | None = None,
    ) -> Generation:
        """Continue `prompt` by `duration_s` seconds; see `generate_many`."""
        return self.generate_many(prompt, duration_s, [seed], sampling, progress, text)[0]

    def generate_many(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seeds: Sequence[int] = (0,),
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
        text: str | None = None,
    ) -> list[Generation]:
        """Continue one prompt once for each seed, as one batch; each row draws from random numbers of its own.

        prompt: a path, (samples [S], sample_rate), a `prefix` or its file, or None to start from nothing. duration_s:
        None generates until the model ends, 20 s at most; but 8 s after a prompt without a text, as a recording mostly
        stops where an utterance ends, and 8 s with a model that knows no end. text: what is to be said, for a model
        with a text stream; in a model whose text comes first it begins with what the prompt says. A model with aligned
        text writes its own where none is given. Raises AudioError for an unusable prompt, ValueError for a duration
        that is not positive, or a text that the model cannot take.
        """
        sampling = self.until_end(sampling, prompt, duration_s, text)
        return self.run(self.request(prompt, duration_s, sampling, text), seeds, sampling, progress)

    def regenerate(
        self,
        audio: Audio,
        keep: int = 1,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
        text: str | None = None,
    ) -> Generation:
        """All of `audio` with the codes of its first `keep` codebooks, coarsest first; those of the others are drawn.

        Raises AudioError for unusable audio, ValueError unless some codebooks are kept and some are drawn.
        """
        check_kept(keep, sampling.num_codebooks or self.model.num_codebooks)
        known = self.encode(audio, math.inf).clone()
        known[keep:] = ABSENT
        request = replace(self._laid_out(known.shape[1], None, text), new_codes=known)
        return self.run(request, [seed], replace(sampling, stop_at_end=False), progress)[0]

    def fill(
        self,
        before: Audio,
        after: Audio,
        duration_s: float,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        progress: bool = False,
        text: str | None = None,
        best_of: int = 1,
    ) -> Generation:
        """Go on from `before` for `duration_s` seconds, then with all of `after`, whose codes are given.

        A model draws the gap without looking ahead: it knows nothing of `after`. best_of: gaps that are drawn, with
        seeds from `seed` on; the one after which `after` costs the fewest bits is taken. Raises as `generate_many`.
        """
        if best_of < 1:
            raise ValueError(f"best_of is {best_of}; it must be at least 1")
        end = self.encode(after, math.inf)
        request = self.request(before, duration_s, sampling, text)
        gap = torch.full((len(end), request.num_frames), ABSENT, device=end.device)
        request = replace(request, num_frames=request.num_frames + end.shape[1], new_codes=torch.cat([gap, end], dim=1))
        if request.new_text is not None:
            request = replace(request, new_text=F.pad(request.new_text, (0, end.shape[1]), value=ABSENT))
        sampling = replace(sampling, stop_at_end=False)
        found = self.run(request, range(seed, seed + best_of), sampling, progress)
        return min(found, key=lambda generation: generation.nll[:, -end.shape[1] :].sum())

    def stream(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        text: str | None = None,
    ) -> Iterator[np.ndarray]:
        """`generate` while it is made: chunks [S] float32 of the continuation, at the codec's sample rate.

        Joined they are the audio that `generate` gives, the same codes and equal to 1e-4. Nothing comes if the model
        ends at once. duration_s: also math.inf, for chunks as long as the caller takes them; the memory they need does
        not grow. Raises as `generate_many` does, before the first chunk is asked for.
        """
        from .streaming import stream

        sampling = self.until_end(sampling, prompt, duration_s, text)
        request, extra = self.completed(self.request(prompt, duration_s, sampling, text, endless=True))
        given = 0 if request.codes is None else request.codes.shape[-1]
        return stream(self, request, seed, sampling, given + request.num_frames - extra)

    def until_end(
        self, sampling: SamplingConfig, prompt: Prompt, duration_s: float | None, text: str | None
    ) -> SamplingConfig:
        """`sampling`, so that the model may end where it is to say when; see `generate_many`."""
        ends = duration_s is None and (prompt is None or text is not None)
        return replace(sampling, stop_at_end=sampling.stop_at_end or ends)

    def request(
        self,
        prompt: Prompt,
        duration_s: float | None,
        sampling: SamplingConfig,
        text: str | None = None,
        endless: bool = False,
    ) -> Request:
        """What a continuation is drawn from. endless: its duration may be infinite. Raises as `generate_many` does."""
        if duration_s is None:
            ends = sampling.stop_at_end and self.model.config.end != "never"
            duration_s = LONGEST_S if ends else CONTINUATION_S
        if not 0 < duration_s < 24 * 3600 and not (endless and duration_s == math.inf):
            raise ValueError(f"duration must be more than 0 s and less than a day, not {duration_s}")
        if sampling.guidance != 1 and text is None:
            raise ValueError(f"guidance is {sampling.guidance}: it weighs the text, and none is given")
        least, most = getattr(self.codec, "min_codebooks", 1), self.model.num_codebooks
        if sampling.num_codebooks and not least <= sampling.num_codebooks <= most:
            raise ValueError(f"num_codebooks is {sampling.num_codebooks}; this model takes {least} to {most} (0: all)")
        num_frames = NO_END if duration_s == math.inf else max(1, round(duration_s * self.codec.frame_rate))
        if isinstance(prompt, str | Path) and Path(prompt).suffix == SUFFIX:
            prompt = self.load_prefix(prompt)
        if isinstance(prompt, Prefix):
            prompt.check(self)
            request = self._laid_out(num_frames, prompt.codes, text)
            # a text may come before the codes, and fewer codebooks are other codes
            is_same = request.text is None and sampling.num_codebooks in (0, most) and prompt.caches is not None
            return replace(request, prefix=prompt) if is_same else request
        return self._laid_out(num_frames, None if prompt is None else self.encode(prompt, sampling.max_prompt_s), text)

    def prefix(self, audio: Audio, max_s: float = 10.0) -> Prefix:
        """The last `max_s` seconds of `audio` as a prompt that need not be encoded and read again; see prefix.py.

        Raises AudioError for unusable audio.
        """
        codes = self.encode(audio, max_s)
        with decoding_threads(self.threads):
            return make_prefix(self, codes)

    def load_prefix(self, path: str | Path) -> Prefix:
        """What `Prefix.save` wrote. Raises ValueError in one line if it is broken, or another model's or codec's."""
        return read_prefix(path, self)

    def transcribe(
        self,
        audio: Audio,
        max_tokens: int = 200,
        sampling: SamplingConfig = SamplingConfig(text_temperature=0.0),
        max_s: float = 20.0,
    ) -> str:
        """What is said in the last `max_s` seconds of `audio`, by a model that was trained with its text last.

        Raises AudioError for unusable audio, ValueError for a model without such a text.
        """
        if self.tokenizer is None or self.model.config.text.layout != "last":
            raise ValueError(f"{self.name}: cannot transcribe; train a model with --model.text.layout last")
        codes = self.encode(audio, max_s)
        request = Request(max_tokens, codes, draw_codes=False, draw_text=True, text_end=EOS)
        return self.run(request, [0], sampling)[0].text

    def evaluate(
        self,
        data: "Speech",
        baseline_data: "Speech | None" = None,
        config: EvaluateConfig = EvaluateConfig(),
        progress: bool = True,
        **settings: Any,
    ) -> "LikelihoodReport":
        """How well the model predicts speech that it was not trained on: bits/s and perplexities, beside two baselines.

        data: an audio file, a folder of them, or a token store (its folder, or a `TokenStore`). baseline_data: the
        same, normally the training data, on which the baselines are counted; without it each half of the utterances is
        predicted from the other half. settings: fields of `config`, such as limit=100 (utterances). Print the report;
        `report.model.bits_per_second` is its number. The hash of the weights in it is that of the files that were read.
        Raises AudioError or ValueError in one line: nothing usable in `data`, a single utterance without baseline data,
        tokens of another codec, or a setting that is unknown.
        """
        from .evaluate.held_out import evaluate_speech

        return evaluate_speech(self, data, baseline_data, with_settings(config, settings), progress)

    def warmup(self, rows: int = 1) -> None:
        """Make what the first generation of that many rows would make: on a GPU, compiled kernels and their graph."""
        codes = torch.zeros(self.model.num_codebooks, 2, dtype=torch.int64)
        request, _ = self.completed(Request(2 + max(self.model.config.delays), codes))
        for _ in generate(self.model, request, range(rows)):
            pass

    def _laid_out(self, num_frames: int, codes: Tensor | None, text: str | None) -> Request:
        """Lay out what is given, as the model was trained."""
        layout = self.model.config.text.layout if self.model.text_size else "none"
        if text is None:
            return Request(num_frames, codes, draw_text=layout == "aligned" and self.model.predicts_text)
        if self.tokenizer is None or layout not in ("first", "aligned"):
            raise ValueError(f"{self.name}: cannot speak a given text; train a model with --model.text.layout first")
        words = self.tokenizer.encode_words(text)
        if layout == "aligned":
            if num_frames == NO_END:
                raise ValueError("a text that is spread over the audio needs a duration that is not infinite")
            empty = np.zeros((self.model.num_codebooks, num_frames), np.int64)
            new, _ = spread(words, [len(word) for word in clean_text(text).split()], empty)
            return Request(num_frames, codes, new_text=torch.from_numpy(new))
        given = np.zeros((self.model.num_codebooks, 0), np.int64) if codes is None else codes.cpu().numpy()
        row, grid = text_first([token for word in words for token in word], given)
        return Request(num_frames, torch.from_numpy(grid), torch.from_numpy(row))

    def run(
        self,
        request: Request,
        seeds: Sequence[int],
        sampling: SamplingConfig | Sequence[SamplingConfig],
        progress: bool = False,
    ) -> list[Generation]:
        """A row for each seed. sampling: of all rows, or of each. Raises MemoryError with the batch that would fit."""
        request, extra = self.completed(request)
        try:
            return self._drawn(request, extra, seeds, sampling, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside of the handler, whose traceback holds on to the memory
        raise MemoryError(out_of_memory(self.model, request, seeds, sampling))

    def _drawn(
        self,
        request: Request,
        extra: int,
        seeds: Sequence[int],
        sampling: SamplingConfig | Sequence[SamplingConfig],
        progress: bool,
    ) -> list[Generation]:
        states = generate(self.model, request, seeds, sampling)
        if progress:
            states = progress_bar(states, total=request.num_frames, unit="frame", desc=f"generate x{len(seeds)}")
        state = None
        with decoding_threads(self.threads):
            for state in states:  # noqa: B007
                pass
            assert state is not None
            return [self._finish(state, row, seed, state.num_frames - extra) for row, seed in enumerate(seeds)]

    def completed(self, request: Request) -> tuple[Request, int]:
        """The request for this codec, and the frames that are drawn beyond what is asked for, and dropped.

        A model without EOS has not learned what its lagging codebooks are where the others stop.
        """
        config = self.model.config
        extra = max(config.delays) if request.draw_codes and config.end != "eos" else 0
        request = replace(request, num_codes=self.codec.codebook_size, num_frames=request.num_frames + extra)
        if request.new_text is not None:
            request = replace(request, new_text=F.pad(request.new_text, (0, extra), value=ABSENT))
        if request.new_codes is not None:
            request = replace(request, new_codes=F.pad(request.new_codes, (0, extra), value=ABSENT))
        return request, extra

    def encode(self, audio: Audio, max_s: float = 10.0) -> Tensor:
        """The last `max_s` seconds of audio -> codes [K, T]; see prompt.py."""
        return encode_end(self.codec, audio, max_s, self.threads)

    def _finish(self, state: State, row: int, seed: int, num_frames: int) -> Generation:
        """One row, up to frame `num_frames` at most."""
        end = min(int(state.end[row]), num_frames)
        codes, nll = (values[row, : state.num_codebooks, :end] for values in (state.codes, state.nll))
        text = None if state.text is None else state.text[row, :end]
        reason = "eos" if end < num_frames else "length"
        return rendered(self, codes, nll, text, state.num_prompt_frames, seed, reason)
