"""Where checkpoints of trials on Ray go: straight to a bucket, in place on a shared filesystem, or nowhere."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager

import pytest

from asynctune import ConfigError, RunConfig, SyncConfig, Tuner
from asynctune.runners.agent import Order
from tests.runners.cluster import HEAD
from tests.runners.ray_checking import (
    Place,
    checked,
    eventually,
    experiment,
    fitting,
    inspected,
    left_on,
    rows_of,
    runner_for,
)
from tests.runners.ray_trials import LARGE_BYTES, acknowledged, beginnings, train, train_once_failing
from tests.storage.juicefs import juicefs_mounts
from tests.storage.moto import make_bucket, moto_server

pytestmark = pytest.mark.timeout(120)

NODES = ("node_b", "node_c")
BUCKET = "of-a-cluster"


async def test_checkpoints_go_straight_to_a_bucket(cluster, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    place = Place(cluster, "bucket")
    with moto_server() as endpoint:
        await asyncio.to_thread(make_bucket, endpoint, BUCKET)
        options = {"endpoint_url": endpoint, "key": "its-key", "secret": "its-secret", "region": "us-east-1"}
        sync = SyncConfig(upload_dir=f"s3://{BUCKET}/some", storage_options=options)
        broken = cluster.root / "broken-once"
        first = await experiment(
            place, train_once_failing, trials=4, sync=sync, n=4, flag=str(broken), fails_at=3
        ).fit()
        assert first.num_errors == 1
        assert not list(place.directory.glob("*/checkpoint_*"))
        sizes = [path.stat().st_size for path in place.directory.rglob("*") if path.is_file()]
        assert max(sizes) < LARGE_BYTES
        for node in NODES:
            assert left_on(place, node) == []

        elsewhere = cluster.apart / "elsewhere"
        uri = f"s3://{BUCKET}/some/{place.name}"
        tuner = await Tuner.restore(
            uri,
            train_once_failing,
            resume_errored=True,
            local_dir=elsewhere,
            storage_options=options,
            run_config=RunConfig(verbose=0),
            runner=runner_for(place),
        )
        results = await tuner.fit()
        assert results.num_errors == 0
        rows = await checked(results, 4, fetched=tmp_path / "fetched")
        assert len([each for each in rows if len({row["me"] for row in each}) > 1]) >= 1
        assert not list(elsewhere.rglob("checkpoint_*"))
        env_options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        await inspected(uri, "verify", env={**_path(), **env_options, "AWS_DEFAULT_REGION": "us-east-1"})


async def killed_in_the_middle(cluster, place, **settings):
    """The results of four trials, two on each node, one of which dies; each has all rows, and each row once."""
    tuner = experiment(place, train, trials=4, max_failures=2, num_to_keep=None, n=8, s=0.2, **settings)
    async with fitting(tuner) as running:
        await eventually(lambda: sum(map(len, acknowledged(place.log).values())) >= 10)
        await asyncio.to_thread(cluster.kill_node, "node_b")
        results = await running
    rows = [await rows_of(result, 8) for result in results]
    moved = [each for each in rows if {row["where"] for row in each} == {"node_b", "node_c"}]
    assert 1 <= len(moved) <= 2
    starts = beginnings(place.log).values()
    assert sum(len(each) - 1 for each in starts) == len(moved)
    assert all(at > 0 for each in starts for _, at in each[1:])
    return results


async def test_a_killed_node_leaves_its_trials_what_is_in_the_bucket(cluster, tmp_path, monkeypatch, carried):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    place = Place(cluster, "bucket-killed")
    with moto_server() as endpoint:
        await asyncio.to_thread(make_bucket, endpoint, BUCKET)
        options = {"endpoint_url": endpoint, "key": "its-key", "secret": "its-secret", "region": "us-east-1"}
        sync = SyncConfig(upload_dir=f"s3://{BUCKET}/some", storage_options=options)
        results = await killed_in_the_middle(cluster, place, sync=sync)
        await checked(results, 8, fetched=tmp_path / "fetched")
        assert carried == [], "the driver carries nothing"
        assert not list(place.directory.glob("*/checkpoint_*"))


async def test_a_killed_node_leaves_its_trials_what_is_on_the_shared_filesystem(cluster, carried):
    with mounted(cluster) as here:
        place = Place(cluster, "shared-killed")
        results = await killed_in_the_middle(
            cluster, place, sync=SyncConfig(syncer=None), local_dir=here / "results"
        )
        await checked(results, 8)
        assert carried == []
        await inspected(here / "results" / place.name, "verify")


async def test_the_buckets_credentials_are_nowhere_on_a_node(cluster, tmp_path, monkeypatch):
    """While a trial there writes to the bucket with them, and afterwards: they are in memory alone."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    orders = []
    pack = Order.pack

    def kept(self):
        orders.append(pack(self))
        return orders[-1]

    monkeypatch.setattr(Order, "pack", kept)
    place = Place(cluster, "credentials")
    mark = f"its-{secrets.token_hex(8)}"

    control = str(cluster.apart / "control")
    cluster.run_in("node_b", ["sh", "-c", f"cat > {control}"], input=mark)

    def traces():
        """By node: its processes with their environments, and the files that have it; the search itself has not."""
        look = f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; echo; grep -rlaf - {cluster.root} || true"
        found = {node: cluster.run_in(node, ["sh", "-c", look], input=mark) for node in (HEAD, *NODES)}
        return {node: told.rpartition("\0\n")[::2] for node, told in found.items()}

    with moto_server() as endpoint:
        await asyncio.to_thread(make_bucket, endpoint, BUCKET)
        options = {"endpoint_url": endpoint, "key": f"{mark}-key", "secret": f"{mark}-secret"}
        sync = SyncConfig(
            upload_dir=f"s3://{BUCKET}/safe", storage_options={**options, "region": "us-east-1"}
        )
        runner = runner_for(place, resources_per_trial={"node_b": 1})
        tuner = experiment(place, train, trials=1, sync=sync, runner=runner, n=10, s=0.2)
        async with fitting(tuner) as running:
            await eventually(lambda: len(next(iter(acknowledged(place.log).values()), ())) >= 2)
            meanwhile = await asyncio.to_thread(traces)
            assert not running.done()
            results = await running
        afterwards = await asyncio.to_thread(traces)
        processes, _ = meanwhile["node_b"]
        assert "ray::_Agent" in processes
        assert "asynctune.runners.worker" in processes
        for told in (meanwhile, afterwards):
            assert not [node for node, (processes, _) in told.items() if mark in processes]
            files = {node: files.split() for node, (_, files) in told.items()}
            assert files == {HEAD: [], "node_b": [control], "node_c": []}
        assert orders
        assert not any(mark.encode() in order for order in orders)
        assert all("secret" not in repr(Order.unpack(order)) for order in orders)
        rows = await checked(results, 10, fetched=tmp_path / "fetched")
        assert {row["where"] for row in rows[0]} == {"node_b"}
        assert not list(place.directory.glob("*/checkpoint_*"))


