"""Owns turning a `param_space` into configs: where its domains are, what is drawn for them, in which order. Pure.

Domains are found in nested dictionaries and lists. Grids are combined, the first one (by path) changing fastest; a
`sample_from` is resolved after everything that it looks at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.tuning.space import Categorical, Domain, Function, Grid, grid_search

__all__ = ["Path", "Space", "View", "path_text"]

Path = tuple[str | int, ...]

_MAX_DEPTH: Final = 64
_GRID_KEY: Final = "grid_search"  # Ray Tune's own form of a grid is {"grid_search": [...]}


class _UnresolvedError(Exception):
    """A `sample_from` looked at a value that is not there yet."""


class View:
    """What a `sample_from` function sees: `view.lr`, `view["lr"]`, `view.config.lr`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @property
    def config(self) -> View:
        """The same, for functions that were written for Ray Tune's spec."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the config has no {name!r}") from error

    def __getitem__(self, key: str) -> Any:
        return _seen(self._values[key])

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[key] if key in self._values else default

    def __contains__(self, key: object) -> bool:
        return key in self._values


class Space:
    """A `param_space`.

    Args:
        space: Nested dictionaries and lists of domains and fixed values.

    Raises:
        ConfigError: It is no mapping with text keys, or has a domain where none can be drawn.
    """

    def __init__(self, space: Mapping[str, Any]) -> None:
        if not isinstance(space, Mapping):
            raise ConfigError(f"param_space must be a mapping of names to values, not {type(space).__name__}")
        if _is_grid(space):
            raise ConfigError(
                'param_space is a grid without a name; name what it is of: {"lr": {"grid_search": [...]}}'
            )
        self.tree = _normalized(space, ())
        self.domains: dict[Path, Domain] = dict(_find(self.tree, ()))
        self._grids = sorted(
            (path for path, domain in self.domains.items() if isinstance(domain, Grid)),
            key=lambda path: [str(part) for part in path],
        )

    @property
    def grid_size(self) -> int:
        """How many combinations the grids have; 1 without grids."""
        size = 1
        for path in self._grids:
            size *= len(self._grid(path).values)
        return size

    def config(self, rng: random.Random, combination: int | None = None) -> dict[str, Any]:
        """One config.

        Args:
            rng: What is drawn from.
            combination: Which combination of the grids, from 0; `None`: a random one.

        Raises:
            ConfigError: A `sample_from` function failed, or some look at each other in a circle.
        """
        fixed: dict[Path, Any] = {}
        if combination is not None:
            for path in self._grids:
                values = self._grid(path).values
                combination, index = divmod(combination, len(values))
                fixed[path] = values[index]
        drawn = {
            path: _drawn(fixed[path] if path in fixed else domain.sample(rng), rng)
            for path, domain in self.domains.items()
            if not isinstance(domain, Function)
        }
        return self.filled(drawn)

    def filled(self, chosen: Mapping[Path, Any]) -> dict[str, Any]:
        """The config with these values in the place of its domains; functions are called then.

        Args:
            chosen: A value for each domain that is no function.

        Raises:
            ConfigError: A `sample_from` function failed, or some look at each other in a circle.
        """
        made: dict[str, Any] = _copied(self.tree)
        for path, value in chosen.items():
            _put(made, path, value)
        self._call(made, [path for path, domain in self.domains.items() if isinstance(domain, Function)])
        return made

    def _grid(self, path: Path) -> Grid:
        domain = self.domains[path]
        assert isinstance(domain, Grid)
        return domain

    def _call(self, made: dict[str, Any], functions: list[Path]) -> None:
        while functions:
            left = []
            for path in functions:
                try:
                    _put(made, path, self._result(path, made))
                except _UnresolvedError:
                    left.append(path)
            if len(left) == len(functions):
                names = ", ".join(map(path_text, left))
                raise ConfigError(
                    f"the sample_from functions of {names} look at each other: none can be first"
                )
            functions = left

    def _result(self, path: Path, made: dict[str, Any]) -> Any:
        domain = self.domains[path]
        assert isinstance(domain, Function)
        try:
            result = domain.call(View(made))
        except _UnresolvedError:
            raise
        except Exception as error:
            raise ConfigError(f"the sample_from function of {path_text(path)} failed: {error!r}") from error
        if isinstance(result, Domain):
            raise ConfigError(
                f"the sample_from function of {path_text(path)} returned {result!r:.80}, and nothing draws from that; "
                "let it draw the value itself"
            )
        return result


def path_text(path: Path) -> str:
    """A path for people: `model/layers/0`."""
    return "/".join(map(str, path))


def _seen(value: Any) -> Any:
    if isinstance(value, Function):
        raise _UnresolvedError
    if isinstance(value, dict):
        return View(value)
    if isinstance(value, list):
        return [_seen(each) for each in value]
    return value


def _is_grid(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {_GRID_KEY}


def _normalized(value: Any, path: Path) -> Any:
    """Plain dicts and lists, with grids in Ray Tune's form made `Grid`."""
    _check_depth(path, len(path))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"param_space has the key {key!r} at {path_text(path) or 'its top'}; keys are text"
                )
        if _is_grid(value):
            return _made_grid(value, path, len(path))
        return {key: _normalized(each, (*path, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_normalized(each, (*path, index)) for index, each in enumerate(value)]
    return _chosen(value, path, len(path))


def _chosen(value: Any, path: Path, depth: int) -> Any:
    """Likewise of what may be chosen at `path`, where keys are any."""
    _check_depth(path, depth)
    if isinstance(value, Categorical):
        return Categorical(tuple(_chosen(each, path, depth + 1) for each in value.categories))
    if isinstance(value, Grid):
        return Grid(tuple(_chosen(each, path, depth + 1) for each in value.values))
    if _is_grid(value):
        return _made_grid(value, path, depth)
    if isinstance(value, Mapping):
        return {key: _chosen(each, path, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_chosen(each, path, depth + 1) for each in value]
    if isinstance(value, tuple | AbstractSet):
        _refuse_domains(value, path, depth)
    return value


def _made_grid(value: Mapping[str, Any], path: Path, depth: int) -> Any:
    try:
        made = grid_search(value[_GRID_KEY])
    except ConfigError as error:
        raise ConfigError(f"{path_text(path)}: {error}") from None
    return _chosen(made, path, depth + 1)


def _refuse_domains(value: Any, path: Path, depth: int) -> None:
    """Nothing is drawn in tuples and sets: they cannot be filled."""
    _check_depth(path, depth)
    if isinstance(value, Domain) or _is_grid(value):
        raise ConfigError(
            f"param_space has something to draw in a tuple or a set, at {path_text(path)}; use a list there"
        )
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | AbstractSet):
        return
    for each in value:
        _refuse_domains(each, path, depth + 1)


def _check_depth(path: Path, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"param_space is nested more than {_MAX_DEPTH} deep at {path_text(path)}")


def _find(value: Any, path: Path) -> Iterator[tuple[Path, Domain]]:
    if isinstance(value, Domain):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _find(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _find(each, (*path, index))


def _drawn(value: Any, rng: random.Random) -> Any:
    """A drawn value, in which domains (of a choice between spaces) are drawn from in turn."""
    if isinstance(value, Categorical | Grid) or (
        isinstance(value, Domain) and not isinstance(value, Function)
    ):
        return _drawn(value.sample(rng), rng)
    if isinstance(value, dict):
        return {key: _drawn(each, rng) for key, each in value.items()}
    if isinstance(value, list):
        return [_drawn(each, rng) for each in value]
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value


def _put(tree: Any, path: Path, value: Any) -> None:
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value
