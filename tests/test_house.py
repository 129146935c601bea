"""The rules of the house that no linter expresses."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
MODULES: Final = sorted((ROOT / "asynctune").rglob("*.py"))
MAX_LINES: Final = 400
PURE: Final = {
    "asynctune.checking",
    "asynctune.checkpoints.retention",
    "asynctune.checkpoints.upload_plan",
    "asynctune.config",
    "asynctune.errors",
    "asynctune.metrics",
    "asynctune.packing",
    "asynctune.protocols",
    "asynctune.state.codec",
    "asynctune.state.pacing",
    "asynctune.state.stored",
    "asynctune.storage.base",
    "asynctune.storage.keys",
    "asynctune.storage.values",
    "asynctune.tracebacks",
    "asynctune.trial",
}
# Imported when used, never by `import asynctune`.
HEAVY: Final = {
    "aiobotocore",
    "aiofiles",
    "aiohttp",
    "asyncio.subprocess",
    "botocore",
    "click",
    "cloudpickle",
    "concurrent.futures.process",
    "gcloud",
    "multiprocessing",
    "numpy",
    "optuna",
    "ray",
    "rich",
    "sklearn",
    "tensorboardX",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_short_enough_to_hold_in_mind(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: this module wants a second room"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_owns(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_public_name_resolves():
    public = importlib.import_module("asynctune")
    assert public.__all__
    assert len(set(public.__all__)) == len(public.__all__)
    missing = [each for each in public.__all__ if not hasattr(public, each)]
    assert not missing
    assert set(public.__all__) <= set(dir(public))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    public = importlib.import_module("asynctune")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = public.no_such_name


def test_importing_the_package_imports_nothing_heavy():
    # Beside a bare `import asyncio`: what that loads anyway is not counted.
    script = "import asyncio, sys; old = set(sys.modules); import asynctune; print(*set(sys.modules) - old)"
    command = [sys.executable, "-c", script]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "asynctune" in loaded
    assert not HEAVY & set(loaded)


def test_the_purity_contract_names_every_pure_module():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {each["id"]: each for each in config["tool"]["importlinter"]["contracts"]}
    assert set(contracts["pure"]["source_modules"]) == PURE
