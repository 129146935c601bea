"""Two drivers on one experiment with a copy, each on a machine of its own."""

from __future__ import annotations

import pytest

from tests.crash.mirror_places import directory_place, gcs_place, s3_place, s3_server
from tests.crash.mirror_sharing import SCENES, Machines


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


async def played(machines, name):
    scene, endings = SCENES[name]
    assert await scene(machines) in endings, machines.last_words


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SCENES)
async def test_exactly_one_goes_on_with_a_directory(tmp_path, rng, name):
    await played(Machines(tmp_path, directory_place(tmp_path / "copy"), rng), name)


@pytest.mark.timeout(120)
async def test_exactly_one_goes_on_with_s3(tmp_path, rng, sampled, endpoint):
    async with s3_place(endpoint, door=True) as place:
        for name in sampled(list(SCENES), 1):
            await played(Machines(tmp_path, place, rng), name)


@pytest.mark.timeout(120)
async def test_exactly_one_goes_on_with_gcs(tmp_path, rng, sampled):
    async with gcs_place(door=True) as place:
        for name in sampled(list(SCENES), 1):
            await played(Machines(tmp_path, place, rng), name)
