"""A speech LM with its codec: prompts as audio in, continuations as audio out. The codes between are engine.py's.

K codebooks, T frames, S samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.config import with_settings
from ..data.progress import progress_bar
from ..data.text_tokenizer import TextTokenizer
from ..model.codecs import Codec
from ..model.device import resolve_device
from ..model.lm import SpeechLM
from .adapters import Base, use_adapter
from .config import SAYING, BeamConfig, EvaluateConfig, SamplingConfig
from .engine import generate
from .generation import Generation
from .grid import Request, State
from .out_of_memory import is_out_of_memory, out_of_memory
from .passage import Passage
from .precision import weights_of
from .prefix import Prefix, fingerprint_of, make_prefix, read_prefix
from .prompt import Audio, Prompt, encode_end
from .read_back import best_reading
from .rendering import rendered
from .request import check_writes, completed, continuation, filling, regeneration, sayable, saying, until_end
from .threads import decoding_threads
from .transcript import passages_of

if TYPE_CHECKING:
    from .evaluate.held_out import Speech
    from .evaluate.report import LikelihoodReport


class SpeechGenerator:
    """A speech LM with its codec, ready to use; `load` makes one. Deterministic: same seed and machine, same bytes."""

    def __init__(self, model: SpeechLM, codec: Codec, name: str, tokenizer: TextTokenizer | None = None):
        self.model, self.codec, self.name, self.tokenizer = model.eval(), codec, name, tokenizer
        self.base: Base | None = None  # under adapters
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
        use_adapter(self, folder)

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

    def save_pretrained(self, folder: str | Path, packed: bool = False) -> None:
        """Write model, codec, tokenizer, checksums and a model card into a new folder, which `load` reads anywhere.

        packed: in 8 bits a number, a quarter of the size; what it computes changes a little (train/recipes/embedded).
        Raises FileExistsError if there is something in `folder`, OSError if the disk does not take it.
        """
        from .share import save_shared

        save_shared(self, Path(folder), packed=packed)

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
        None generates until the model ends, 20 s at most, or 0.2 s for each character of a longer text; but 8 s after a
        prompt without a text, as a recording mostly stops where an utterance ends, and 8 s with a model that knows no
        end. text: what is to be said, for a model with a text stream; in a model whose text comes first it begins with
        what the prompt says, in a tagged one it is all that is said, in the voice of the prompt, and drawn as `say`
        does where `sampling` is the usual one. A model with aligned text writes its own where none is given. Raises
        AudioError for an unusable prompt, ValueError for a duration that is not positive, or a text that the model
        cannot take.
        """
        sampling = self.until_end(sampling, prompt, duration_s, text)
        return self.run(self.request(prompt, duration_s, sampling, text), seeds, sampling, progress)

    def say(
        self,
        text: str,
        voice: Prompt = None,
        seed: int = 0,
        sampling: SamplingConfig = SAYING,
        progress: bool = False,
        duration_s: float | None = None,
        best_of: int = 1,
    ) -> Generation:
        """Say `text`, until the model ends it; `duration_s` seconds at most (20, or 0.2 for each character).

        voice: somebody to sound like, as a `prompt` of `generate_many`, for a model with a tagged text layout; it is
        no part of the result. sampling: SAYING is for such models; others take SamplingConfig(). best_of: readings that
        are drawn, with seeds from `seed` on; such a model writes down what it hears in each, and the one is taken in
        which `text` costs it the fewest bits. Raises AudioError for an unusable voice, ValueError for a model that
        cannot.
        """
        sampling = replace(sayable(self, sampling), stop_at_end=True)
        request = saying(self, text, voice, duration_s, sampling, best_of)
        return best_reading(self, self.run(request, range(seed, seed + best_of), sampling, progress), text)

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
        request = regeneration(self, audio, keep, sampling, text)
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
        request, num_last = filling(self, before, after, duration_s, sampling, text)
        sampling = replace(sampling, stop_at_end=False)
        found = self.run(request, range(seed, seed + best_of), sampling, progress)
        return min(found, key=lambda generation: generation.nll[:, -num_last:].sum())

    def stream(
        self,
        prompt: Prompt = None,
        duration_s: float | None = None,
        seed: int = 0,
        sampling: SamplingConfig = SamplingConfig(),
        text: str | Iterable[str] | None = None,
    ) -> Iterator[np.ndarray]:
        """`generate` while it is made: chunks [S] float32 of the continuation, at the codec's sample rate.

        Joined they are the audio that `generate` gives, the same codes and equal to 1e-4. Nothing comes if the model
        ends at once. duration_s: also math.inf, for chunks as long as the caller takes them; the memory they need does
        not grow. text: also parts of one, cut anywhere, that are still being written (a language model's), for a model
        of the text layout "timed": it says each word a few after it came. Raises as `generate_many` does, before the
        first chunk is asked for; of a text in parts that is empty, then.
        """
        from .streaming import stream
        from .written_text import stream_written

        if text is not None and not isinstance(text, str):
            return stream_written(self, text, prompt, duration_s, seed, sampling)
        sampling = self.until_end(sampling, prompt, duration_s, text)
        return stream(self, self.request(prompt, duration_s, sampling, text, endless=True), seed, sampling)

    def until_end(
        self, sampling: SamplingConfig, prompt: Prompt, duration_s: float | None, text: str | None
    ) -> SamplingConfig:
        """`sampling`, so that the model may end where it is to say when; see `generate_many`."""
        return until_end(self, sampling, prompt, duration_s, text)

    def request(
        self,
        prompt: Prompt,
        duration_s: float | None,
        sampling: SamplingConfig,
        text: str | None = None,
        endless: bool = False,
    ) -> Request:
        """What a continuation is drawn from. endless: its duration may be infinite. Raises as `generate_many` does."""
        return continuation(self, prompt, duration_s, sampling, text, endless)

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
        max_s: float = 20.0,
        beam: BeamConfig = BeamConfig(),
        sampling: SamplingConfig | None = None,
        max_tokens: int = 200,
    ) -> str:
        """What is said in `audio`: the words of all its passages."""
        return " ".join(passage.text for passage in self.passages(audio, max_s, beam, sampling, max_tokens))

    def passages(
        self,
        audio: Audio,
        max_s: float = 20.0,
        beam: BeamConfig = BeamConfig(),
        sampling: SamplingConfig | None = None,
        max_tokens: int = 200,
    ) -> Iterator[Passage]:
        """What is said in `audio`, by a model with the text layout "last" or a tagged one, passage by passage.

        max_s: the most that a passage lasts; a longer recording is cut where it is quiet, and silence holds no words.
        beam: how the likeliest text is found (beam_search.py), by what is heard and by how texts are spelled: what
        `tokenizer.ngram` counts, where it is not None (`tokenizer.counted(texts)` makes one). sampling: a text is drawn
        instead, token by token; so it is also where the audio does not fit into a window of a model with full
        attention, the likeliest token each time. max_tokens: of a passage, for layouts without times.
        Raises AudioError for unusable audio, ValueError for a model without such a text.
        """
        check_writes(self)
        return passages_of(self, audio, max_s, beam, sampling, max_tokens)

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
        return completed(self, request)

    def encode(self, audio: Audio, max_s: float = 10.0) -> Tensor:
        """The last `max_s` seconds of audio -> codes [K, T]; see prompt.py."""
        return encode_end(self.codec, audio, max_s, self.threads)

    def _finish(self, state: State, row: int, seed: int, num_frames: int) -> Generation:
        """One row, up to frame `num_frames` at most."""
        end = min(int(state.end[row]), num_frames)
        own = slice(state.request.num_voice, end)
        codes, nll = (values[row, : state.num_codebooks, own] for values in (state.codes, state.nll))
        text = None if state.text is None else state.text[row, own]
        reason = "eos" if end < num_frames else "length"
        return rendered(self, codes, nll, text, state.num_prompt_frames - own.start, seed, reason)
