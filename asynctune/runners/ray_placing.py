"""Owns what a runner asks of Ray for its actors: what cannot work, and how many have room. Makes no actor.

What can be told without Ray is told when the runner is made; what the cluster has to say, when it starts.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["RayPlacing"]

logger = logging.getLogger("asynctune")

_MEANT: Final = {
    "cpu": "cpu",
    "cpus": "cpu",
    "num_cpus": "cpu",
    "gpu": "gpu",
    "gpus": "gpu",
    "num_gpus": "gpu",
}
_OPTIONS: Final = {"cpu": "num_cpus", "gpu": "num_gpus", "memory": "memory"}
_STRATEGIES: Final = ("DEFAULT", "SPREAD")
_CLASSES: Final = (
    "PlacementGroupSchedulingStrategy",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
)
_PARTS: Final = 10_000
"""Ray counts resources in ten-thousandths."""


class RayPlacing:
    """What one runner's actors ask for.

    Args:
        resources: See `RayRunner`; `None`: one CPU.
        runtime_env: See `RayRunner`.
        strategy: `scheduling_strategy` of `RayRunner`.

    Raises:
        ConfigError: A value that cannot work.
    """

    def __init__(
        self, resources: Mapping[str, float] | None, runtime_env: Mapping[str, Any] | None, strategy: Any
    ) -> None:
        resources = _checked_resources({"cpu": 1} if resources is None else resources)
        named = {"cpu": "CPU", "gpu": "GPU"}
        self._asked = {named.get(name, name): amount for name, amount in resources.items() if amount > 0}
        self._strategy = strategy
        self.options: Final[dict[str, Any]] = {
            "num_cpus": 0,
            **{_OPTIONS[name]: amount for name, amount in resources.items() if name in _OPTIONS},
            "resources": {name: amount for name, amount in resources.items() if name not in _OPTIONS},
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        """As an actor class takes them."""
        if runtime_env is not None:
            if not isinstance(runtime_env, Mapping):
                raise ConfigError(f"runtime_env must be a mapping, as Ray takes it, not {runtime_env!r:.80}")
            self.options["runtime_env"] = dict(runtime_env)
        if strategy is not None:
            _check_strategy(strategy)
            self.options["scheduling_strategy"] = strategy

    @property
    def has_group(self) -> bool:
        """Whether actors go to a placement group."""
        return getattr(self._strategy, "placement_group", None) is not None

    def made(self, actor: type) -> Any:
        """A class whose actors ask for it.

        Raises:
            ConfigError: Ray refuses an option.
        """
        import ray  # noqa: PLC0415 - few have it

        try:
            return ray.remote(actor).options(**self.options)
        except Exception as error:  # such as a package file of runtime_env that is not there
            raise ConfigError(
                f"Ray refuses runtime_env, scheduling_strategy or resources_per_trial: {error}"
            ) from error

    def check_group(self) -> None:
        """Look whether the placement group is still there: for one that is not, Ray lets actors wait for ever.

        Blocking: asks the cluster.

        Raises:
            ConfigError: It is not.
        """
        if self.has_group:
            self._bundles()

    def room(self) -> int:
        """How many actors fit where they may go, as the cluster is now; at least 1. Blocking: asks the cluster.

        Raises:
            ConfigError: They can go nowhere.
        """
        places = self._places()
        room = 0
        for has in places:
            fits = [
                _parts(has.get(name, 0)) // max(1, _parts(amount)) for name, amount in self._asked.items()
            ]
            room += min(fits, default=int(has.get("CPU", 1)))
        if not room:
            if self.has_group or self._node is not None:
                raise ConfigError(
                    f"scheduling_strategy leads to where no trial can run: resources_per_trial asks for {self._asked}, "
                    f"and there is {' or '.join(str(dict(has)) for has in places):.300}"
                )
            logger.warning("no node of the Ray cluster has %s: trials wait for one that has", self._asked)
        return max(1, room)

    @property
    def _node(self) -> str | None:
        """The only node to which actors may go."""
        return None if getattr(self._strategy, "soft", True) else str(self._strategy.node_id)

    def _places(self) -> list[Mapping[str, float]]:
        if self.has_group:
            return self._bundles()
        import ray  # noqa: PLC0415 - few have it

        nodes = [node for node in ray.nodes() if node.get("Alive")]
        if self._node is not None:
            nodes = [node for node in nodes if node["NodeID"] == self._node]
            if not nodes:
                raise ConfigError(
                    f"scheduling_strategy names the Ray node {self._node}, which is dead or was never in this cluster"
                )
        return [node["Resources"] for node in nodes]

    def _bundles(self) -> list[Mapping[str, float]]:
        import ray  # noqa: PLC0415 - few have it

        group = self._strategy.placement_group
        table = ray.util.placement_group_table(group)
        bundles: Mapping[int, Mapping[str, float]] = table.get("bundles") or {}
        if not bundles or table.get("state") == "REMOVED":
            raise ConfigError(
                f"the placement group {group.id.hex()} of scheduling_strategy was removed, or is of another cluster: "
                "make one, and give it to a new RayRunner; Tuner.restore goes on"
            )
        index = self._strategy.placement_group_bundle_index
        if index == -1:
            return list(bundles.values())
        if index not in bundles:
            raise ConfigError(
                f"scheduling_strategy names bundle {index} of a placement group that has {len(bundles)}"
            )
        return [bundles[index]]


def _check_strategy(strategy: Any) -> None:
    if isinstance(strategy, str):
        if strategy in _STRATEGIES:
            return
    else:
        module = sys.modules.get("ray.util.scheduling_strategies")  # whoever has made one has it
        classes = tuple(getattr(module, name) for name in _CLASSES if hasattr(module, name))
        if isinstance(strategy, classes):
            return
    raise ConfigError(
        f"scheduling_strategy must be one of {', '.join(map(repr, _STRATEGIES))}, or an object of Ray's such as "
        f"PlacementGroupSchedulingStrategy(group), not {strategy!r:.80}"
    )


def _checked_resources(resources: Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(resources, Mapping):
        raise ConfigError(f"resources_per_trial must be a mapping of names to amounts, not {resources!r:.80}")
    for name, amount in resources.items():
        if isinstance(name, str) and (known := _MEANT.get(name.lower(), name)) != name:
            raise ConfigError(f"resources_per_trial has {name!r}; it is called {known!r} here")
        if (
            not isinstance(name, str)
            or not isinstance(amount, int | float)
            or isinstance(amount, bool)
            or not 0 <= amount < math.inf
        ):
            raise ConfigError(f"resources_per_trial has {name!r}: {amount!r:.80}; amounts are numbers from 0")
    return resources


def _parts(amount: float) -> int:
    return round(amount * _PARTS)
