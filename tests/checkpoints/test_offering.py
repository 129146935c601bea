from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints import offering
from asynctune.checkpoints.manifest import Manifest
from asynctune.checkpoints.offering import Offer
from asynctune.checkpoints.tree import scan_tree
from asynctune.errors import ConfigError
from tests.checkpoints.travel import staged_tree


def test_an_offer_says_what_was_staged(tmp_path):
    content = {"a/f": b"1", "b": b"", "run.sh": b"#!"}
    staged = asyncio.run(staged_tree(tmp_path, content, ("hollow",)))
    for name, mode in (("run.sh", 0o777), ("a/f", 0o400), ("hollow", 0o500), ("a", 0o2775), (".", 0o700)):
        (tmp_path / "node" / staged.path.rpartition("/")[2] / name).chmod(mode)
    tree = scan_tree(staged.path, committed=True)
    offer = Offer.of(staged.manifest, tree)
    assert offer.directories == {"a": 0o755, "hollow": 0o700}
    assert offer.mode == 0o700
    assert dict(zip((file.path for file in offer.manifest.files), offer.modes, strict=True)) == {
        "a/f": 0o600,
        "b": 0o644,
        "run.sh": 0o755,
    }
    assert Offer.decode(offer.encode()) == offer


def test_one_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(offering, "MAX_OFFER_BYTES", 50)
    with pytest.raises(ConfigError, match="the list of a checkpoint's files takes"):
        Offer(Manifest(step=0, epoch=0, attempt=0, files=()), [], {}, 0o700).encode()
