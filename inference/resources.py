"""The memory that a computation takes. Threads are threads.py's."""

import ctypes
from contextlib import suppress
from pathlib import Path

import numpy as np

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # where Linux has them
RESET_PEAK = "5"  # written into clear_refs: the highest memory so far is forgotten
NAN = float("nan")


class PeakMemory:
    """How much this process's resident memory grows at most from now on; NaN where the system does not tell."""

    def __init__(self) -> None:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # pages that were freed but kept would hide the growth
            CLEAR_REFS.write_text(RESET_PEAK)
            self.before_mb = resident_mb()
        except (OSError, AttributeError, TypeError):  # not Linux, or not glibc
            self.before_mb = NAN

    def growth_mb(self) -> float:
        return NAN if np.isnan(self.before_mb) else max(0.0, peak_resident_mb() - self.before_mb)


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can be told to (glibc)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_mb() -> float:
    """Resident memory (RSS) of this process in MB (10^6 bytes), now."""
    return _status_mb("VmRSS")


def peak_resident_mb() -> float:
    """The highest so far. getrusage's ru_maxrss is no less than the parent's was when it started this process."""
    return _status_mb("VmHWM")


def _status_mb(key: str) -> float:
    try:
        values = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    except OSError:
        return NAN
    return float(values[key].split()[0]) * 1024 / 1e6 if key in values else NAN
