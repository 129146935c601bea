"""Each Python block of the documents runs as it stands; links between them lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "bench/README.md",
]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def blocks(document: Path) -> list[str]:
    return _BLOCK.findall(document.read_text(encoding="utf-8"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "least"), [("guide", 9), ("tuner", 15), ("syncers", 4), ("many-machines", 2)]
)
async def test_a_guide_runs_from_top_to_bottom(name, least, tmp_path, monkeypatch, blockbuster):
    blockbuster.deactivate()  # a guide's own file handling is not the package's
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    names: dict[str, object] = {"__name__": name}
    found = blocks(ROOT / f"docs/{name}.md")
    assert len(found) >= least
    for number, block in enumerate(found, 1):
        code = compile(block, f"{name} block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result


README_EXAMPLES = {
    "tuner": (
        "results/first",
        16,
        r"best: \{'lr': 0\.\d+\}, loss \S+, saved in \S+/checkpoint_0000\d\d\S*\n",
    ),
    "store": ("my-experiment", 8, r"best: \{'lr': 0\.\d+\}\n"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", README_EXAMPLES)
def test_an_example_of_the_readme_runs_and_survives_a_kill(name, tmp_path):
    programs = dict(zip(README_EXAMPLES, blocks(ROOT / "README.md"), strict=True))
    assert len([line for line in programs[name].splitlines() if line.strip()]) <= 25
    where, trials, printed = README_EXAMPLES[name]
    script, experiment = tmp_path / "example.py", tmp_path / where
    script.write_text(programs[name], encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    killed = subprocess.Popen(command, cwd=tmp_path)
    try:
        while not list(experiment.glob("*/checkpoint_*/.manifest.json")):
            assert killed.poll() is None, "the example ended before it saved a checkpoint"
        killed.kill()
    finally:
        killed.wait()
    for _ in ("goes on", "shows it again"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        assert re.fullmatch(printed, done.stdout), done.stdout
    files = list(experiment.glob("*/result.json"))
    assert len(files) == trials
    for file in files:
        rows = [json.loads(line)["training_iteration"] for line in file.read_text().splitlines()]
        assert rows == list(range(1, len(rows) + 1)), file


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target, place in _LINK.findall(document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not place or place in places(path), f"{document.name} links to {target}#{place}"


def places(document: Path) -> set[str]:
    """What its headings are called in links."""
    titles = _HEADING.findall(document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
