"""Trials that run elsewhere: an async driver, an HTTP service, and no job lost or paid for twice by a crash.

    python remote_jobs.py serve               # in one terminal: takes jobs, works on them, keeps the results
    python remote_jobs.py run /tmp/remote     # in another: kill it at any moment, and start it again

The service goes on while the driver is dead, so a restart has to find its jobs again, neither sending them a
second time nor forgetting one. Opening an experiment changes no status: a trial that was RUNNING still is,
and its metadata says where. What makes that safe is the order, for each trial:

1. status RUNNING, then `await flush()`: from here on the trial may exist on the other side;
2. POST with the trial's id as idempotency key: the service makes one job of however many POSTs with that key;
3. the job's id into the trial's metadata: not flushed in haste, because step 2 would find it again.

A trial found RUNNING with a job id goes on at "wait for it"; without one, at step 2; a PENDING one at step 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from typing import Any

from asynctune import ExperimentStore, Trial, TrialStatus

TRIALS = 12
AT_ONCE = 4


def branin(x: float, y: float) -> float:
    """A function with three equal minima of 0.397887, often used to compare optimizers."""
    bend = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


# -- the driver ----------------------------------------------------------------------------------------------


async def call(port: int, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """One HTTP request to the service, repeated while nobody answers; the reply's JSON."""
    content = json.dumps(body).encode()
    headers |= {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(content))}
    lines = [
        f"{method} {path} HTTP/1.1",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
            status = int(head.split()[1])
        except (OSError, IndexError):  # not there, or gone in the middle: the key makes asking again harmless
            await asyncio.sleep(0.1)
            continue
        if status >= 400:
            raise RuntimeError(f"{method} {path}: the service says {status}: {reply.decode()}")
        return json.loads(reply)


async def follow(store: ExperimentStore, trial: Trial, port: int) -> None:
    """Bring one trial to its end, from wherever it stands."""
    if trial.status is TrialStatus.PENDING:
        store.set_status(trial.trial_id, TrialStatus.RUNNING)
        await store.flush()
    job = trial.metadata.get("job")
    if job is None:
        reply = await call(port, "POST", "/jobs", dict(trial.config), Idempotency_Key=trial.trial_id)
        job = reply["job"]
        store.update_trial(trial.trial_id, metadata={"job": job})
    reply = await call(port, "GET", f"/jobs/{job}")  # answered when the job is done
    store.report(trial.trial_id, {"loss": reply["loss"]})
    store.set_status(trial.trial_id, TrialStatus.TERMINATED)
    print(f"{trial.trial_id} {job} loss {reply['loss']:.6f}", flush=True)


async def run(directory: str, port: int) -> None:
    """Start the experiment, or go on with it."""
    async with ExperimentStore.open(directory) as store:
        draw = random.Random(1)
        configs = [{"x": draw.uniform(-5, 10), "y": draw.uniform(0, 15)} for _ in range(TRIALS)]
        for config in configs[len(store.trials) :]:
            store.add_trial(config)
        todo = [trial for trial in store.trials if not trial.status.is_finished]
        attached = [trial.trial_id for trial in todo if trial.status is TrialStatus.RUNNING]
        print(
            f"{TRIALS - len(todo)} trials were finished, {len(attached)} run elsewhere: {attached}",
            flush=True,
        )

        todo.sort(key=lambda trial: trial.status is not TrialStatus.RUNNING)  # what is paid for comes first
        slots = asyncio.Semaphore(AT_ONCE)

        async def in_a_slot(trial: Trial) -> None:
            async with slots:
                await follow(store, trial, port)

        async with asyncio.TaskGroup() as group:
            for trial in todo:
                group.create_task(in_a_slot(trial))
        best = store.best_trial("loss", "min")
        assert best is not None
        print(f"best: {best.trial_id}, loss {best.last_result['loss']:.6f} at {dict(best.config)}")


# -- the service: a stand-in for a cluster or a cloud, which is none of the driver's business ---------------


class Service:
    """Keeps jobs in memory. A job takes a while, and yields the Branin function at its point."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.posts: list[str] = []

    async def answer(self, method: str, path: str, key: str, body: Any) -> Any:
        """The reply to one request."""
        if (method, path) == ("POST", "/jobs"):
            self.posts.append(key)
            if key not in self.by_key:
                job = self.by_key[key] = f"job-{len(self.jobs) + 1}"
                done_at = time.monotonic() + 0.1 + 0.3 * random.random()
                self.jobs[job] = {"loss": branin(body["x"], body["y"]), "done_at": done_at}
            return {"job": self.by_key[key]}
        if path == "/stats":
            return {"jobs": len(self.jobs), "posts": self.posts}
        known = self.jobs[path.removeprefix("/jobs/")]
        await asyncio.sleep(max(0.0, known["done_at"] - time.monotonic()))
        return {"loss": known["loss"]}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, one reply."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            method, path, _ = head[0].split()
            try:
                reply, status = (
                    await self.answer(method, path, headers.get("idempotency-key", ""), body),
                    "200 OK",
                )
            except KeyError:
                reply, status = f"nothing at {path}", "404 Not Found"
            content = json.dumps(reply).encode()
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a driver that was killed while it spoke
        finally:
            writer.close()


async def serve(port: int) -> None:
    """Listen until stopped; port 0: any free one."""
    server = await asyncio.start_server(Service().handle, "127.0.0.1", port)
    print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Trials that run elsewhere.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "run"):
        command = commands.add_parser(name)
        if name == "run":
            command.add_argument("directory")
        command.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    work = serve(options.port) if options.command == "serve" else run(options.directory, options.port)
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
