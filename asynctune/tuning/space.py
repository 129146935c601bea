"""Owns the search space: the distributions a user writes into `param_space`, and what each of them draws. Pure.

Names, bounds and roundings are those of Ray Tune's search space API: lower bounds count, upper bounds do not,
except where a value is quantized. A domain is a plain value without a random state: `sample` is given one.
"""

from __future__ import annotations

import inspect
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from asynctune.errors import ConfigError

__all__ = [
    "Categorical",
    "Domain",
    "Float",
    "Function",
    "Grid",
    "Integer",
    "Normal",
    "choice",
    "grid_search",
    "lograndint",
    "loguniform",
    "qlograndint",
    "qloguniform",
    "qrandint",
    "qrandn",
    "quniform",
    "randint",
    "randn",
    "sample_from",
    "uniform",
]

_MOST: Final = sys.float_info.max


class Domain:
    """Something in a `param_space` that stands for many values."""

    kind: ClassVar[str]

    def sample(self, rng: random.Random) -> Any:
        """Draw one value."""
        raise NotImplementedError


@dataclass(frozen=True)
class Float(Domain):
    """A number between two bounds.

    Attributes:
        lower: The least value.
        upper: Not reached, but for rounding, and with `q`.
        log: Whether all magnitudes are equally likely.
        q: Values are rounded to multiples of it; `None`: they are not.
    """

    kind = "float"
    lower: float
    upper: float
    log: bool = False
    q: float | None = None

    def __post_init__(self) -> None:
        _make_plain(self, "lower", "upper", "q")
        name = f"{'q' * (self.q is not None)}{'log' * self.log}uniform"
        _check_bounds(name, self.lower, self.upper, log=self.log)
        if self.q is not None:
            _check_quantum(name, self.q, self.lower, self.upper)

    def sample(self, rng: random.Random) -> float:
        """Draw one value."""
        value = _between(rng, self.lower, self.upper, log=self.log)
        return value if self.q is None else _quantized(value, self.q, self.lower, self.upper)


@dataclass(frozen=True)
class Integer(Domain):
    """A whole number between two bounds.

    Attributes:
        lower: The least value.
        upper: The greatest value is one less; with `q`, it is this one.
        log: Whether all magnitudes are equally likely.
        q: Values are rounded to multiples of it; 1: they are not.
    """

    kind = "integer"
    lower: int
    upper: int
    log: bool = False
    q: int | None = None

    def __post_init__(self) -> None:
        _make_plain(self, "lower", "upper", "q")
        name = f"{'q' * (self.q is not None)}{'log' * self.log}randint"
        for value in (self.lower, self.upper):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name}: bounds are whole numbers, not {value!r}; use {name[:-7]}uniform")
        _check_bounds(name, self.lower, self.upper, log=self.log)
        if self.q is not None:
            if not isinstance(self.q, int) or isinstance(self.q, bool):
                raise ConfigError(f"{name}: q must be a whole number, not {self.q!r}")
            _check_quantum(name, self.q, self.lower, self.upper)

    def sample(self, rng: random.Random) -> int:
        """Draw one value."""
        last = self.upper - (self.q is None)
        if self.log:
            value = min(int(_between(rng, self.lower, last + 1, log=True)), last)
        else:
            value = rng.randint(self.lower, last)
        if self.q is None:
            return value
        return int(_quantized(value, self.q, self.lower, self.upper))


@dataclass(frozen=True)
class Normal(Domain):
    """A normally distributed number with this mean and standard deviation, rounded to multiples of `q`."""

    kind = "normal"
    mean: float = 0.0
    sd: float = 1.0
    q: float | None = None

    def __post_init__(self) -> None:
        _make_plain(self, "mean", "sd", "q")
        _check_number("randn: mean", self.mean)
        _check_number("randn: sd", self.sd)
        if self.sd <= 0:
            raise ConfigError(f"randn: sd must be above 0, not {self.sd!r}")
        if self.q is not None:
            _check_number("qrandn: q", self.q)
            if self.q <= 0:
                raise ConfigError(f"qrandn: q must be above 0, not {self.q!r}")

    def sample(self, rng: random.Random) -> float:
        """Draw one value."""
        value = rng.gauss(self.mean, self.sd)
        return value if self.q is None else _quantized(value, self.q, -math.inf, math.inf)


@dataclass(frozen=True)
class Categorical(Domain):
    """One of these, each as likely; one that is a domain itself is drawn from in turn."""

    kind = "categorical"
    categories: tuple[Any, ...]

    def sample(self, rng: random.Random) -> Any:
        """Draw one value."""
        return rng.choice(self.categories)


