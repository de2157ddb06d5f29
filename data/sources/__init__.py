"""Where speech comes from: each reader gives a list of `Source`; `find_sources` chooses the reader by what is there."""

import re
from pathlib import Path

from ...model.files import readable
from ...model.hub import is_hub_id
from ..audio import EXTENSIONS, FOREIGN, AudioError
from .source import Found, Source

PACKED = re.compile(r"\.(zip|tgz|tar\.\w+)$")

__all__ = ["Found", "Source", "find_sources"]


def find_sources(
    place: str | Path, split: str | None = None, subset: str | None = None, streaming: bool = False
) -> Found:
    """The speech in a folder or file of audio, a list of recordings (.jsonl, .csv, .tsv, lhotse's cuts), tar files
    (WebDataset), parquet or Arrow files, or a dataset of the Hugging Face hub, OWNER/NAME.

    split, subset, streaming: of a Hugging Face dataset. Raises AudioError, in one line, for what is none of these.
    """
    text, path = str(place), Path(place)
    if "://" not in text and not path.exists() and is_hub_id(text):
        from .tables import hub_files, read_tables

        return read_tables(text, hub_files(text, subset, split, streaming))
    if streaming or subset is not None:
        raise AudioError(f"{readable(text)}: a subset and streaming are for datasets of the hub, OWNER/NAME")
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        from .tables import read_tables, saved_files

        return read_tables(text, saved_files(path, split))
    if split is not None:
        raise AudioError(f"{readable(text)}: a split is chosen of a Hugging Face dataset; this is none")
    return _of_files(text, path)


def _of_files(text: str, path: Path) -> Found:
    from .manifest import is_manifest, read_manifest
    from .source import files_below

    if is_manifest(text) and not path.is_dir():
        return read_manifest(text)
    if PACKED.search(text) and not path.is_dir():
        raise AudioError(f"{readable(text)}: is packed; unpack it to a plain .tar, whose members can be read by place")
    is_address = "://" in text
    if is_address or path.suffix in (".tar", ".parquet", ".arrow") or (path.is_dir() and not has_audio(path)):
        if parquet := [file for file in files_below(text, ".parquet", ".arrow") if not file.endswith(".tar")]:
            from .tables import read_tables

            return read_tables(text, parquet)
        if tars := files_below(text, ".tar"):
            from .tar import read_tars

            return read_tars(text, tars)
        if is_address:
            raise AudioError(f"{text}: no list, tar or parquet file there")
    from .folder import read_folder

    return read_folder(path)


def has_audio(folder: Path) -> bool:
    """Whether any file below it has the name of an audio file."""
    return any(file.suffix.lower() in (*EXTENSIONS, *FOREIGN) for file in folder.rglob("*"))
