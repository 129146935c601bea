"""Each command on a real experiment, in this process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from asynctune import ExperimentStore
from asynctune.files import LocalFiles
from asynctune.inspect.cli import main
from asynctune.inspect.reading import Inspection
from asynctune.state import codec
from tests.inspect_cli.stores import ask, build, flip, show, tree


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "digits"
    return path, build(path)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_summary_tells_what_happened_and_changes_nothing(made, capsys):
    path, ids = made
    before = tree(path)
    code, text, errors = show(capsys, path)
    assert (code, errors) == (0, "")
    assert f"location    {path}" in text
    assert "trials      5: 1 PENDING, 1 RUNNING, 2 TERMINATED, 1 ERROR" in text
    assert f"the last, pid {os.getpid()} on " in text
    assert "closed just now; 1 RUNNING trial has no live driver" in text
    assert "metadata    note=first try" in text
    rows = text.split("\n\n")[1].splitlines()
    assert rows[0].split() == [
        "trial",
        "status",
        "loss",
        "eval/acc",
        "lr",
        "iter",
        "ckpt",
        "time",
        "fails",
        "error",
    ]
    assert rows[1].split()[:7] == [ids[0], "TERMINATED", "0.5000", "0.5000", "0.1", "2", "2"]
    assert rows[3].split()[:3] == [ids[2], "RUNNING", "nan"]
    assert rows[4].endswith("ValueError: no such layer")
    assert tree(path) == before


def test_the_document_says_the_same(made, capsys):
    path, ids = made
    code, document = ask(capsys, path)
    assert code == 0
    assert document["kind"] == "summary"
    assert document["experiment"]["writer"]["state"] == "closed"
    assert document["experiment"]["metadata"] == {"note": "first try"}
    assert document["trials_by_status"] == {
        "PENDING": 1,
        "RUNNING": 1,
        "PAUSED": 0,
        "TERMINATED": 2,
        "ERROR": 1,
    }
    assert [trial["trial_id"] for trial in document["trials"]] == ids
    assert document["trials"][0]["config"] == {"lr": 0.1, "units": 64}
    assert document["trials"][0]["checkpoint_presence"] == "present"
    assert document["trials"][2]["last_result"]["loss"] == "NaN"
    assert document["trials"][3]["error"] == "ValueError: no such layer"
    assert document["problems"] == []


@pytest.mark.parametrize(
    "command",
    [["trials"], ["checkpoints"], ["verify"], ["best", "--metric", "loss", "--mode", "min"]],
    ids=lambda command: command[0],
)
def test_the_command_may_come_before_the_location(made, capsys, command):
    path, _ = made
    code, one = ask(capsys, path, *command)
    other_code, other = ask(capsys, command[0], path, *command[1:])
    for document in (one, other):
        del document["experiment"]["as_of"]
    assert (code, one) == (other_code, other)
    assert one["kind"] == command[0]


def test_trials_can_be_filtered_sorted_and_limited(made, capsys):
    path, ids = made
    _, document = ask(capsys, path, "trials", "--status", "terminated,error", "--sort", "-loss")
    assert [trial["trial_id"] for trial in document["trials"]] == [ids[3], ids[0], ids[1]]
    assert document["trials_matching"] == 3
    _, document = ask(capsys, path, "trials", "--sort", "eval/acc", "--limit", 2)
    assert [trial["trial_id"] for trial in document["trials"]] == [ids[3], ids[0]]
    _, text, _ = show(capsys, path, "trials", "--limit", "2")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == [ids[2], ids[3]]
    assert "3 more trials are not shown (1 PENDING, 2 TERMINATED)" in text


def test_columns_can_be_chosen(made, capsys):
    path, ids = made
    _, text, _ = show(
        capsys, path, "trials", "--columns", "loss,trial", "--columns", "config/lr", "--limit", "1"
    )
    assert text.splitlines()[:2] == ["loss  trial               lr", f" nan  {ids[2]}  0.0333333"]
    _, text, _ = show(capsys, path, "trials", "--metrics", "eval/acc")
    assert text.split()[:4] == ["trial", "status", "eval/acc", "lr"]


def test_without_a_terminal_nothing_is_cut(made, capsys, monkeypatch):
    path, _ = made
    monkeypatch.delenv("COLUMNS")
    _, text, _ = show(capsys, path, "checkpoints")
    assert "no room for" not in text
    assert str(path) in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_trial_is_shown_whole(made, capsys):
    path, ids = made
    _, text, _ = show(capsys, path, "trial", ids[3])
    assert "status      ERROR" in text
    assert "ValueError: no such layer" in text
    assert f"directory   {path / ids[3]}" in text
    code, document = ask(capsys, path, "trial", ids[1])
    assert code == 0
    assert [entry["step"] for entry in document["checkpoints"]] == [1, 2]
    assert document["checkpoints"][0]["files"] == {"sub/note.txt": 5, "weights.bin": 3000}
    assert Path(document["checkpoints"][0]["path"], "weights.bin").is_file()


def test_a_trial_is_known_by_its_name_too(tmp_path, capsys):
    async def begin() -> str:
        async with ExperimentStore.open(tmp_path / "named") as store:
            return store.add_trial({}, trial_name="first").trial_id

    trial_id = asyncio.run(begin())
    assert ask(capsys, tmp_path / "named", "trial", "first")[1]["trial"]["trial_id"] == trial_id
    assert ask(capsys, tmp_path / "named", "checkpoints", "first")[1]["trial_id"] == trial_id
    _, text, _ = show(capsys, tmp_path / "named", "trials")
    assert [line.split()[:3] for line in text.splitlines()] == [
        ["trial", "name", "status"],
        [trial_id, "first", "PENDING"],
    ]
    assert "did you mean first?" in show(capsys, tmp_path / "named", "trial", "frist")[2]


def test_checkpoints_of_one_trial_or_of_all(made, capsys):
    path, ids = made
    _, document = ask(capsys, path, "checkpoints")
    assert [(each["trial_id"], each["step"]) for each in document["checkpoints"]] == [
        (ids[0], 1),
        (ids[0], 2),
        (ids[1], 1),
        (ids[1], 2),
    ]
    assert document["size_bytes"] == 4 * 3005
    _, document = ask(capsys, path, "checkpoints", ids[1], "--limit", 1)
    assert [each["step"] for each in document["checkpoints"]] == [2]
    assert document["checkpoints_total"] == 2
    assert show(capsys, path, "checkpoints", ids[4])[:2] == (0, "no checkpoints\n")


@pytest.mark.parametrize("metric", ["loss", "eval/acc"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_trial_is_the_one_the_store_names(made, capsys, metric, mode):
    path, _ = made

    async def named() -> str:
        async with ExperimentStore.open(path, mode="read") as store:
            best = store.best_trial(metric, mode)
            assert best is not None
            return best.trial_id

    code, document = ask(capsys, path, "best", "--metric", metric, "--mode", mode)
    assert code == 0
    assert document["best"]["trial_id"] == asyncio.run(named())
    assert document["best"] == document["ranking"][0]
    assert document["trials_ranked"] == 3  # not NaN, not missing
    _, summary = ask(capsys, path, "--metric", metric, "--mode", mode)
    assert summary["best"]["trial_id"] == document["best"]["trial_id"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--metric", "loss"],
            "--metric loss needs --mode min or --mode max: the experiment names none of its own",
        ),
        (["trials", "--mode", "min"], "--mode needs --metric: the experiment names no metric of its own"),
        (["best"], "best by what? The experiment names no metric: give --metric NAME and --mode min|max"),
        (["best", "--metric", "loss"], "--metric loss needs --mode"),
        (["best", "--mode", "min"], "--mode needs --metric"),
    ],
)
def test_half_of_what_is_best_is_wrong_usage_where_the_experiment_does_not_say_the_rest(
    made, capsys, args, message
):
    code, text, errors = show(capsys, made[0], *args)
    assert (code, text) == (2, "")
    assert errors.startswith(f"error: {message}")
    assert ask(capsys, made[0], *args)[1]["exit_code"] == 2


@pytest.mark.parametrize("args", [["--metric", "loss"], ["--mode", "min"]], ids=lambda args: args[0])
def test_half_of_what_is_best_is_wrong_usage_for_a_directory(made, capsys, args):
    code, text, errors = show(capsys, made[0].parent, *args)
    assert (code, text) == (2, "")
    assert "for a directory of experiments" in errors


def test_the_best_trial_is_shown_with_what_made_it_so(made, capsys):
    path, ids = made
    _, text, _ = show(capsys, path, "best", "--metric", "loss", "--mode", "min")
    assert "loss = 0.2500 (min of 3 trials that reported it)" in text
    assert "lr     0.05" in text
    assert [line.split()[0] for line in text.partition("ranking\n")[2].splitlines()[1:]] == [
        ids[1],
        ids[0],
        ids[3],
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["summary"],
        ["trials"],
        ["trial", "ID"],
        ["checkpoints"],
        ["best", "--metric", "loss", "--mode", "min"],
        ["verify"],
    ],
    ids=lambda command: command[0],
)
def test_a_checkpoint_that_is_gone_is_a_problem_everywhere(made, capsys, command):
    path, ids = made
    shutil.rmtree(path / ids[1] / "checkpoint_000002")
    code, document = ask(capsys, path, *(ids[1] if word == "ID" else word for word in command))
    assert code == 1
    (problem,) = document["problems"]
    assert (problem["trial_id"], problem["step"]) == (ids[1], 2)
    assert problem["kind"] == ("damaged_checkpoint" if command == ["verify"] else "missing_checkpoint")


# -- what is not there, or not readable --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["missing", "a-file", "empty", "missing/below"])
def test_where_there_is_no_experiment(tmp_path, capsys, where):
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty").mkdir()
    code, text, errors = show(capsys, tmp_path / where)
    assert (code, text) == (3, "")
    assert errors.startswith(f"error: there is no experiment at {tmp_path / where}")
    code, document = ask(capsys, tmp_path / where, "verify")
    assert (code, document["kind"], document["exit_code"]) == (3, "error", 3)
    assert document["error"]["type"] == "ExperimentNotFoundError"


@pytest.mark.parametrize("where", ["ftp://host/x", "s3://key:secret@bucket/x", "", "nul\0byte"])
def test_what_is_no_place_for_an_experiment_is_wrong_usage(capsys, where):
    assert main([where]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_unknown_trial_is_answered_with_those_that_look_like_it(made, capsys):
    path, ids = made
    code, _, errors = show(capsys, path, "trial", ids[2].replace("0", "O", 1))
    assert code == 3
    assert "did you mean " in errors
    code, _, errors = show(capsys, path, "checkpoints", ids[2][-5:])
    assert (code, f"did you mean {ids[2]}?" in errors) == (3, True)
    code, _, errors = show(capsys, path, "trial", "\x1b[31m")
    assert (code, "\x1b" in errors) == (3, False)


@pytest.mark.parametrize(
    "args",
    [
        ["best", "--metric", "los", "--mode", "min"],
        ["trials", "--sort", "los"],
        ["trials", "--columns", "trial,los"],
        ["--metrics", "los"],
    ],
)
def test_an_unknown_metric_is_answered_with_those_there_are(made, capsys, args):
    path, _ = made
    code, text, errors = show(capsys, path, *args)
    assert (code, text) == (3, "")
    assert "no trial has the metric 'los'; did you mean loss? there are: loss, eval/acc" in errors


def test_columns_may_be_named_before_there_are_results(tmp_path, capsys):
    async def begin() -> None:
        async with ExperimentStore.open(tmp_path / "new") as store:
            store.add_trial({})

    asyncio.run(begin())
    assert show(capsys, tmp_path / "new", "trials", "--columns", "trial,loss")[0] == 0
    code, _, errors = show(capsys, tmp_path / "new", "best", "--metric", "loss", "--mode", "min")
    assert (code, "there is no metric of any kind yet" in errors) == (3, True)


def test_a_damaged_state_names_the_file_and_what_to_do(made, capsys):
    path, _ = made
    (segment,) = (path / ".asynctune").glob("wal-*")
    flip(segment, segment.stat().st_size // 2)
    code, text, errors = show(capsys, path)
    assert (code, text) == (1, "")
    assert str(segment) in errors
    assert "restore it from a backup" in errors
    code, document = ask(capsys, path)
    assert (code, document["error"]["type"]) == (1, "CorruptStateError")


@pytest.mark.parametrize("command", ["summary", "verify"])
def test_what_this_user_may_not_read_is_an_error(made, capsys, monkeypatch, command):
    def refuse(_files, path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(LocalFiles, "read", refuse)  # a real refusal does not happen to root
    code, text, errors = show(capsys, made[0], command)
    assert (code, text) == (1, "")
    assert "Permission denied" in errors
    assert "check that the directory and its files can be read" in errors


def test_a_newer_format_asks_for_an_upgrade(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(codec, "FORMAT_VERSION", codec.FORMAT_VERSION + 1)
        build(tmp_path / "newer")
    for command in ("summary", "verify"):
        code, _, errors = show(capsys, tmp_path / "newer", command)
        assert (code, "upgrade asynctune" in errors) == (1, True)


def test_control_c_is_exit_code_130(made, capsys, monkeypatch):
    async def interrupted(_opened, _query):
        raise KeyboardInterrupt

    monkeypatch.setattr(Inspection, "trials", interrupted)
    code, text, errors = show(capsys, made[0])
    assert (code, text, errors.strip()) == (130, "", "")


# -- a directory of experiments ----------------------------------------------------------------------------


def test_a_directory_of_experiments_is_listed(tmp_path, capsys):
    build(tmp_path / "one")
    build(tmp_path / "two")
    (tmp_path / "other").mkdir()
    code, text, _ = show(capsys, tmp_path, "--metric", "loss", "--mode", "min")
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:6] == ["experiment", "driver", "changed", "trials", "pending", "running"]
    assert lines[0][6:] == ["terminated", "error", "best", "loss", "best", "trial"]
    assert [line[0] for line in lines[1:3]] == ["one", "two"]
    assert lines[1][-2] == "0.2500"
    assert text.endswith(f"2 experiments in {tmp_path}\n")
    code, document = ask(capsys, tmp_path)
    assert (code, document["kind"]) == (0, "experiments")
    assert [line["trials_by_status"]["TERMINATED"] for line in document["experiments"]] == [2, 2]


def test_an_experiment_that_cannot_be_read_is_a_line_and_a_problem(tmp_path, capsys):
    build(tmp_path / "good")
    build(tmp_path / "bad")
    (segment,) = (tmp_path / "bad" / ".asynctune").glob("wal-*")
    flip(segment, segment.stat().st_size // 2)
    (tmp_path / "cut-short" / ".asynctune").mkdir(parents=True)
    code, text, _ = show(capsys, tmp_path)
    assert code == 1
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [
        ["bad", "cannot", "be", "read"],
        ["cut-short", "not", "begun", "-"],
    ]
    _, document = ask(capsys, tmp_path)
    assert [(line["name"], line["begun"]) for line in document["experiments"]] == [
        ("bad", True),
        ("cut-short", False),
        ("good", True),
    ]
    assert [problem["kind"] for problem in document["problems"]] == ["unreadable"]


def test_other_commands_ask_which_experiment(tmp_path, capsys):
    build(tmp_path / "one")
    code, _, errors = show(capsys, tmp_path, "trials")
    assert (code, errors) == (2, f"error: {tmp_path} is a directory of 1 experiment; name one of them: one\n")


def test_names_that_are_not_utf8_can_be_shown(tmp_path, capsys):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    place.mkdir()
    build(place / "one")
    code, text, _ = show(capsys, place)
    assert code == 0
    assert "caf\\xe9" in text
    assert main([str(place / "one"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["experiment"]["location"].endswith("/caf\\xe9/one")


def test_a_metric_that_is_never_a_number_is_not_called_unknown(tmp_path, capsys):
    async def fill():
        async with ExperimentStore.open(tmp_path / "exp") as store:
            store.report(store.add_trial({}).trial_id, {"loss": float("nan")})

    asyncio.run(fill())
    code, text, errors = show(capsys, tmp_path / "exp", "best", "--metric", "loss", "--mode", "min")
    assert (code, text) == (3, "")
    assert "no trial has a number as its last 'loss' (NaN is none)" in errors
