"""A run from the outside: it learns, logs and draws; the command and a URL."""

import json
import resource
from dataclasses import replace

import cv2
import numpy as np
import pytest
from support.training import QUICK, column, command, equal, rows, weights

from i3d import files
from i3d.cli import main
from i3d.errors import I3DError
from i3d.tasks.train import train
from i3d.tasks.train.state import History, LogRow, Logs

LEARNING = {"epochs": 20, "batch_size": 12, "learning_rate": 0.01, "dropout": 0.0, "val_every": 99}


@pytest.mark.parametrize(("stream", "recipe"), [("rgb", "original"), ("flow", "finetune")])
def test_it_learns(run, val, stream, recipe):
    """Classes that differ clearly: the loss falls, and all is right at the end."""
    outcome, folder = run(stream=stream, val=val, recipe=recipe, **LEARNING)
    loss = column(folder, "loss")
    assert loss[0] > 0.8 and loss[-1] < 0.2, loss
    assert outcome.log.top1 == 1
    assert outcome.validation.top1 == 1 and outcome.validation.videos == 9


def test_the_curves_are_drawn(run, val, monkeypatch):
    monkeypatch.undo()
    _, folder = run(val=val)
    picture = cv2.imread(str(folder / "curves.png"))
    assert picture.shape[1] > 600 and picture.std() > 5


def test_tensorboard_has_the_log(run, val):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    _, folder = run(val=val)
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    loss = {e.step: e.value for e in events.Scalars("train/loss")}
    assert loss == {r["step"]: pytest.approx(r["loss"], rel=1e-6) for r in rows(folder)}
    top1 = {e.step: e.value for e in events.Scalars("validation/top1")}
    assert top1 == {r["step"]: pytest.approx(r["top1"]) for r in rows(folder, "validation.csv")}


@pytest.mark.parametrize("tensorboard", [True, False])
def test_a_row_for_which_there_is_no_room_names_its_file(tmp_path, tensorboard, capsys):
    logs = Logs(tmp_path, History(), tensorboard=tensorboard, step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            for step in range(1, 100):
                logs.add(LogRow(step, 1, 0.5, 0.5, 0.1, 1.0), clips_per_second=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ("tensorboard" if tensorboard else "log.csv") in caught.value.filename
    assert capsys.readouterr().err == ""


def test_rows_are_means_over_their_steps(run):
    _, each = run("each")
    _, some = run("some", log_steps=2)
    steps = column(some, "step")
    assert steps.tolist() == [2, 3, 4, 6]  # an epoch of three steps ends a row
    for name in ("loss", "top1"):
        one = column(each, name)
        joined = [one[:2].mean(), one[2], one[3], one[4:].mean()]
        np.testing.assert_allclose(column(some, name), joined, rtol=1e-12)
    equal(weights(each), weights(some))


def test_the_command_line(shards, val, tmp_path, capsys):
    arguments = command(shards, tmp_path / "run", "--val", str(val), "--json", epochs=2)[3:]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    output = capsys.readouterr()
    assert done.value.code == 0, output.err
    report = json.loads(output.out)
    assert (report["steps"], report["epochs"], report["clips_per_step"]) == (6, 2, 4)
    assert report["validation"]["videos"] == 9 and report["best"]["epoch"] in (1, 2)
    assert report["last_checkpoint"] == str(tmp_path / "run" / "last.safetensors")
    assert "13 of 13 videos" in output.err and "384 clips, 4 here" in output.err
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--no-resume"])
    output = capsys.readouterr()
    assert done.value.code == 2 and "--no-resume" in output.err and not output.out
    with pytest.raises(SystemExit) as done:
        main([word for word in arguments if word != "--json"])  # there is nothing left to do
    assert done.value.code == 0
    assert "6 steps of 4 clips" in capsys.readouterr().out


def test_a_url_for_the_run(shards, val, tmp_path, capsys):
    url = f"memory://{tmp_path.name}/run"
    options = replace(QUICK, steps=4, epochs=None)
    train(shards, stream="rgb", output=url, val=val, options=options, progress=True)
    assert "TensorBoard" in capsys.readouterr().err
    there = set(files.names_in(url))
    kept = ("state.pt", "last.safetensors", "best.safetensors", "log.csv", "validation.csv")
    assert there == set(kept)
    with pytest.raises(I3DError, match="not empty"):
        train(shards, stream="rgb", output=url, val=val, options=options, resume=False)
    outcome = train(shards, stream="rgb", output=url, val=val, options=options)
    assert outcome.steps == 4
