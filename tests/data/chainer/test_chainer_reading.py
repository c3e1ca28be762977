"""Folders of the Chainer program, against what went into them."""

import zipfile

import cv2
import fsspec
import numpy as np
import pytest
from support.chainer_folders import Sample, encode, moving_video, write_classes, write_shard

from i3d.clips import dequantize_flow
from i3d.data.chainer import open_chainer_folder
from i3d.data.precomputed import open_precomputed
from i3d.data.videos import VideoSet, open_videos
from i3d.errors import DatasetError, UsageError
from i3d.presets import find_preset

LABELS = (2, 0, 7)


@pytest.fixture(scope="module")
def samples():
    """Three short videos with flow."""
    return [
        Sample(label, *moving_video(4 + i, height=40, width=60, seed=i))
        for i, label in enumerate(LABELS)
    ]


def write(layout, folder, samples):
    """Write a folder in one of the layouts; the samples in the order in which they are read."""
    if layout == "rank and number":
        write_shard(folder / "shard_0_0.zip", samples[:2])
        write_shard(folder / "shard_10_0.zip", samples[2:])
        (folder / "tmp").mkdir()  # the program left it
    elif layout == "number":
        write_shard(folder / "shard_2.zip", samples[:1])
        write_shard(folder / "shard_10.zip", samples[1:])
    else:
        write_classes(folder, samples)
        return sorted(samples, key=lambda sample: sample.label)
    return samples


