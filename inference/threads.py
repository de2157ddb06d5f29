"""How many threads torch computes with, and how they wait for each other. Imports no torch by itself.

Decoding takes one thread: a step is a chain of small products, each a matrix times a few vectors, which are as fast as
memory is. Measured on two cores with 13 to 130 million parameters: a second thread gave nothing on a quiet machine
(59 and 57 frames/s) and took nearly all beside other work (19 and 1.7), because threads wait for each other at every
product. `OMP_NUM_THREADS` and `--threads` win over the rule.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

ASKED = "OMP_NUM_THREADS"
# of GNU's and of Intel's and LLVM's OpenMP: a thread that waits sleeps, instead of keeping its core busy
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_asleep() -> None:
    """Let torch's threads sleep while they wait, unless the user says otherwise; of use before torch is imported."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


def check_threads(number: int | None) -> None:
    """Raise ValueError for a number of threads that this machine does not have; None is any rule's own."""
    cores = os.cpu_count() or 1
    if number is not None and not 1 <= number <= cores:
        raise ValueError(f"--threads is {number}; it must be 1 to {cores}, the cores of this machine")


def set_threads(number: int | None) -> None:
    """torch computes with this many threads from now on; None: as many as it takes by itself."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch computes with this many threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def decoding_threads(number: int | None = None) -> Iterator[None]:
    """torch computes with `number` threads inside the block; None: as `OMP_NUM_THREADS` says, else with one."""
    import torch

    with torch_threads(number or (torch.get_num_threads() if os.environ.get(ASKED) else 1)):
        yield
