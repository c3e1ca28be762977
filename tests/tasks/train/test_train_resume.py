"""Killed, stopped and resumed: the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from support.training import (
    QUICK,
    assert_same_run,
    command,
    finished,
    started,
    wait_for,
)

from i3d.cli import main
from i3d.errors import CheckpointError, UsageError
from i3d.tasks.train import train, validation
from i3d.tasks.train.learner import Learner
from i3d.tasks.train.state import read_state


def lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


FULL = {"epochs": 8, "save_steps": 2, "ema": 0.9}


@pytest.fixture(scope="module")
def undisturbed(shards, val, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    torch.set_num_threads(1)
    train(shards, stream="rgb", output=output, val=val, options=replace(QUICK, **FULL))
    return output


def kill_and_resume(shards, val, output, moments):
    """Kill the command where the log has so many rows, again and again; then let it finish."""
    arguments = command(shards, output, "--resume", "--val", str(val), **(FULL | {"workers": 1}))
    for wanted in moments:
        (process,) = started(arguments)
        wait_for(lambda: lines(output / "log.csv") > wanted or process.poll() is not None)  # noqa: B023
        time.sleep(random.random() * 0.1)
        process.kill()
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, error
    ((_, error),) = finished(started(arguments))
    assert "going on after step" in error and "to the digit" in error
    assert not [p.name for p in output.iterdir() if p.name.endswith(".tmp")]


def test_kill_9_and_resume_gives_the_same_bytes(shards, val, undisturbed, tmp_path):
    """Also in another process than the undisturbed run's, and with a worker that reads ahead."""
    moment = random.randint(3, 19)
    kill_and_resume(shards, val, tmp_path / "run", [moment])
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_many_kills(shards, val, undisturbed, tmp_path):
    moments = sorted(random.choices(range(1, 22), k=10))
    kill_and_resume(shards, val, tmp_path / "run", moments)
    assert_same_run(undisturbed, tmp_path / "run")


