"""Videos of which something was lost are used as far as possible, counted and named."""

import json
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
from support.bundles import save_pair, small_model
from support.command import exit_code
from support.pages import read
from support.videos import noise_images, write_video

from i3d.data.videos import VideoSet
from i3d.tasks.evaluate import logits as task
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.evaluate.page import write_page
from i3d.tasks.evaluate.predictions import fuse, read_predictions, write_predictions
from i3d.tasks.fvd.run import fvd, save_set
from i3d.tasks.options import ComputeOptions
from i3d.tasks.precompute.options import Settings, Work
from i3d.tasks.precompute.writing import precompute
from i3d.video import VideoReader

CLASSES = ("archery", "bowling", "clapping")
PRESET = "kinetics-i3d-48"
FAST = EvaluateOptions(frames=40, workers=0, device="cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # of few videos, and of sorted folders


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos in class folders; that of bowling was cut short."""
    root = tmp_path_factory.mktemp("cut") / "val"
    for seed, name in enumerate(CLASSES):
        images = [cv2.GaussianBlur(x, (0, 0), 1) for x in noise_images(40, 80, 56, seed)]
        path = write_video(root / name / "v.mkv", images)
    path = root / "bowling" / "v.mkv"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    return root


@pytest.fixture(scope="module")
def damage(videos):
    """What FFmpeg's last byte says of it."""
    size = (videos / "bowling" / "v.mkv").stat().st_size
    return f"the file ends after {size:,} of "


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return save_pair(folder, classes=CLASSES, num_classes=3, preset=PRESET)


def labelled(videos):
    return VideoSet(videos, classes="folders")


def test_evaluate_names_them(videos, damage, checkpoints, capfd):
    arguments = (
        *("evaluate", videos, "--classes", "folders", "--rgb-checkpoint", checkpoints["rgb"]),
        *("--frames", 40, "--device", "cpu", "--workers", 1),
    )
    assert exit_code(*arguments, "--json") == 0
    report = json.loads(capfd.readouterr().out)
    ((name, text),) = [(d["video"], d["damage"]) for d in report["damaged"]]
    assert name == "bowling/v" and text.startswith(damage)
    assert (report["evaluated"], report["skipped"]) == (3, [])
    assert exit_code(*arguments) == 0
    out = capfd.readouterr().out
    assert "3 of 3 videos evaluated, 0 skipped, 1 of the evaluated damaged" in out
    assert f"\ndamaged bowling/v: {damage}" in out


def test_shards_keep_the_damage_of_their_videos(videos, damage, checkpoints, tmp_path):
    settings, work = Settings(short_side=48, clips_per_shard=2), Work(workers=1)
    precompute(labelled(videos), tmp_path / "shards", settings=settings, work=work)
    found = evaluate(tmp_path / "shards", {"rgb": checkpoints["rgb"]}, options=FAST).evaluation
    ((key, text),) = [(d.key, d.damage) for d in found.predictions.about.damaged]
    assert key == "bowling/v" and damage in text
    write_page(found, tmp_path / "page.html")
    table = read(tmp_path / "page.html").one(id="damaged").one("table")
    assert table.rows() == [["bowling/v", text]]


def test_it_outlives_an_interruption_and_the_predictions_file(
    videos, damage, checkpoints, tmp_path, monkeypatch
):
    """What an interrupted run found is in its parts; then it is in the file, and in a fusion."""
    predictions = tmp_path / "p.csv"
    options = replace(FAST, batch_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(task, "_join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(
                labelled(videos),
                {"rgb": checkpoints["rgb"]},
                options=options,
                predictions=predictions,
            )
    found = evaluate(
        labelled(videos), {"rgb": checkpoints["rgb"]}, options=options, predictions=predictions
    )
    assert found.evaluation.cost.videos == 0
    (one,) = found.evaluation.predictions.about.damaged
    assert one.key == "bowling/v" and one.damage.startswith(damage)
    flow = evaluate(labelled(videos), {"flow": checkpoints["flow"]}, options=FAST)
    write_predictions(tmp_path / "flow.parquet", flow.evaluation.predictions)
    names = [predictions, tmp_path / "flow.parquet"]
    tables = [read_predictions(path) for path in names]
    assert [table.about.damaged for table in tables] == [(one,), (one,)]
    assert fuse(tables, list(map(str, names))).about.damaged == (one,)


def interrupt(*_):
    raise KeyboardInterrupt


def test_fvd_counts_and_names_them(videos, tmp_path):
    """FVD decodes no further than its frames, among which these bytes are."""
    real = tmp_path / "real"
    for name in ("a.mp4", "b.mp4"):
        path = write_video(real / name, noise_images(40, 80, 56, 3))
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 3000] = bytes(3000)
    path.write_bytes(data)
    model = small_model(classes=CLASSES, num_classes=3, width=1 / 16)
    options = ComputeOptions(workers=0, device="cpu")
    how = {"checkpoint": model, "changes": {"frames": 16, "stride": 2}, "options": options}
    fake = tmp_path / "fake.npy"
    np.save(fake, np.random.default_rng(0).integers(0, 255, (2, 31, 16, 16, 3), np.uint8))
    result = fvd(real, fake, **how).as_dict()
    assert (result["real"]["used"], result["real"]["damaged"]) == (2, 1)
    (named,) = result["real"]["damages"]
    with VideoReader(path, fps=None) as reader:
        list(islice(reader, 31))
        assert named == {"video": "b", "damage": reader.damage.removeprefix(f"{path}: ")}
    assert (result["fake"]["damaged"], result["fake"]["damages"]) == (0, [])
    saved = save_set(real, tmp_path / "real.npz", **how)
    assert f"1 of the used ones are damaged\n  b: {named['damage']}" in str(saved)
    again = fvd(tmp_path / "real.npz", fake, **how).as_dict()
    assert again["real"]["damaged"] == 1 and again["fvd"] == pytest.approx(result["fvd"])
