"""Rows of text in columns, for a terminal; the same rows in Markdown."""

from collections.abc import Sequence

import numpy as np

LEFT = (
    "codec",
    "clip",
    "codebook",
    "engine",
    "model",
    "task",
    "scorer",
    "score",
    "sound",
    "voice",
)  # columns that are words; numbers stand on the right


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the heading first -> lines in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = ["<" if heading in LEFT else ">" for heading in rows[0]]
    return ["  ".join(f"{row[i]:{side}{widths[i]}}" for i, side in enumerate(sides)).rstrip() for row in rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the heading first -> lines of a Markdown table."""
    sides = ["---" if heading in LEFT else "---:" for heading in rows[0]]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], sides, *rows[1:])]


def number(value: float, spec: str) -> str:
    return format(value, spec) if np.isfinite(value) else "-"
