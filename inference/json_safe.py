"""Report dataclasses as plain values that JSON can hold."""

import math
from typing import Any


def json_safe(value: Any) -> Any:
    """`value` with every number that is not finite (JSON has none) as None, through dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
