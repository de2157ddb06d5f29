"""Audio read by threads while a GPU encodes. Long recordings are read in pieces, when their turn comes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from .audio import AudioError
from .sources import Source

MOST_BYTES = 32e6  # the largest source that is read as a whole
AHEAD = 2  # sources per thread

Read = Callable[[Source], Iterator]  # a source -> its pieces


def decode_ahead(sources: Iterable[Source], read: Read, threads: int) -> Iterator[tuple[Source, Iterator]]:
    """Each source with its pieces, in order; an AudioError of `read` comes where its piece would."""
    if threads <= 1:
        yield from ((source, read(source)) for source in sources)
        return
    running: deque[tuple[Source, Future | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for source in sources:
            running.append((source, pool.submit(_whole, read, source) if source.size <= MOST_BYTES else None))
            if len(running) > AHEAD * threads:
                yield _pieces(*running.popleft(), read)
        while running:
            yield _pieces(*running.popleft(), read)


def _whole(read: Read, source: Source) -> tuple[list, AudioError | None]:
    pieces = []
    try:
        pieces += read(source)
    except AudioError as error:
        return pieces, error
    return pieces, None


def _pieces(source: Source, reading: Future | None, read: Read) -> tuple[Source, Iterator]:
    return source, read(source) if reading is None else _again(*reading.result())


def _again(pieces: list, error: AudioError | None) -> Iterator:
    yield from pieces
    if error is not None:
        raise error
