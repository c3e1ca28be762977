"""Training on the Chainer program's folders."""

from dataclasses import replace

import pytest
from support.bundles import save_pair
from support.chainer_folders import Sample, moving_video, write_shard

import i3d
from i3d.errors import UsageError
from i3d.tasks.train import TrainOptions, train

CLASSES = ("archery", "bowling", "zumba")
ONE_STEP = TrainOptions(steps=1, batch_size=2, frames=9, workers=0, device="cpu", log_steps=1)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Two videos of the first and the last class, with flow."""
    folder = tmp_path_factory.mktemp("chainer") / "train"
    samples = [Sample(label, *moving_video(10, seed=label)) for label in (0, 2)]
    write_shard(folder / "shard_0_0.zip", samples)
    return folder


def test_labels_mean_the_checkpoints_classes(tmp_path, old):
    """Its classifier stays, and the validation counts by the same list."""
    flow = save_pair(tmp_path, num_classes=3, classes=CLASSES)["flow"]
    with pytest.warns(UserWarning, match="labels have no names"):
        trained = train(
            old, stream="flow", output=tmp_path / "run", init=str(flow), val=old, options=ONE_STEP
        )
    assert (trained.classes, trained.videos, trained.validation.videos) == (3, 2, 2)
    model = i3d.load(tmp_path / "run" / "best.safetensors")
    assert (model.classes, model.preset) == (CLASSES, "chainer-i3d")


def test_labels_have_the_names_that_are_given(tmp_path, old):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    options = replace(ONE_STEP, width=0.125)
    train(old, stream="rgb", output=tmp_path / "run", val=old, classes=str(names), options=options)
    assert i3d.load(tmp_path / "run" / "best.safetensors").classes == CLASSES


def test_numbers_alone_are_refused_from_nothing(tmp_path, old):
    with pytest.raises(UsageError, match="numbers without names; name them by --classes"):
        train(old, stream="rgb", output=tmp_path / "run", options=ONE_STEP)
    small = save_pair(tmp_path, num_classes=2, classes=CLASSES[:2])["rgb"]
    with pytest.raises(UsageError, match=r"3 numbers without names, and .* has 2 names"):
        train(old, stream="rgb", output=tmp_path / "run", init=str(small), options=ONE_STEP)
