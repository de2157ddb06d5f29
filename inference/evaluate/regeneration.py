"""Do the words of a recording survive when its coarsest codebooks are kept and the others are drawn anew?

    python -m codeclm.inference.evaluate.regeneration datasets/speech/unseen/june_test --language fr

whisper-base reads the recordings, their round trip through the codec, and what is regenerated, against the true texts:
NAME.txt beside NAME.wav. Its errors on the recording are its own, those of the round trip also the codec's.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
import tyro
from tyro.conf import Positional, arg

from ...data.progress import progress_bar
from ..generator import SpeechGenerator
from ..options import Data, Model, Seed, open_model
from ..screen import log_lines, say_error
from ..sound.compare import Words, text_error_rate
from ..sound.transcribe import Transcriber, spoken_words
from .transcribed import Transcribed, with_text


def main(
    data: Positional[Data],
    language: Annotated[str, arg(help="of the texts, a code such as en")],
    model: Model = "default",
    keep: Annotated[tuple[int, ...], arg(help="numbers of codebooks to keep, one regeneration each")] = (1, 2, 4),
    limit: Annotated[int, arg(help="use N recordings, spread evenly over those with a text")] = 10,
    seed: Seed = 0,
) -> None:
    """Print whisper-base's word errors on recordings, their round trip and their regeneration."""
    try:
        with log_lines():
            lm, transcriber = open_model(model), Transcriber(language)
            recordings, _ = with_text(data, limit, lm.codec.sample_rate)
            print(error_table(lm, transcriber, recordings, keep, seed))
    except (ValueError, OSError, ImportError) as error:
        say_error(error)
        sys.exit(2)


def error_table(
    lm: SpeechGenerator, transcriber: Transcriber, recordings: Sequence[Transcribed], keep: Sequence[int], seed: int
) -> str:
    """A line for each way that speech came to whisper: its pooled word error rate."""
    language = str(transcriber.language)
    heard: dict[str, list[Words]] = {}
    rate = lm.codec.sample_rate
    for recording in progress_bar(recordings, desc="regenerate", unit="file"):
        for name, audio in versions(lm, recording.audio, keep, seed):
            words = transcriber.transcribe(audio, rate)
            heard.setdefault(name, []).append(Words(words, text=recording.text, language=language))
    count = sum(len(spoken_words(words.text, language)) for words in next(iter(heard.values())))
    lines = [f"{len(recordings)} recordings, {count} words, seed {seed}: whisper-base's word errors"]
    return "\n".join([*lines, *(f"{name:30} {text_error_rate(words):7.1%}" for name, words in heard.items())])


def versions(
    lm: SpeechGenerator, audio: np.ndarray, keep: Sequence[int], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """A recording [S], its round trip, and its regenerations [S]."""
    yield "recording", audio
    recording = audio, lm.codec.sample_rate
    codes = lm.encode(recording, math.inf)
    yield "codec round trip", lm.codec.decode(codes[None])[0, 0].cpu().numpy()
    noise = torch.randint(0, lm.codec.codebook_size, codes.shape, generator=torch.Generator().manual_seed(seed))
    for number in keep:
        yield f"{number} of {len(codes)} codebooks kept", lm.regenerate(recording, number, seed).audio
        kept = torch.arange(len(codes), device=codes.device)[:, None] < number
        at_random = torch.where(kept, codes, noise.to(codes.device))
        yield f"{number} kept, noise for the others", lm.codec.decode(at_random[None])[0, 0].cpu().numpy()


if __name__ == "__main__":
    tyro.cli(main, prog="python -m codeclm.inference.evaluate.regeneration")