@dataclass(frozen=True)
class Grid(Domain):
    """Each of these in turn, combined with those of every other grid."""

    kind = "grid"
    values: tuple[Any, ...]

    def sample(self, rng: random.Random) -> Any:
        """Draw one value, as a searcher that knows no grids does."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Function(Domain):
    """What a function of the user's returns, who is shown the other values.

    Attributes:
        function: Called with a view of the config (`view.lr`, `view["lr"]`, `view.config.lr`), or without an
            argument if it takes none.
    """

    kind = "function"
    function: Callable[..., Any]

    def call(self, view: Any) -> Any:
        """What it returns for this config."""
        try:
            inspect.signature(self.function).bind(view)
        except TypeError:
            return self.function()
        except ValueError:  # a builtin, which does not say how it is called
            pass
        return self.function(view)


# -- what users write ----------------------------------------------------------------------------------------


def uniform(lower: float, upper: float) -> Float:
    """A number from `lower` to below `upper`, each as likely."""
    return Float(lower, upper)


def quniform(lower: float, upper: float, q: float) -> Float:
    """Likewise, rounded to multiples of `q`; `upper` may be reached."""
    return Float(lower, upper, q=q)


def loguniform(lower: float, upper: float, base: float = 10) -> Float:
    """A number from `lower` (above 0) to below `upper`, all magnitudes as likely, whatever the `base` is."""
    _check_base(base)
    return Float(lower, upper, log=True)


def qloguniform(lower: float, upper: float, q: float, base: float = 10) -> Float:
    """Likewise, rounded to multiples of `q`; `upper` may be reached."""
    _check_base(base)
    return Float(lower, upper, log=True, q=q)


def randn(mean: float = 0.0, sd: float = 1.0) -> Normal:
    """A normally distributed number."""
    return Normal(mean, sd)


def qrandn(mean: float, sd: float, q: float) -> Normal:
    """Likewise, rounded to multiples of `q`."""
    return Normal(mean, sd, q)


def randint(lower: int, upper: int) -> Integer:
    """A whole number from `lower` to below `upper`."""
    return Integer(lower, upper)


def qrandint(lower: int, upper: int, q: int = 1) -> Integer:
    """A whole number from `lower` to `upper`, rounded to multiples of `q`; `upper` may be reached."""
    return Integer(lower, upper, q=q)


def lograndint(lower: int, upper: int, base: float = 10) -> Integer:
    """A whole number from `lower` (above 0) to below `upper`, all magnitudes as likely."""
    _check_base(base)
    return Integer(lower, upper, log=True)


def qlograndint(lower: int, upper: int, q: int, base: float = 10) -> Integer:
    """Likewise, rounded to multiples of `q`; `upper` may be reached."""
    _check_base(base)
    return Integer(lower, upper, log=True, q=q)


def choice(categories: Sequence[Any]) -> Categorical:
    """One of these, each as likely."""
    return Categorical(_values("choice", categories))


def grid_search(values: Iterable[Any]) -> Grid:
    """Each of these, combined with every other grid; `num_samples` repeats the whole grid."""
    return Grid(_values("grid_search", values))


def sample_from(function: Callable[..., Any]) -> Function:
    """What `function` returns; it may look at the other values: `sample_from(lambda spec: spec.config.a * 2)`."""
    if not callable(function):
        raise ConfigError(f"sample_from takes a function, not {function!r}")
    return Function(function)


# -- checks and arithmetic -----------------------------------------------------------------------------------


def _values(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} takes a list of values, not {values!r}")
    made = tuple(values)
    if not made:
        raise ConfigError(f"{name} takes at least one value")
    if _has_function(made):
        raise ConfigError(f"{name} cannot choose a sample_from; let the function of one sample_from choose")
    return made


def _make_plain(domain: Domain, *names: str) -> None:
    """Make NumPy's scalars among these attributes Python's: they are stored, and every value is drawn from them."""
    for name in names:
        object.__setattr__(domain, name, _plain(getattr(domain, name)))  # frozen, and not made yet


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or type(value) in {int, float, str}:
        return value
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _has_function(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_function, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_function, value))
    return isinstance(value, Function)


def _check_number(what: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_MOST <= value <= _MOST:
        raise ConfigError(f"{what} must be a finite number, not {value!r}")


def _check_bounds(name: str, lower: float, upper: float, *, log: bool) -> None:
    _check_number(f"{name}: lower", lower)
    _check_number(f"{name}: upper", upper)
    if not lower < upper:
        raise ConfigError(f"{name}: lower must be below upper, not {lower!r} and {upper!r}")
    if log and lower <= 0:
        raise ConfigError(f"{name}: lower must be above 0, not {lower!r}")


def _check_quantum(name: str, q: float, lower: float, upper: float) -> None:
    _check_number(f"{name}: q", q)
    if q <= 0:
        raise ConfigError(f"{name}: q must be above 0, not {q!r}")
    if _quantized(lower, q, lower, upper) > upper or _quantized(lower, q, lower, upper) < lower:
        raise ConfigError(f"{name}: no multiple of {q!r} lies between {lower!r} and {upper!r}")


def _check_base(base: float) -> None:
    _check_number("base", _plain(base))
    if base <= 1:
        raise ConfigError(f"base must be above 1, not {base!r}")


def _between(rng: random.Random, lower: float, upper: float, *, log: bool) -> float:
    if not log:
        # not rng.uniform, whose upper - lower may be infinite
        part = rng.random()
        return min(max(lower * (1 - part) + upper * part, lower), upper)
    value = math.exp(rng.uniform(math.log(lower), math.log(upper)))
    return min(max(value, lower), upper)


def _quantized(value: float, q: float, lower: float, upper: float) -> float:
    """The nearest multiple of `q` within the bounds."""
    count = round(value / q)
    if count * q > upper and not math.isclose(count * q, upper):
        count = math.floor(upper / q)
    if count * q < lower and not math.isclose(count * q, lower):
        count = math.ceil(lower / q)
    if isinstance(q, int):
        return count * q
    # 3 * 0.1 is 0.30000000000000004: say what was meant
    return round(count * q, max(0, 12 - math.floor(math.log10(abs(q))) if q < 1 else 12))