LAYOUTS = ["rank and number", "number", "classes"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_went_in_comes_out(tmp_path, samples, layout):
    expected = write(layout, tmp_path, samples)
    dataset = open_precomputed(tmp_path)
    manifest = dataset.manifest
    assert (manifest.preset, manifest.streams) == ("chainer-i3d", ("rgb", "flow"))
    assert [s.class_index for s in manifest.samples()] == [s.label for s in expected]
    assert dataset.found == 3
    for planned, sample in zip(manifest.samples(), expected, strict=True):
        stored = dataset.find_sample(planned.key)
        frames = len(sample.members["rgb"])
        assert (stored.info.height, stored.info.width) == (40, 60)
        assert (stored.info.length("rgb"), stored.info.length("flow")) == (frames, frames - 1)
        part = stored.read(1, 3)
        np.testing.assert_array_equal(part.frames(), sample.pixels("rgb")[1:3])
        box = slice(3, 30), slice(8, 50)
        flow = dataset.read_sample(planned.key, streams=("flow",)).stored_flow(box=box)
        for axis, name in enumerate(("flow_x", "flow_y")):
            np.testing.assert_array_equal(flow[..., axis], sample.pixels(name)[:, 3:30, 8:50])


def test_keys_are_made_up_and_in_order(tmp_path, samples):
    for layout, keys in {
        "rank and number": ["shard_0_0/sample_0", "shard_0_0/sample_1", "shard_10_0/sample_0"],
        "number": ["shard_2/sample_0", "shard_10/sample_0", "shard_10/sample_1"],
        "classes": ["class_0/sample_1", "class_2/sample_0", "class_7/sample_2"],
    }.items():
        write(layout, tmp_path / layout, samples)
        manifest = open_chainer_folder(tmp_path / layout).manifest
        assert [sample.key for sample in manifest.samples()] == keys


def test_flow_reads_as_the_pixels_that_were_stored(tmp_path):
    """(f + 20) * 255 / 40, rounded: half a step is 0.078 pixels, and no motion is that far off."""
    flow = np.linspace(-20, 20, 40 * 60, dtype=np.float32).reshape(1, 40, 60, 1).repeat(2, -1)
    flow = np.concatenate([flow, np.zeros_like(flow)])
    stored = np.clip(np.round((flow + 20) * 255 / 40), 0, 255).astype(np.uint8)
    back = dequantize_flow(stored, storage=find_preset("chainer-i3d").flow_storage)
    assert np.abs(back - flow).max() < 0.0785
    np.testing.assert_allclose(back[1], 20 / 255, rtol=1e-6)


def test_labels_have_the_names_of_the_list(tmp_path, samples):
    write("number", tmp_path, samples)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {letter}\n" for letter in "abcdefgh"))
    with open_videos(VideoSet(tmp_path, classes=str(names)), labels="required") as contents:
        assert contents.class_names()[7] == "class h"
    with open_videos(tmp_path, labels="required") as contents:
        assert contents.classes.is_numbered and len(contents.classes) == 8
    names.write_text("a\nb\n")
    with pytest.raises(DatasetError, match=r"label 2 of shard_2/sample_0, and --classes has 2"):
        open_precomputed(tmp_path, classes=str(names))
    with pytest.raises(UsageError, match="sorted names of the class folders"):
        open_precomputed(tmp_path, classes="folders")
    with pytest.raises(UsageError, match="--partial"):
        open_precomputed(tmp_path, partial=True)
    with pytest.raises(UsageError, match="for a folder of videos"):  # noqa: SIM117
        with open_videos(VideoSet(tmp_path, split="val"), labels="required"):
            pass


def test_a_folder_without_flow(tmp_path, samples):
    rgb = [Sample(3, sample.pixels("rgb")) for sample in samples]
    write_shard(tmp_path / "shards" / "shard_0_0.zip", rgb)
    write_classes(tmp_path / "classes", rgb)
    for folder in ("shards", "classes"):
        dataset = open_precomputed(tmp_path / folder)
        assert dataset.manifest.streams == ("rgb",)
        with pytest.raises(UsageError, match="made without flow"):
            dataset.find_sample(next(dataset.manifest.samples()).key, streams=("flow",))


def test_a_single_video_without_flow_is_its_own_fault(tmp_path, samples):
    write_shard(tmp_path / "shard_0.zip", [samples[0], Sample(1, samples[1].pixels("rgb"))])
    dataset = open_precomputed(tmp_path)
    assert dataset.find_pictures("flow") == {"shard_0/sample_0": True, "shard_0/sample_1": False}
    dataset.read_sample("shard_0/sample_1", streams=("rgb",))
    with pytest.raises(
        DatasetError, match="5 rgb, 0 flow_x, 0 flow_y; there must be one flow less"
    ):
        dataset.read_sample("shard_0/sample_1")


def test_what_else_lies_there_is_told(tmp_path, samples):
    write_shard(tmp_path / "shard_0_0.zip", samples)
    (tmp_path / "backup.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "shard_0_1.zip", "w") as file:
        for k in (0, 2):  # the program counted up to the first missing one
            file.writestr(f"sample_{k}/label", "1")
            file.writestr(f"sample_{k}/rgb/0.jpg", samples[0].members["rgb"][0])
    told = []
    dataset = open_precomputed(tmp_path, say=told.append)
    assert dataset.found == 5
    assert "'backup.zip'" in told[0]
    assert "shard_0_1.zip: there is no sample_1, where the Chainer program stopped" in told[1]


def test_a_deflated_copy_reads_the_same(tmp_path, samples):
    with zipfile.ZipFile(tmp_path / "shard_0_0.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("sample_0")
        label = zipfile.ZipInfo("sample_0/label")
        label.external_attr = int.from_bytes(b"PK\1\2", "little")  # as an entry begins
        file.writestr(label, "1")
        for part, jpegs in samples[0].members.items():
            for t in reversed(range(len(jpegs))):  # in another order
                file.writestr(f"sample_0/{part}/{t}.jpg", jpegs[t])
    sample = open_precomputed(tmp_path).read_sample("shard_0_0/sample_0")
    np.testing.assert_array_equal(sample.frames(), samples[0].pixels("rgb"))
    np.testing.assert_array_equal(sample.stored_flow()[..., 1], samples[0].pixels("flow_y"))


def test_more_entries_than_a_plain_zip_can_count(tmp_path):
    """65,535 and more need zip64, which the default shard of 128 samples has."""
    jpeg = encode(np.zeros((8, 8), np.uint8))
    rgb = encode(np.zeros((8, 8, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "shard_0_0.zip", "w") as file:
        for k in range(2):
            file.writestr(f"sample_{k}/label", str(k))
            for part, picture in (("rgb", rgb), ("flow_x", jpeg), ("flow_y", jpeg)):
                for t in range(11_000 - (part != "rgb")):
                    file.writestr(f"sample_{k}/{part}/{t}.jpg", picture)
    dataset = open_precomputed(tmp_path)
    assert [s.class_index for s in dataset.manifest.samples()] == [0, 1]
    stored = dataset.find_sample("shard_0_0/sample_1")
    assert (stored.info.length("rgb"), stored.info.length("flow")) == (11_000, 10_999)
    assert stored.read(10_990).frames().shape == (10, 8, 8, 3)
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).max() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_behind_a_url(tmp_path, samples, layout):
    """What ``--use_chainerio`` was for."""
    expected = write(layout, tmp_path, samples)
    memory = fsspec.filesystem("memory")
    url = f"memory://chainer/{layout.replace(' ', '-')}"
    memory.put(str(tmp_path), url, recursive=True)
    dataset = open_precomputed(url)
    for planned, sample in zip(dataset.manifest.samples(), expected, strict=True):
        read = dataset.read_sample(planned.key)
        np.testing.assert_array_equal(read.frames(), sample.pixels("rgb"))
        np.testing.assert_array_equal(read.stored_flow()[..., 0], sample.pixels("flow_x"))
