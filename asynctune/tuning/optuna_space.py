"""Owns what a `param_space` is to Optuna: distributions by name, parameters for a config and back. Samples nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.packing import pack
from asynctune.tuning.space import Categorical, Domain, Float, Function, Grid, Integer
from asynctune.tuning.variants import Path, Space, path_text

__all__ = ["OptunaSpace"]

_PLAIN: Final = (type(None), bool, int, float, str)


class OptunaSpace:
    """A space as Optuna's samplers know it.

    A value of a `choice` that Optuna cannot take (a list, a dictionary) is sampled by its index.

    Args:
        space: Nested dictionaries and lists of domains and fixed values.
        distributions: The module `optuna.distributions`.

    Raises:
        ConfigError: A domain that Optuna does not have.
    """

    def __init__(self, space: Mapping[str, Any], distributions: Any) -> None:
        self._space = Space(space)
        self._paths: dict[str, Path] = {}
        self.distributions: dict[str, Any] = {}
        self._by_index: dict[str, tuple[Any, ...]] = {}
        for path, domain in self._space.domains.items():
            if isinstance(domain, Function):
                continue
            name = path_text(path)
            if name in self._paths:
                raise ConfigError(
                    f"param_space has two values of the name {name!r} for Optuna; rename one of them"
                )
            self._paths[name] = path
            options = _options(domain)
            if options is None:
                self.distributions[name] = _of_numbers(distributions, name, domain)
            else:
                _check_options(name, options)
                if not _is_plain(options):
                    self._by_index[name] = options
                    options = tuple(range(len(options)))
                self.distributions[name] = distributions.CategoricalDistribution(options)

    def config(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The config of sampled parameters.

        Raises:
            ConfigError: A `sample_from` function failed.
        """
        chosen = {}
        for name, path in self._paths.items():
            options = self._by_index.get(name)
            chosen[path] = params[name] if options is None else options[params[name]]
        return self._space.filled(chosen)

    def params(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters of a config; `None` for one that is not of this space."""
        params = {}
        for name, path in self._paths.items():
            try:
                value: Any = config
                for part in path:
                    value = value[part]
                params[name] = self._param(name, self._space.domains[path], value)
            except (KeyError, IndexError, TypeError, ValueError):
                return None
        return params

    def _param(self, name: str, domain: Domain, value: Any) -> Any:
        options = _options(domain)
        if options is not None:
            # By their bytes: 1 equals True, NaN not itself, and a list comes back from the disk as another one.
            index = [pack(option) for option in options].index(pack(value))
            return index if name in self._by_index else options[index]
        distribution = self.distributions[name]
        if not distribution.low <= value <= distribution.high:
            raise ValueError(value)
        return value


def _options(domain: Domain) -> tuple[Any, ...] | None:
    if isinstance(domain, Categorical):
        return domain.categories
    return domain.values if isinstance(domain, Grid) else None


def _check_options(name: str, options: tuple[Any, ...]) -> None:
    for option in options:
        if isinstance(option, Domain) or (isinstance(option, dict | list) and Space({"_": option}).domains):
            raise ConfigError(
                f"{name}: a choice between search spaces cannot be given to Optuna; sample both, and use one of them"
            )


def _is_plain(options: tuple[Any, ...]) -> bool:
    """Whether Optuna takes them, and tells them from each other."""
    if not all(isinstance(option, _PLAIN) and option == option for option in options):  # noqa: PLR0124 - NaN
        return False
    return len(set(options)) == len(options)


def _of_numbers(distributions: Any, name: str, domain: Domain) -> Any:
    if isinstance(domain, Float):
        if domain.q is None:
            return distributions.FloatDistribution(domain.lower, domain.upper, log=domain.log)
        _check_linear(name, "uniform", log=domain.log)
        low, high = _multiples(domain.lower, domain.upper, domain.q)
        return distributions.FloatDistribution(low, high, step=domain.q)
    if isinstance(domain, Integer):
        if domain.q is None or domain.q == 1:
            last = domain.upper - (domain.q is None)
            return distributions.IntDistribution(domain.lower, last, log=domain.log)
        _check_linear(name, "randint", log=domain.log)
        low, high = _multiples(domain.lower, domain.upper, domain.q)
        return distributions.IntDistribution(int(low), int(high), step=domain.q)
    raise ConfigError(f"{name}: Optuna has no {domain.kind} domain; use uniform, randint or choice")


def _check_linear(name: str, kind: str, *, log: bool) -> None:
    if log:
        raise ConfigError(
            f"{name}: Optuna cannot round on a logarithmic scale; use log{kind} and round it yourself"
        )


def _multiples(lower: float, upper: float, q: float) -> tuple[float, float]:
    """The least and the greatest multiple of `q` within the bounds."""
    digits = 12
    first, last = math.ceil(round(lower / q, digits)), math.floor(round(upper / q, digits))
    return round(first * q, digits), round(last * q, digits)
