"""docs/inspect.md names every command, option, column, exit code and JSON field; the code and it cannot drift apart."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest

from asynctune.inspect.cli import _inspect
from asynctune.inspect.exits import Exit
from asynctune.inspect.fields import FIELDS
from tests.inspect_cli.stores import REPOSITORY

TEXT = (REPOSITORY / "docs" / "inspect.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"[\w/-]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
GOLDEN = REPOSITORY / "tests" / "inspect_cli" / "golden"
# What these hold are the user's own names.
OPAQUE = {"config", "metadata", "last_result", "metrics", "files", "trials_by_status", "stop"}


def fields(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(fields, value))
    if isinstance(value, dict):
        return set(value).union(*(fields(item) for name, item in value.items() if name not in OPAQUE))
    return set()


@pytest.mark.parametrize("name", _inspect.commands)
def test_every_command_and_option_is_documented(name):
    assert name in NAMED
    for parameter in _inspect.commands[name].params:
        if isinstance(parameter, click.Option):
            assert set(parameter.opts) <= NAMED


def test_every_column_is_documented():
    assert set(FIELDS) <= NAMED


def test_every_exit_code_is_documented():
    table = TEXT.partition("| exit code |")[2].partition("\n\n")[0]
    assert {
        int(code) for row in table.splitlines()[2:] for code in re.findall(r"\d+", row.split("|")[1])
    } == set(Exit)


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_every_field_is_documented(path):
    found = fields(json.loads(path.read_text(encoding="ascii")))
    assert found <= NAMED, found - NAMED


def test_no_line_of_the_examples_is_wider_than_a_terminal():
    for block in re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL):
        assert max(map(len, block.splitlines())) <= 80
