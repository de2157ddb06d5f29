import pytest
import torch

from codeclm.model.device import resolve_device


def test_auto_is_a_device_that_is_there():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device().type == expected
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "tpu:0", "cpu:x", "cuda:99", "cuda:-1"])
def test_a_device_that_is_unknown_or_missing_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="device '.*' is (unknown|not there)") as error:
        resolve_device(name)
    assert "\n" not in str(error.value)
