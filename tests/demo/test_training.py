from __future__ import annotations

import json

import numpy as np
import pytest

from asynctune.demo.scheduler import sample_config
from asynctune.demo.training import Digits, DigitsModel
from asynctune.errors import CheckpointNotFoundError

CONFIG = {
    "hidden": (32, 16),
    "activation": "relu",
    "learning_rate": 3e-3,
    "alpha": 1e-4,
    "batch_size": 64,
    "seed": 5,
}


@pytest.fixture(scope="module")
def digits():
    return Digits.load()


def test_the_splits_share_no_image(digits):
    sets = {
        split: {image.tobytes() for image in images[: len(images) // 9 if split == "train" else None]}
        for split, images in digits.images.items()
    }
    assert {split: len(images) for split, images in sets.items()} == {
        "train": 1197,
        "validation": 300,
        "test": 300,
    }
    assert not sets["train"] & sets["validation"]
    assert not sets["train"] & sets["test"]
    assert not sets["validation"] & sets["test"]


def test_shifted_images_keep_their_labels(digits):
    assert len(digits.images["train"]) == len(digits.labels["train"]) == 9 * 1197
    first, up = digits.images["train"][0].reshape(8, 8), digits.images["train"][1197].reshape(8, 8)
    assert np.array_equal(up[1:], first[:-1])


def test_a_model_learns(digits):
    model = DigitsModel(CONFIG, digits)
    losses = [model.train_epoch()["loss"] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert model.accuracy("test") > 0.8


@pytest.mark.parametrize("batch_size", [16, 10773])
@pytest.mark.parametrize("interrupted_after", [[1], [3], [2, 4], [1, 2, 3, 4]])
def test_an_interrupted_trial_gives_exactly_the_same_curve(digits, tmp_path, interrupted_after, batch_size):
    config = CONFIG | {"batch_size": batch_size}
    model = DigitsModel(config, digits)
    uninterrupted = [model.train_epoch() for _ in range(5)]

    model = DigitsModel(config, digits)
    curve = []
    for epoch in range(1, 6):
        curve.append(model.train_epoch())
        if epoch in interrupted_after:
            model.save(tmp_path / str(epoch))
            model = DigitsModel(json.loads(json.dumps(config)), digits)
            model.load(tmp_path / str(epoch))
    assert curve == uninterrupted


def test_another_seed_gives_another_curve(digits):
    curves = [DigitsModel(CONFIG | {"seed": seed}, digits).train_epoch() for seed in (1, 2)]
    assert curves[0] != curves[1]


def test_every_sampled_config_trains(digits):
    for hidden in {config["hidden"]: config for config in (sample_config(1, i) for i in range(24))}.values():
        assert np.isfinite(DigitsModel(hidden, digits).train_epoch()["loss"])


def test_the_checkpoint_holds_no_pickle(digits, tmp_path):
    model = DigitsModel(CONFIG, digits)
    model.train_epoch()
    model.save(tmp_path / "c")
    with np.load(tmp_path / "c" / "arrays.npz", allow_pickle=False) as arrays:
        names = sorted(arrays)
        assert all(arrays[name].dtype == np.float32 for name in names)
    assert len(names) == 18  # weights and biases of three layers, each with two moments
    assert json.loads((tmp_path / "c" / "params.json").read_text()) == {"epoch": 1, "adam_steps": 169}


@pytest.mark.parametrize("damage", ["nothing", "params", "arrays", "other model"])
def test_what_is_no_checkpoint_is_refused(digits, tmp_path, damage):
    source = tmp_path / "c"
    if damage != "nothing":
        config = CONFIG | {"hidden": (8,)} if damage == "other model" else CONFIG
        model = DigitsModel(config, digits)
        model.train_epoch()
        model.save(source)
    if damage == "params":
        (source / "params.json").write_text("{")
    if damage == "arrays":
        (source / "arrays.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of this model"):
        DigitsModel(CONFIG, digits).load(source)
