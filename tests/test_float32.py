"""What a codec's computations are kept free of, and that the program around it gets its own settings back."""

import threading

import pytest
import torch

from codeclm.inference.codec.contract import lower_precision, precisions
from codeclm.model.codecs.float32 import OPERATIONS, ROUNDED, frozen


def rounded() -> bool:
    return torch.is_autocast_enabled("cpu") or any(operation.fp32_precision in ROUNDED for operation in OPERATIONS)


def test_nothing_is_rounded_inside_and_all_as_before_outside():
    default = precisions("cpu")
    with lower_precision("cpu"):
        settings = precisions("cpu")
        with frozen():
            assert not rounded() and not torch.is_grad_enabled()
        assert precisions("cpu") == settings != default
        with pytest.raises(KeyError), frozen():
            raise KeyError
        assert precisions("cpu") == settings and torch.is_grad_enabled()
    assert precisions("cpu") == default


def test_a_thread_that_leaves_does_not_bring_rounding_back_to_one_that_is_inside():
    entered, leave = threading.Event(), threading.Event()

    @frozen()
    def short() -> None:
        entered.set()
        leave.wait(10)

    with lower_precision("cpu"):
        settings = precisions("cpu")
        thread = threading.Thread(target=short)
        thread.start()
        assert entered.wait(10)
        with frozen():
            leave.set()
            thread.join()
            assert not rounded()
        assert precisions("cpu") == settings
