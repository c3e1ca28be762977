"""Fixtures: small shards, and runs on them that compare to the digit."""

from dataclasses import replace

import pytest
import torch
from support.training import QUICK, write_shards

from i3d.tasks.train import train


@pytest.fixture(autouse=True)
def one_thread(threads_stay):
    """With a given number of threads PyTorch's CPU kernels are deterministic."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """The curves take longer to draw than to compute here; `test_the_curves_are_drawn` does."""
    monkeypatch.setattr("i3d.tasks.train.run._plot", lambda *_: None)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Thirteen videos of 4 to 40 frames, in three shards."""
    folder = tmp_path_factory.mktemp("train")
    return write_shards(folder, [4, 40, 12, *(10 + i for i in range(10))])


@pytest.fixture(scope="session")
def val(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("val"), [20, 21, 22, 23, 24, 25, 12, 13, 30])


@pytest.fixture
def run(shards, tmp_path):
    """Function: changed options -> (outcome, folder of the run)."""

    def run(name="run", *, stream="rgb", init="scratch", val=None, data=shards, **changes):
        options = replace(QUICK, **({"width": None} if init != "scratch" else {}), **changes)
        output = tmp_path / name
        return train(
            data, stream=stream, output=output, init=init, val=val, options=options
        ), output

    return run
