"""What is fetched from the Hugging Face hub: settings and safetensors, never code."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

WAIT_S = 5.0  # for the hub's first answer


def is_hub_id(name: str) -> bool:
    """Whether `name` is written as "owner/name" and cannot mean a file or folder here."""
    owner, slash, rest = name.partition("/")
    plain = bool(owner and slash and rest) and "/" not in rest and not name.startswith((".", "~")) and "\\" not in name
    return plain and not Path(owner).exists()


@cache
def fetch(hub_id: str, what: str, patterns: Sequence[str]) -> Path:
    """The folder with the files of a hub id that match `patterns`, downloaded where the cache does not have them.

    what: the word for it in messages. patterns: a tuple; "*" also stands for "/".
    Raises OSError in one line, and soon, if it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), etag_timeout=WAIT_S))
    except GatedRepoError:
        reason = "its makers ask you to accept their terms on the hub first, then to log in with 'hf auth login'"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private: log in with 'hf auth login'"
    except LocalEntryNotFoundError:
        reason = "it is not in the cache and the hub cannot be reached"
    except Exception as error:  # of the HTTP library, the hub's client and the disk
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise OSError(f"{what} '{hub_id}' cannot be fetched: {reason}; or give a folder that holds it")
