r"""Owns the text forms of a full row: JSON line, CSV line, params.json. Pure and deterministic.

JSON here is ASCII, one object a line. `NaN`, `Infinity` and `-Infinity` are these bare words, as Ray Tune
writes them: Python's `json` and pandas read them back, a strict JSON parser has to be told. What JSON has no
form for gets this one:

========================== =================================================================================
value                      form
========================== =================================================================================
bytes                      string `base64:` + standard Base64
tuple                      array
set, frozenset             array, ordered by the JSON text of the elements
datetime                   string, ISO 8601 with offset
complex                    string that Python's `complex()` reads, such as `(1+2j)`
int beyond 64 bits         all its digits
keys that are no strings   their JSON text (`null`, `true`, `1`, `0.5`, `[1, 2]`); with ` (int)` or the like
                           added where that name is taken
nesting beyond 100 levels  the string `(nested too deeply)`
========================== =================================================================================

CSV is RFC 4180 with `\r\n`, as Python's `csv` and Ray Tune write it: nested dicts become columns `a/b` (the
config `config/lr`), lists and empty dicts their JSON text, None an empty cell, NaN and infinities `nan`,
`inf`, `-inf`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from asynctune.packing import pack, unpack

__all__ = [
    "Columns",
    "csv_lines",
    "csv_records",
    "flatten",
    "json_text",
    "params_json",
    "plain",
]

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_FORMS: Final[dict[type, Callable[[Any], str]]] = {
    bytes: lambda value: "base64:" + base64.b64encode(value).decode("ascii"),
    complex: str,
    datetime: datetime.isoformat,
}
_MAX_DEPTH: Final = 100
_TOO_DEEP: Final = "(nested too deeply)"
_NEWLINE: Final = "\r\n"


def plain(value: Any, _depth: int = 0) -> Any:
    """`value` in the forms that JSON has: dicts with string keys, lists, str, int, float, bool, None.

    Never fails for a value that `asynctune.packing` accepts; what it returns survives a trip through JSON.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if _depth >= _MAX_DEPTH:
        return _TOO_DEEP
    if kind is dict:
        return _plain_dict(value, _depth)
    if kind is list or kind is tuple:
        return [item if type(item) in _SCALARS else plain(item, _depth + 1) for item in value]
    if kind is set or kind is frozenset:
        return sorted((plain(item, _depth + 1) for item in value), key=_text)
    if kind in _FORMS:
        return _FORMS[kind](value)
    return plain(unpack(pack(value)), _depth)  # subclasses and foreign numbers, as they would come back


def _plain_dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    strange = []
    for key, item in value.items():
        if type(key) is str:
            made[key] = item if type(item) in _SCALARS else plain(item, depth + 1)
        else:
            strange.append(key)
    for key in strange:  # after the others: a string keeps its name
        form = plain(key)
        name = form if isinstance(form, str) else _text(form)
        while name in made:
            name = f"{name} ({type(key).__name__})"
        made[name] = plain(value[key], depth + 1)
    return made


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def json_text(value: Any) -> bytes:
    """A value as `plain` returns it; of a full row, its line in result.json without the newline."""
    return json.dumps(value).encode("ascii")


def params_json(config: Mapping[str, Any]) -> bytes:
    """The content of params.json: the config, indented."""
    return json.dumps(plain(config), indent=2).encode("ascii") + b"\n"


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's CSV cells by column: `{"a": {"b": 1}, "c": [2]}` becomes `{"a/b": 1, "c": "[2]"}`.

    Where two paths read the same (`{"a/b": 1, "a": {"b": 2}}`), the later one counts.

    Args:
        row: A full row as `plain` returns it.
    """
    cells: dict[str, Any] = {}
    _flatten(row, "", cells)
    return cells


def _flatten(row: Mapping[str, Any], prefix: str, cells: dict[str, Any]) -> None:
    for key, value in row.items():
        kind = type(value)
        if kind is dict and value:
            _flatten(value, f"{prefix}{key}/", cells)
        elif kind is dict or kind is list:
            cells[prefix + key] = _text(value)
        else:
            cells[prefix + key] = value


class Columns:
    """The columns of one progress.csv, in order; they only grow.

    Attributes:
        names: The header.
    """

    __slots__ = ("_known", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._known = frozenset(self.names)

    def hold(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether each row's cells all have their column."""
        return all(row.keys() <= self._known for row in rows)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Columns:
        """The columns of these flattened rows, in the order in which they first appear."""
        names: dict[str, None] = {}
        for row in rows:
            names.update(dict.fromkeys(row))
        return cls(names)


def csv_lines(columns: Columns, rows: Iterable[Mapping[str, Any]], *, header: bool = False) -> bytes:
    """Flattened rows as lines of progress.csv; cells that a row has not are empty.

    Args:
        columns: The file's columns.
        rows: What `flatten` returned; cells without a column are left out.
        header: Whether the line with the names comes first.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=_NEWLINE)
    if header:
        writer.writerow(columns.names)
    writer.writerows([row.get(name) for name in columns.names] for row in rows)
    return text.getvalue().encode()


def csv_records(data: bytes) -> tuple[Sequence[str], int] | None:
    """The header of a progress.csv and the number of its rows; None for one that is cut short or damaged."""
    if not data.endswith(_NEWLINE.encode()) or b"\0" in data:
        return None
    try:
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        names = next(reader)
        # A quoted cell may hold line ends; without quotes, lines are rows.
        count = sum(1 for _ in reader) if b'"' in data else data.count(b"\n") - 1
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return None
    return (names, count) if len(set(names)) == len(names) else None
