"""The command: `python3 tests/gpu [--only NAME ...] [--out FOLDER] [--device cuda]`."""

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from codeclm.model.device import resolve_device

from .catalogue import CHECKS
from .frames import compile_case
from .harness import run_checks
from .report import machine_facts, summary, write_report
from .setting import Setting


def main(arguments: Sequence[str] | None = None) -> int:
    """-> the exit status: 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python3 tests/gpu", description=__doc__)
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help="checks to run")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")), help="where reports go")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--list", action="store_true", help="print the checks and end")
    parser.add_argument("--budget", type=float, default=220.0, metavar="S", help="seconds after which none is begun")
    parser.add_argument("--compile", nargs=3, metavar=("SHAPE", "WEIGHTS", "ROWS"), help="only compile kernels")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(f"{check.name:<22}{'GPU  ' if check.needs_cuda else '     '}{check.claim}" for check in CHECKS))
        return 0
    if chosen.compile:
        shape, weights, rows = chosen.compile
        compile_case(resolve_device(chosen.device).type, shape, weights, int(rows))
        return 0
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(resolve_device(chosen.device), Path(scratch))
        facts = machine_facts(setting)
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
        wanted = [check for check in CHECKS if check.name in chosen.only]
        results = run_checks(wanted, setting, lambda line: print(line, flush=True), chosen.budget)
    assert [result.check for result in results] == [check.name for check in wanted]
    pages = write_report(chosen.out, results, facts)
    print(summary(results))
    print("reports:", *pages)
    return int(any(result.outcome == "failed" for result in results))
