"""Run every benchmark, one after the other, and write their figures: `results.json` and the README's tables.

With `--tables` nothing is run: the tables are made again from `results.json`. What the scripts print goes
through here unchanged, so that no figure in the README comes from anywhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import cell, machine_line, verdict

_HERE = Path(__file__).parent
_RESULTS, _README = _HERE / "results.json", _HERE / "README.md"
# The Tuner's first: they make very many small files, which some filesystems do slowly after others were deleted; so
# does the cluster's, minutes later.
_SCRIPTS = (
    "tuner",
    "tuner_load",
    "commit",
    "loop_lag",
    "pacing",
    "opening",
    "memory",
    "cluster",
    "crash",
    "uploads",
    "upload_lag",
)
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"
_QUIET_SHARE, _LOOK_S, _PATIENCE_S = 0.05, 5, 180


def _run(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    print(f"{name}.py", file=sys.stderr, flush=True)
    command = [sys.executable, str(_HERE / f"{name}.py"), "--json", *arguments]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_HERE.parent).stdout
    )
    return found


def _wait_for_quiet() -> None:
    """Give the work of the last script (or of somebody else) time to end, but not for ever."""
    end = time.monotonic() + _PATIENCE_S
    while (busy := _busy_share()) > _QUIET_SHARE:
        if time.monotonic() > end:
            print(f"  the machine is busy ({busy:.0%}): ratios may be off", file=sys.stderr, flush=True)
            return


def _busy_share() -> float:
    """Share of CPU time that was not idle during the next seconds; waiting for the disk counts as work."""
    before = os.times().elapsed, _idle_seconds()
    time.sleep(_LOOK_S)
    after = os.times().elapsed, _idle_seconds()
    return 1 - (after[1] - before[1]) / (after[0] - before[0]) / (os.cpu_count() or 1)


def _idle_seconds() -> float:
    return int(Path("/proc/stat").read_text("ascii").split()[4]) / os.sysconf("SC_CLK_TCK")


def tables(reports: Sequence[Mapping[str, Any]]) -> str:
    """The reports as Markdown."""
    parts = ["## Targets", "", "| target | measured | limit | |", "|---|---:|---:|---|"]
    parts += [
        f"| {target['what']} | {' | '.join(verdict(target))} |"
        for report in reports
        for target in report["targets"]
    ]
    for report in reports:
        columns = report["columns"]
        parts += ["", f"## {report['title']}", "", f"`python bench/{report['name']}.py`", ""]
        parts.append("| " + " | ".join(column["title"] for column in columns) + " |")
        parts.append("|---|" + "---:|" * (len(columns) - 1))
        for row in report["rows"]:
            figures = (cell(row.get(column["key"]), column["decimals"]) for column in columns)
            parts.append("| " + " | ".join(figures) + " |")
        parts.append("")
        parts += [f"- {note}" for note in report["notes"]]
        rounds = report["settings"]["rounds"]
        parts.append(f"- {rounds} round{'s' * (rounds != 1)}. {machine_line(report['machine'])}")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short runs with rough figures")
    parser.add_argument("--dir", metavar="DIR", help="measure the disk of this directory")
    parser.add_argument("--only", metavar="NAME[,NAME...]", help="run these, keep the others' results")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables again")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(_SCRIPTS)
    if unknown := sorted(set(names) - set(_SCRIPTS)):
        parser.error(f"--only {', '.join(unknown)}: the benchmarks are {', '.join(_SCRIPTS)}")
    arguments = (["--quick"] if given.quick else []) + (["--dir", given.dir] if given.dir else [])

    reports: dict[str, Any] = json.loads(_RESULTS.read_text("utf-8")) if _RESULTS.exists() else {}
    for name in [] if given.tables else names:
        _wait_for_quiet()
        reports[name] = _run(name, arguments)
        _RESULTS.write_text(json.dumps(reports, ensure_ascii=False, indent=1) + "\n", "utf-8")
    before, _, rest = _README.read_text("utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    made = tables([reports[name] for name in _SCRIPTS if name in reports])
    _README.write_text(f"{before}{_BEGIN}\n\n{made}\n\n{_END}{after}", "utf-8")


if __name__ == "__main__":
    main()
