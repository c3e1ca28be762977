"""What is refused before a run begins."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.training import CLASSES, PRESET, QUICK, checkpoint, write_shards

from i3d.clips import Views
from i3d.data.reading.clips import clip_bytes
from i3d.errors import CheckpointError, DatasetError, UsageError
from i3d.parallel import ahead
from i3d.parallel.world import World
from i3d.presets import find_preset
from i3d.tasks.train import RunOptions, train
from i3d.tasks.train.plan import make_plan


def test_classes_presets_and_streams_must_agree(run, shards, tmp_path):
    def other(name, **changes):
        return write_shards(tmp_path / name, [9] * 4, **changes)

    with pytest.raises(DatasetError, match=r"labelled with 4 classes and .* with 3"):
        run(val=other("more", classes=(*CLASSES, "diving")))
    with pytest.raises(DatasetError, match=r"others \(class 1 is 'clapping' there and 'bowling'"):
        run(val=other("swapped", classes=("archery", "clapping", "bowling")))
    with pytest.raises(DatasetError, match="preset kinetics-i3d-36"):
        run(val=other("preset", preset="kinetics-i3d-36"))
    with pytest.raises(DatasetError, match="no labels"):
        keys = [f"{CLASSES[i % 3]}/{i:02d}" for i in range(4)]
        run(data=other("unlabelled", classes=None, unlabelled=keys))
    with pytest.raises(UsageError, match="made without flow"):
        run(data=other("rgb", streams=1), stream="flow")
    with pytest.raises(UsageError, match=r"a step takes 4 clips .* there are 3 videos"):
        run(data=write_shards(tmp_path / "three", [9] * 3))
    for name, changes, message in (
        ("stream", {"stream": "flow"}, "network for flow, not for rgb"),
        ("preset", {"preset": "kinetics-i3d"}, "preset kinetics-i3d, and the shards"),
    ):
        init = checkpoint(tmp_path, name, **changes)
        with pytest.raises(CheckpointError, match=message):
            run(init=str(init))
    with pytest.raises(UsageError, match="no such checkpoint"):
        run(init="no/such.npz")
    with pytest.raises(CheckpointError, match="no such file"):
        run(init="inflate:no/such.safetensors")
    with pytest.raises(UsageError, match="fp16 trains on CUDA alone"):
        run(precision="fp16")
    with pytest.raises(UsageError, match="has its own"):
        train(shards, stream="rgb", output=tmp_path / "x", init="y.npz", options=QUICK)
    assert not (tmp_path / "run").exists()


def test_processes_of_a_node_share_its_memory(shards, tmp_path, monkeypatch):
    """What is enough for the two workers of one process is not for those of four."""
    batch_bytes = 3 * clip_bytes(Views(16), find_preset(PRESET))
    free = 2 * ahead.PREFETCH * batch_bytes
    monkeypatch.setattr(ahead, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    options = replace(QUICK, batch_size=3, workers=2)
    run = RunOptions("rgb", str(tmp_path / "run"))
    assert make_plan(shards, run, options, World()).workers == 2
    with pytest.raises(UsageError, match=r"8 workers need .* pass --workers 0"):
        make_plan(shards, run, options, World(0, 4, local_size=4))
    assert make_plan(shards, run, replace(options, workers=0), World(0, 4, local_size=4))