def _path():
    import os  # noqa: PLC0415

    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root")}


@contextmanager
def mounted(cluster):
    """A network filesystem that both nodes see as the head does; node_b by a mount of its own."""
    try:
        with juicefs_mounts() as (here, there):
            for node in NODES:
                cluster.kill_node(node)
            cluster.ensure(NODES)  # with what is mounted now
            cluster.run_in("node_b", ["mount", "--bind", str(there), str(here)])
            try:
                yield here
            finally:
                for node in set(NODES) & set(cluster.nodes):
                    cluster.kill_node(node)
    finally:
        cluster.ensure(())


async def test_a_shared_filesystem_is_written_in_place(cluster):
    with mounted(cluster) as here:
        place = Place(cluster, "shared")
        tuner = experiment(
            place,
            train,
            trials=6,
            sync=SyncConfig(syncer=None),
            local_dir=here / "results",
            runner=runner_for(place, resources_per_trial={"cpu": 2}),  # one on each node
            n=3,
            s=0.2,
        )
        results = await tuner.fit()
        rows = await checked(results, 3)
        assert {row["where"] for each in rows for row in each} == set(NODES)
        for node in NODES:
            assert left_on(place, node) == []
        directory = here / "results" / place.name
        assert not list(directory.rglob(".staged-*"))
        await inspected(directory, "verify")


async def test_a_filesystem_that_is_not_shared_is_refused_at_the_first_trial(cluster):
    place = Place(cluster, "not-shared")
    tuner = experiment(
        place,
        train,
        trials=3,
        sync=SyncConfig(syncer=None),
        runner=runner_for(place, resources_per_trial={"node_c": 1}),
        n=3,
    )
    with pytest.raises(ConfigError) as refused:
        await tuner.fit()
    text = str(refused.value)
    assert cluster.nodes["node_c"].ip in text
    assert "mount the same filesystem there, or leave syncer out" in text
    assert str(place.directory) in text
    assert not place.log.exists()
    assert len(await rows_of_any(tuner)) == 0


async def rows_of_any(tuner):
    return [row for result in tuner.get_results() for row in await rows_of(result, 0)]
