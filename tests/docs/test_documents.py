"""Each Python block of the documents runs as it stands; links between them lead somewhere."""

from __future__ import annotations

import ast
import inspect
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
@pytest.mark.parametrize(("name", "least"), [("guide", 9), ("tuner", 15)], ids=["guide", "tuner"])
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


@pytest.mark.timeout(120)
def test_the_readme_example_runs_and_survives_a_kill(tmp_path):
    (program,) = blocks(ROOT / "README.md")
    assert len([line for line in program.splitlines() if line.strip()]) <= 25
    script = tmp_path / "example.py"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    killed = subprocess.Popen(command, cwd=tmp_path)
    experiment = tmp_path / "my-experiment"
    try:
        while not list(experiment.glob("*/checkpoint_*/.manifest.json")):
            assert killed.poll() is None, "the example ended before it saved a checkpoint"
        killed.kill()
    finally:
        killed.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert re.match(r"best: \w+_0000\d with \{'lr': 0\.\d+\}, loss 0\.1\d+\n$", done.stdout), done.stdout
    rows = [(p.parent.name, len(p.read_text().splitlines())) for p in experiment.glob("*/result.json")]
    assert sorted(count for _, count in rows) == [10] * 8


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
