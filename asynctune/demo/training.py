"""Owns what the demo's trials train: a scikit-learn MLP on the handwritten digits, its epochs and its checkpoints.

`DigitsTrial` is what the Tuner runs, in worker processes; `DigitsModel` is for whoever uses the result, too. A trial
that goes on from a checkpoint gives exactly the numbers of one that was never interrupted: the checkpoint holds the
weights and what Adam remembers of the gradients, and the order of the samples follows from seed and epoch.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from asynctune.trainable import Trainable

__all__ = ["METRIC", "Digits", "DigitsModel", "DigitsTrial"]

METRIC: Final = "accuracy"

Split = Literal["train", "validation", "test"]
Floats = npt.NDArray[np.float32]

ARRAYS_FILE: Final = "arrays.npz"
PARAMS_FILE: Final = "params.json"
CLASSES: Final = np.arange(10)


@dataclass(frozen=True)
class Digits:
    """The 1,797 images of handwritten digits that come with scikit-learn, 8 x 8 pixels from 0 to 1.

    1,197 to train on, nine times each: as they are and shifted by one pixel in the eight directions; 300 to
    choose the best trial by (validation), 300 that the search never sees (test). Always the same split.

    Attributes:
        images: For each split, rows of 64 pixels, float32.
        labels: For each split, the digits.
    """

    images: Mapping[Split, Floats]
    labels: Mapping[Split, npt.NDArray[np.int64]]

    @classmethod
    @functools.cache
    def load(cls) -> Digits:
        """Read them from the installed scikit-learn, once in each process; nothing is downloaded."""
        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32)
        order = np.random.default_rng(0).permutation(len(images))
        train, validation, test = order[:1197], order[1197:1497], order[1497:]
        return cls(
            images={
                "train": _with_shifts(images[train]),
                "validation": images[validation],
                "test": images[test],
            },
            labels={
                "train": np.tile(labels[train], 9),
                "validation": labels[validation],
                "test": labels[test],
            },
        )


def _with_shifts(images: Floats) -> Floats:
    square = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2))
    return np.concatenate([square[:, y : y + 8, x : x + 8].reshape(-1, 64) for y, x in corners])


class DigitsModel:
    """One trial's model, trained epoch by epoch.

    Args:
        config: `layers` and `units` (how many hidden layers, of how many neurons each), `activation`,
            `learning_rate`, `alpha` (L2 penalty), `batch_size`, `seed`.
        digits: What to train on.
    """

    def __init__(self, config: Mapping[str, Any], digits: Digits) -> None:
        self.epoch = 0
        self._digits = digits
        self._seed = int(config["seed"])
        self._model = MLPClassifier(
            hidden_layer_sizes=(config["units"],) * config["layers"],
            activation=config["activation"],
            learning_rate_init=config["learning_rate"],
            alpha=config["alpha"],
            batch_size=config["batch_size"],
        )

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training images; the loss on them, and the accuracy on the validation images.

        Raises:
            ValueError: The weights have grown out of bounds.
        """
        self._partial_fit(len(self._digits.labels["train"]))
        self.epoch += 1
        return {METRIC: self.accuracy("validation"), "loss": float(self._model.loss_)}

    def accuracy(self, split: Split) -> float:
        """The share of a split's images that are recognized, from 0 to 1."""
        return float(self._model.score(self._digits.images[split], self._digits.labels[split]))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a checkpoint into the directory: arrays without pickle, numbers as JSON."""
        target = Path(directory)
        arrays: dict[str, Any] = {**self._arrays()}
        np.savez(target / ARRAYS_FILE, **arrays)
        params = {"epoch": self.epoch, "adam_steps": int(self._adam.t)}
        (target / PARAMS_FILE).write_text(json.dumps(params), encoding="utf-8")

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Continue from what `save` wrote, for a model of the same config."""
        source = Path(directory)
        params = json.loads((source / PARAMS_FILE).read_text(encoding="utf-8"))
        # A step on one batch brings every array into being, in its shape; all of them are replaced then.
        self._partial_fit(self._model.batch_size)
        with np.load(source / ARRAYS_FILE, allow_pickle=False) as saved:
            for name, array in self._arrays().items():
                array[...] = saved[name]
        self._adam.t = int(params["adam_steps"])
        self.epoch = int(params["epoch"])

    def _partial_fit(self, count: int) -> None:
        # Random numbers are seeded anew for each pass: they depend on the epoch, and on nothing before it.
        seed = np.random.SeedSequence([self._seed, self.epoch]).generate_state(1)[0]
        self._model.set_params(random_state=int(seed))
        images, labels = self._digits.images["train"], self._digits.labels["train"]
        with warnings.catch_warnings():
            # An overflow on the way to a trial's failure is told by the failure.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._model.partial_fit(images[:count], labels[:count], classes=CLASSES)

    @property
    def _adam(self) -> Any:
        return self._model._optimizer  # noqa: SLF001 - scikit-learn has no public way to it

    def _arrays(self) -> dict[str, Floats]:
        """Everything that an epoch changes, by name: the model's own arrays, not copies."""
        model, adam = self._model, self._adam
        groups = {"coef": model.coefs_, "intercept": model.intercepts_, "adam_m": adam.ms, "adam_v": adam.vs}
        return {f"{name}_{i}": array for name, group in groups.items() for i, array in enumerate(group)}


class DigitsTrial(Trainable):
    """One trial: a `DigitsModel`, an epoch for each step."""

    def setup(self, config: dict[str, Any]) -> None:
        """Make the model."""
        self._model = DigitsModel(config, Digits.load())

    def step(self) -> dict[str, float]:
        """Train for one epoch."""
        return self._model.train_epoch()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the model."""
        self._model.save(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue with the model that was saved."""
        self._model.load(checkpoint)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial; the data are there already."""
        self.setup(new_config)
        return True
