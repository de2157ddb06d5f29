"""`checkup`: speech, splits and runs in one go, as `codeclm doctor` does."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...data.preparation import prepare
from ...data.token_store import TokenStore
from ...model.codecs import Codec, load_codec
from ..argument_checks import STORE, is_run
from .data import add_damage, compare_splits, examine_speech
from .findings import Examination, Report
from .run import examine_run
from .speech import Speech

SECONDS = 600.0


def checkup(targets: Sequence[Path], codec: str | Path | Codec = "spectral", seconds: float = SECONDS) -> Report:
    """targets: token stores, audio files, folders of them, and training runs; speech of several is compared.

    codec: tokenizes audio, and decodes stores that were made with it. seconds: of sound measured in each at most.
    Raises ValueError or OSError, in one line, for what is none of these, or audio none of which can be used.
    """
    coder = load_codec(codec) if isinstance(codec, str | Path) else codec
    examined: list[Examination] = []
    speech: list[tuple[Speech, Examination]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, path in enumerate(path for path in targets if not is_run(path)):
            try:
                one = open_speech(path, Path(scratch) / str(number), coder)
            except DamagedStore as error:
                examined.append(Examination(path, "token store that cannot be opened"))
                add_damage(error, examined[-1])
                continue
            examined.append(examine_speech(one, seconds))
            speech.append((one, examined[-1]))
        between = compare_splits(speech) if speech else []
        examined += [examine_run(path, [one for one, _ in speech]) for path in targets if is_run(path)]
    return Report(examined, between)


class DamagedStore(ValueError):
    """A token store that cannot be opened."""


def open_speech(path: Path, scratch: Path, codec: Codec) -> Speech:
    """A token store as it is, or the one that is made of audio in `scratch`."""
    if not is_store(path):
        prepare(path, scratch, codec)
        return Speech(path, TokenStore(scratch), codec)
    try:
        store = TokenStore(path)
    except (ValueError, FileNotFoundError) as error:
        raise DamagedStore(str(error)) from None
    return Speech(path, store, codec if store.codec.fingerprint == codec.fingerprint else None)


def is_store(path: Path) -> bool:
    """Whether it is a token store, or what is left of one."""
    return (path / STORE).is_file() or any(path.glob("shard-*.bin"))
