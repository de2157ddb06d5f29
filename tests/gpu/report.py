"""The report of a run: one JSON for programs, one Markdown page for people."""

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from .harness import Reading, Result
from .setting import Setting


def machine_facts(setting: Setting) -> dict[str, str]:
    device = str(setting.device)
    if setting.is_cuda:
        card = torch.cuda.get_device_properties(setting.device)
        device = f"{card.name}, {card.multi_processor_count} multiprocessors, {card.total_memory / 2**30:.0f} GiB"
    return {
        "device": device,
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def summary(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("ok", "failed", "skipped"))
    return f"{len(results)} checks: {words}; {sum(result.seconds for result in results):.0f} s"


def write_report(folder: Path, results: Sequence[Result], facts: dict[str, str]) -> tuple[Path, Path]:
    """-> gpu.json and gpu.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = folder / "gpu.json", folder / "gpu.md"
    content = {"facts": facts, "summary": summary(results), "checks": [plain(asdict(result)) for result in results]}
    pages[0].write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    pages[1].write_text(page(results, facts))
    return pages


def plain(value: Any) -> Any:
    """For JSON, which has no infinity and no NaN: these become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def page(results: Sequence[Result], facts: dict[str, str]) -> str:
    lines = ["# GPU run", "", *(f"- {name}: {fact}" for name, fact in facts.items()), "", summary(results), ""]
    lines += ["| check | outcome | s | what | largest difference / bound |", "| --- | --- | ---: | --- | --- |"]
    for result in results:
        found = result.reason if result.outcome != "ok" else nearest(result.readings)
        row = result.check, result.outcome, f"{result.seconds:.1f}", result.claim, found
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    for result in results:
        if result.readings:
            lines += ["", f"## {result.check}", "", "| reading | value | bound | |", "| --- | ---: | ---: | --- |"]
            for reading in result.readings:
                bound = "" if reading.bound is None else f"{reading.bound:.3g}"
                note = "; ".join(filter(None, [reading.unit, reading.note]))
                mark = "" if reading.ok else "**FAILED** "
                cells = reading.name, f"{reading.value:.4g}", bound, mark + " ".join(note.split())
                lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def nearest(readings: Sequence[Reading]) -> str:
    """The reading that came nearest to its bound."""
    bounded = [reading for reading in readings if reading.bound is not None]
    if not bounded:
        return "measured"
    worst = max(bounded, key=lambda r: r.value / r.bound if r.bound else math.inf * r.value if r.value else 0.0)
    return f"{worst.value:.2g} / {worst.bound:.2g}"
