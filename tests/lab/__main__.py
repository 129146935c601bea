"""Runs the experiments and prints what came out; exit code 1 if an expectation failed."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

import tests.lab
from tests.lab.registry import EXPERIMENTS, Lab, Row


def main() -> int:
    for module in pkgutil.iter_modules(tests.lab.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"tests.lab.{module.name}")
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every case instead of a sample")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="repeats a run")
    parser.add_argument(
        "--only", action="append", choices=sorted(EXPERIMENTS), help="this one; may be repeated"
    )
    parser.add_argument("--dir", type=Path, help="where to work; a temporary directory otherwise")
    given = parser.parse_args()
    print(f"seed {given.seed}, {'full' if given.full else 'sampled'}", flush=True)
    rows: list[tuple[str, Row]] = []
    failed = 0
    for name in given.only or sorted(EXPERIMENTS):
        entry = EXPERIMENTS[name]
        print(f"{name}: {entry.about}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="asynctune-lab-", dir=given.dir) as directory:
            try:
                for row in entry.run(Lab(Path(directory), given.seed, full=given.full, quiet=False)):
                    rows.append((name, row))
                    print(f"  {row.what}: {row.count:,}: {row.outcome}", flush=True)
            except Exception:  # noqa: BLE001 - the next experiment runs all the same
                failed += 1
                traceback.print_exc()
                rows.append((name, Row("FAILED, see above", 0, f"repeat: --seed {given.seed} --only {name}")))
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
    print(f"\nseed {given.seed}, {'full' if given.full else 'sampled'}")
    if rows:
        widths = [max(len(text) for text in column) for column in zip(*map(_cells, rows), strict=True)]
        for cells in map(_cells, rows):
            head = "  ".join(cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
            print(f"{head}  {cells[2].rjust(widths[2])}  {cells[3]}")
    return 1 if failed else 0


def _cells(entry: tuple[str, Row]) -> tuple[str, str, str, str]:
    name, row = entry
    return name, row.what, f"{row.count:,}", row.outcome


if __name__ == "__main__":
    sys.exit(main())