def test_equal_runs_leave_equal_files(run):
    _, one = run("one")
    _, other = run("other")
    for name in ("state.pt", "log.csv", "last.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
        mode = (one / name).stat().st_mode & 0o777
        assert mode == (one / "log.csv").stat().st_mode & 0o777, f"{name} has {mode:o}"


def test_a_kill_before_the_first_save(run, tmp_path, monkeypatch):
    """The same command goes on from whatever is there."""
    _, whole = run("whole")
    output = tmp_path / "broken"
    output.mkdir()
    (output / ".state.0123456789ab.tmp.pt").write_bytes(b"half")  # killed in the very first write

    def killed(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Learner, "update", killed)
        run("broken")
    run("broken")
    for name in ("state.pt", "log.csv", "last.safetensors"):
        assert (whole / name).read_bytes() == (output / name).read_bytes(), name
    assert not [p.name for p in output.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_and_saves(
    shards, val, undisturbed, tmp_path, capsys, monkeypatch, sent
):
    output = tmp_path / "run"
    forward = Learner._forward_and_backward
    arguments = command(shards, output, "--val", str(val), **(FULL | {"save_steps": 1000}))[3:]
    calls = []

    def interrupted(self, *batch):
        calls.append(batch)
        if len(calls) == 11:  # a batch is a step
            os.kill(os.getpid(), sent)
        return forward(self, *batch)

    before = signal.getsignal(sent)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr(Learner, "_forward_and_backward", interrupted)
        main(arguments)
    error = capsys.readouterr().err
    assert done.value.code == 130 and "stopped after step 11, which is saved" in error
    assert signal.getsignal(sent) == before
    assert read_state(output)["position"] == {"step": 11, "epoch": 3, "step_in_epoch": 2}
    with pytest.raises(SystemExit) as done:
        main(arguments)  # the same command goes on
    assert done.value.code == 0
    # save_steps may differ, and is no part of the outcome
    for name in ("log.csv", "validation.csv", "last.safetensors", "best.safetensors"):
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_kill_before_the_validation_is_over(run, shards, val, tmp_path, monkeypatch):
    _, whole = run("whole", val=val)
    evaluate = validation.evaluate
    calls = []

    def killed_in_the_second(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return evaluate(*arguments, **options)

    monkeypatch.setattr(validation, "evaluate", killed_in_the_second)
    with pytest.raises(MemoryError):
        run("broken", val=val)
    options = {"stream": "rgb", "output": tmp_path / "broken", "val": val, "options": QUICK}
    train(shards, resume=True, **options)
    assert len(calls) == 3
    assert_same_run(whole, tmp_path / "broken")
    # and once more: there is nothing left to do
    outcome = train(shards, resume=True, **options)
    assert len(calls) == 3 and outcome.steps == 6 and outcome.clips_per_second == 0
    assert_same_run(whole, tmp_path / "broken")


def test_other_settings_are_not_mixed_in(run, shards, val, tmp_path, capsys):
    _, folder = run(epochs=1)
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(UsageError, match=r"not empty, and --no-resume"):
        train(shards, stream="rgb", output=folder, options=QUICK, resume=False)
    with pytest.raises(UsageError, match="begun with other settings: total_steps"):
        run()  # without a word it goes on, and these settings are others
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="not empty and holds no run"):
        train(shards, stream="rgb", output=tmp_path / "other", options=QUICK)

    def again(options, **changes):
        arguments = {"stream": "rgb", "output": folder, "resume": True} | changes
        return train(shards, options=options, **arguments)

    one_epoch = replace(QUICK, epochs=1)
    for options, changes, message in (
        (replace(one_epoch, learning_rate=0.5), {}, r"learning_rate: 0\.002, now 0\.5"),
        (QUICK, {}, "total_steps: 3, now 6"),
        (one_epoch, {"val": val}, "val: null, now "),
        (one_epoch, {"stream": "flow"}, 'stream: "rgb", now "flow"'),
        (replace(one_epoch, seed=1, ema=0.5), {}, r"ema: null, now 0\.5; seed: 0, now 1"),
        (replace(one_epoch, batch_size=2), {}, "clips_per_step: 4, now 2"),
    ):
        with pytest.raises(UsageError, match=message):
            again(options, **changes)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == kept
    # What only divides the work may change.
    again(
        replace(one_epoch, batch_size=2, accumulate=2, save_steps=7),
        progress=True,
    )
    assert "batch_size 4 -> 2" in capsys.readouterr().err


def test_a_damaged_state_is_one_line(run, shards, tmp_path):
    _, folder = run(epochs=1)
    path = folder / "state.pt"
    data = path.read_bytes()
    for damage in (data[: len(data) // 2], b"", b"hello"):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"state\.pt: not the state") as error:
            train(shards, stream="rgb", output=folder, options=QUICK, resume=True)
        assert len(str(error.value).splitlines()) == 1
    torch.save({"format": "else"}, path)
    with pytest.raises(CheckpointError, match="not a state"):
        train(shards, stream="rgb", output=folder, options=QUICK, resume=True)


def without(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def replaced(value, *path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def first_buffer(state):
    return next(iter(state["optimizer"]["state"].values()))


@pytest.mark.parametrize(
    "change",
    [
        *(without(key) for key in ("settings", "division", "config", "new_head", "network")),
        *(without(key) for key in ("optimizer", "scaler", "random", "position", "totals")),
        *(without("position", "step"), without("history", "log"), without("random", "torch")),
        *(without("network", "Logits.Conv3d_0c_1x1.bias"), without("optimizer", "state")),
        *(without("optimizer", "param_groups", 0, "momentum"), replaced([], "settings")),
        *(replaced(None, "division"), replaced("x", "config", "width"), replaced(1, "new_head")),
        *(replaced(1 << 40, "config", "num_classes"), replaced("flow", "config", "stream")),
        *(replaced(-1, "position", "step"), replaced(99, "position", "step")),
        *(replaced("0", "position", "step"), replaced(float("nan"), "totals", "loss")),
        *(replaced([1], "history"), replaced([(1, 2)], "history", "log")),
        *(replaced([("x",) * 6], "history", "log"), replaced(None, "random", "torch")),
        *(replaced(torch.zeros(4), "network", "Logits.Conv3d_0c_1x1.bias"),),
        *(replaced(0.5, "optimizer", "param_groups", 0, "momentum"),),
        lambda state: first_buffer(state).update(momentum_buffer=torch.zeros(2, 2)),
        lambda state: first_buffer(state).update(momentum_buffer="x"),
    ],
)
def test_a_state_of_other_parts_is_one_line(ended, shards, tmp_path, change):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    state = read_state(folder)
    change(state)
    torch.save(state, folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"run/state\.pt: not the state of a") as error:
        train(shards, stream="rgb", output=folder, options=replace(QUICK, epochs=1), resume=True)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and "begin anew in another folder" in message


@pytest.fixture(scope="module")
def ended(shards, tmp_path_factory):
    """A run of one epoch, which is over."""
    output = tmp_path_factory.mktemp("ended") / "run"
    train(shards, stream="rgb", output=output, options=replace(QUICK, epochs=1))
    return output


def test_an_ended_run_goes_on_and_ends(ended, shards, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(ended, folder)
    train(shards, stream="rgb", output=folder, options=replace(QUICK, epochs=1), resume=True)
    assert (folder / "last.safetensors").read_bytes() == (ended / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_killed_give_the_same_bytes(shards, val, tmp_path):
    options = FULL | {"batch_size": 2, "epochs": 5}
    runs = {}
    for name in ("whole", "killed"):
        flags = ("--resume", "--sync-batch-norm", "--val", str(val))
        arguments = command(shards, tmp_path / name, *flags, **options)
        if name == "killed":
            processes = started(arguments, 2)
            wait_for(lambda: lines(tmp_path / "killed" / "log.csv") > 7)
            for process in processes:
                process.kill()
                process.communicate()
        finished(started(arguments, 2))
        runs[name] = tmp_path / name
    assert_same_run(runs["whole"], runs["killed"])
