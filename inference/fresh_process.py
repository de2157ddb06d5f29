"""Call a function in a process of its own, where nothing else has taken memory yet."""

import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

from ..data.encode_files import exit_with_parent

T = TypeVar("T")


def in_fresh_process(name: str, work: Callable[..., T], *args: Any) -> T:
    """work(*args), both importable; name: of the work, for people.

    Raises the ValueError, OSError or ImportError of `work`, and ChildProcessError if the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()  # the process has its own: where that ends without an answer, so does the pipe
    try:
        found: Any = receiver.recv()
        process.join()
    except EOFError:
        raise ChildProcessError(f"{name}: its process ended early; out of memory, probably") from None
    finally:
        process.kill()  # where this was interrupted, it must not go on alone
    if isinstance(found, Exception):
        raise found
    return found


def _call(sender: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a word: the parent says that it was interrupted
    threading.Thread(target=exit_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # tqdm's own would be a semaphore, which outlives a process that is killed
    try:
        sender.send(work(*args))
    except (ValueError, OSError, ImportError) as error:
        sender.send(error)
