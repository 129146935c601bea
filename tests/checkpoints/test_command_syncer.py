"""Templates become commands in which nothing is misread, and failures say what the command said, less its secrets."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys

import pytest

from asynctune.checkpoints.command_syncer import CommandSyncer
from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.clock import SystemClock
from asynctune.errors import ConfigError, StorageError
from asynctune.protocols import Syncer
from asynctune.testing import ManualClock
from tests.checkpoints.test_commands import is_alive, pid_in, until

BOTH = "tool {source} {target}"


@pytest.fixture
def told(tmp_path):
    """A template of a command that writes down its arguments, and how to read them."""
    script = tmp_path / "tell.py"
    script.write_text("import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))")
    log = tmp_path / "arguments"
    return f"{shlex.quote(sys.executable)} {script} {log}", lambda: json.loads(log.read_text())


def saying(script):
    """A syncer whose every command is this script."""
    command = shlex.join([sys.executable, "-c", script])
    both = f"{command} {{source}} {{target}}"
    return CommandSyncer(both, both, f"{command} {{target}}")


async def test_fields_stay_within_their_arguments(told):
    command, arguments = told
    syncer = CommandSyncer(
        f"{command} up --from={{source}} '{{target}}/x y' {{source}}{{target}}",
        f"{command} down {{source}} {{target}}",
        f"{command} delete --all {{target}}",
    )
    await syncer.sync_up("/a b/'c'", "s3://bucket/$(d)")
    assert arguments() == ["up", "--from=/a b/'c'", "s3://bucket/$(d)/x y", "/a b/'c's3://bucket/$(d)"]
    await syncer.sync_down("s3://bucket/{source}", "/local {target}")
    assert arguments() == ["down", "s3://bucket/{source}", "/local {target}"], "filled in once"
    await syncer.delete("s3://bucket/*; rm -rf /")
    assert arguments() == ["delete", "--all", "s3://bucket/*; rm -rf /"]


async def test_nothing_becomes_an_option(told):
    command, arguments = told
    both = f"{command} {{source}} {{target}}"
    syncer = CommandSyncer(both, both, f"{command} {{target}}")
    await syncer.sync_up("-r", "--delete")
    assert arguments() == ["./-r", "./--delete"]
    await syncer.delete("-rf")
    assert arguments() == ["./-rf"]


async def test_patterns_that_are_excluded(told):
    command, arguments = told
    syncer = CommandSyncer(
        f"{command} {{options}} {{source}} {{target}}",
        f"{command} {{source}} {{target}}",
        f"{command} {{target}}",
        exclude_template="--exclude {pattern}",
    )
    await syncer.sync_up("/a", "/b", ["*.tmp", "a b/*", "-x"])
    assert arguments() == ["--exclude", "*.tmp", "--exclude", "a b/*", "--exclude", "[-]x", "/a", "/b"]
    await syncer.sync_up("/a", "/b")
    assert arguments() == ["/a", "/b"]
    with pytest.raises(ConfigError, match=r"\{options\} in sync_down_template"):
        await syncer.sync_down("/b", "/a", ["*.tmp"])
    with pytest.raises(ConfigError, match="give exclude_template"):
        await CommandSyncer(BOTH, BOTH, "tool {target}").sync_up("/a", "/b", ["*.tmp"])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("tool {source}", r"has no \{target\}"),
        ("tool {target}", r"has no \{source\}"),
        ("", r"has no \{source\}, \{target\}"),
        ("tool {source} {target} {bucket}", r"has \{bucket\}, which stands for nothing"),
        ("tool 'of {source} {target}", "cannot be split"),
        ("tool --with={options} {source} {target}", "an argument by itself"),
        ("{source} {target}", "must begin with a command"),
        ("AWS_SECRET_ACCESS_KEY=hunter2 tool {source} {target}", "begin it with the command env"),
        ("cd {source} && tool {target}", "without a shell"),
        ("tool {source} {target} > /dev/null", "without a shell"),
        ("tool {source} {target} 2>&1", "without a shell"),
        ("tool {source} {target} | tee log", "without a shell"),
        ("tool {source} {target} --endpoint $ENDPOINT", "without a shell"),
        ("tool {source} {target} --endpoint ${ENDPOINT}", "without a shell"),
        ("tool {source} {target} --log ~/log", "without a shell"),
        (7, "must be a text, not int"),
    ],
    ids=repr,
)
def test_a_template_that_cannot_work_is_refused_where_it_is_given(template, why):
    with pytest.raises(ConfigError, match=f"^sync_up_template.*{why}") as refused:
        CommandSyncer(template, BOTH, "tool {target}")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"^sync_down_template"):
        CommandSyncer(BOTH, template, "tool {target}")


def test_other_templates_that_cannot_work():
    with pytest.raises(ConfigError, match=r"delete_template has \{source\}"):
        CommandSyncer(BOTH, BOTH, BOTH)
    with pytest.raises(ConfigError, match=r"exclude_template has no \{pattern\}"):
        CommandSyncer("tool {options} {source} {target}", BOTH, "tool {target}", exclude_template="-x")
    with pytest.raises(ConfigError, match=r"no template has \{options\}"):
        CommandSyncer(BOTH, BOTH, "tool {target}", exclude_template="-x {pattern}")


def test_it_is_a_syncer_that_shows_no_secrets():
    syncer = CommandSyncer("/opt/tool --password hunter2 {source} {target}", BOTH, "tool {target}")
    assert isinstance(syncer, Syncer)
    assert repr(syncer) == "<CommandSyncer: tool>"


async def test_a_failure_has_the_end_of_the_output_without_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    script = (
        "import os, sys\n"
        "print('much ' * 2000)\n"
        "print('the key is ' + os.environ['AWS_SECRET_ACCESS_KEY'])\n"
        "print('fatal error: https://me:hunter2@host/x?sig=hunter2 denied', file=sys.stderr)\n"
        "sys.exit(5)\n"
    )
    with pytest.raises(StorageError) as failed:
        await saying(script).sync_up("/a", "s3://bucket/x")
    error, text = failed.value, str(failed.value)
    assert (error.operation, error.key, error.retryable) == ("sync_up", "s3://bucket/x", True)
    assert "sync_up, s3://bucket/x: the command" in text
    assert "ended with exit code 5; its output ends with: ... " in text
    assert text.endswith("the key is [...]\nfatal error: https://host/x?[...] denied")
    assert len(text) < 2300
    assert "hunter2" not in text


async def test_the_secrets_of_a_template_are_not_in_the_output_either():
    command = f"{shlex.quote(sys.executable)} -c 'import sys; sys.exit(str(sys.argv))' --secret opensesame"
    syncer = CommandSyncer(f"{command} {{source}} {{target}}", BOTH, "tool {target}")
    with pytest.raises(StorageError) as failed:
        await syncer.sync_up("/a", "/b")
    assert "opensesame" not in str(failed.value)
    assert "'--secret', '[...]', '/a', '/b'" in str(failed.value)


async def test_a_silent_failure_and_a_signal():
    with pytest.raises(StorageError, match=r"delete, /b: .* exit code 1, and said nothing"):
        await saying("import sys; sys.exit(1)").delete("/b")
    with pytest.raises(StorageError, match="was killed by SIGTERM"):
        await saying("import os; os.kill(os.getpid(), 15)").sync_down("/b", "/a")


@pytest.mark.parametrize("argument", ["/a", "a\0b"], ids=["missing", "NUL"])
async def test_a_command_that_cannot_be_started(argument):
    syncer = CommandSyncer("no-such-tool-of-anybody {source} {target}", BOTH, "tool {target}")
    with pytest.raises(
        StorageError, match=r"'no-such-tool-of-anybody' cannot be started: .*; install it"
    ) as failed:
        await syncer.sync_up(argument, "s3://bucket/x")
    assert not failed.value.retryable


async def test_a_timeout_ends_the_command_and_what_it_started(tmp_path):
    script = tmp_path / "hang.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open(sys.argv[1], 'w').write(f'{child.pid}\\n')\n"
        "time.sleep(60)\n"
    )
    command = f"{shlex.quote(sys.executable)} {script} {tmp_path / 'pid'}"
    clock = ManualClock()
    calls = SyncerCalls(
        CommandSyncer(f"{command} {{source}} {{target}}", BOTH, "tool {target}"), timeout_s=30, clock=clock
    )
    task = asyncio.create_task(calls.up("/a", "/b"))
    child = await pid_in(tmp_path / "pid")
    await clock.advance(29)
    assert not task.done()
    await clock.advance(1)
    with pytest.raises(StorageError, match="did not end within 30 s") as failed:
        await task
    assert failed.value.retryable
    await until(lambda: not is_alive(child))


async def test_commands_of_both_directions_and_their_errors_pass_through_the_calls():
    calls = SyncerCalls(saying("import sys; sys.exit('no')"), timeout_s=60, clock=SystemClock())
    with pytest.raises(StorageError, match=r"ends with: no$"):
        await calls.down("/b", "/a")
