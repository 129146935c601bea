"""What is trained: a network of scikit-learn on its handwritten digits, epoch by epoch.

A trial that continues from a checkpoint gives exactly the numbers of one that was never interrupted: the checkpoint
holds the weights and what Adam remembers of the gradients, and the order of the samples follows from the trial's seed
and the epoch's number.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


@functools.cache
def digits() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order]


class DigitsModel:
    """One trial's model; 1,297 images to learn from, 500 to measure its accuracy by."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.epoch = 0
        self.seed = config["seed"]
        self.model = MLPClassifier(
            hidden_layer_sizes=(config["units"],),
            learning_rate_init=config["learning_rate"],
            batch_size=config["batch_size"],
        )

    def train_epoch(self) -> dict[str, float]:
        self.fit(1297)
        self.epoch += 1
        images, labels = digits()
        accuracy = float(self.model.score(images[1297:], labels[1297:]))
        return {"epoch": self.epoch, "accuracy": accuracy, "loss": float(self.model.loss_)}

    def save(self, directory: Path) -> None:
        """Write a checkpoint: arrays without pickle, numbers as JSON."""
        directory.mkdir(parents=True)
        np.savez(directory / "arrays.npz", **self.arrays())
        numbers = {"epoch": self.epoch, "adam_steps": int(self.adam.t)}
        (directory / "numbers.json").write_text(json.dumps(numbers), encoding="ascii")

    def load(self, directory: Path) -> None:
        numbers = json.loads((directory / "numbers.json").read_text(encoding="ascii"))
        self.fit(self.model.batch_size)  # brings every array into being; all of them are replaced then
        with np.load(directory / "arrays.npz", allow_pickle=False) as saved:
            for name, array in self.arrays().items():
                array[...] = saved[name]
        self.adam.t = numbers["adam_steps"]
        self.epoch = numbers["epoch"]

    def fit(self, count: int) -> None:
        # Random numbers are seeded anew for each pass: they depend on the epoch, and on nothing before it.
        seed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        self.model.set_params(random_state=int(seed))
        images, labels = digits()
        self.model.partial_fit(images[:count], labels[:count], classes=np.arange(10))

    @property
    def adam(self) -> Any:
        return self.model._optimizer  # noqa: SLF001 - scikit-learn has no public way to it

    def arrays(self) -> dict[str, Any]:
        """Everything that an epoch changes, by name: the model's own arrays, not copies."""
        model, adam = self.model, self.adam
        groups = {"coef": model.coefs_, "intercept": model.intercepts_, "m": adam.ms, "v": adam.vs}
        return {f"{name}_{i}": array for name, group in groups.items() for i, array in enumerate(group)}
