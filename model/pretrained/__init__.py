"""The embedded weights, with their cards, and the recording of a human voice that comes with them."""

from pathlib import Path

PROMPT = Path(__file__).parent / "prompt.flac"
