"""Evaluation of the Chainer program's folders, against its own arithmetic on the same pictures."""

import json

import numpy as np
import pytest
import torch
from support.bundles import save_pair
from support.chainer_folders import Sample, moving_video, program_clip, write_classes, write_shard
from support.command import exit_code

import i3d
from i3d.data.shards import open_dataset
from i3d.data.videos import VideoSet
from i3d.errors import CheckpointError
from i3d.tasks.convert_shards import convert_shards, flow_table
from i3d.tasks.evaluate.logits import evaluate
from i3d.tasks.evaluate.options import EvaluateOptions
from i3d.tasks.features import extract
from i3d.tasks.features.options import FeatureOptions
from i3d.tasks.network import Network
from i3d.tasks.options import ConvertShardsOptions

CLASSES = ("archery", "bowling", "zumba")
FRAMES = 9


@pytest.fixture(scope="module")
def samples():
    """One longer and one shorter than the clip; its width makes the centre a half pixel."""
    return [
        Sample(2, *moving_video(11, width=343, seed=0)),
        Sample(0, *moving_video(5, width=343, seed=1)),
    ]


@pytest.fixture(scope="module")
def old(tmp_path_factory, samples):
    """The folder, in the latest layout."""
    folder = tmp_path_factory.mktemp("chainer") / "val"
    write_shard(folder / "shard_0_0.zip", samples[:1])
    write_shard(folder / "shard_1_0.zip", samples[1:])
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("checkpoints"), num_classes=3, classes=CLASSES)


def run(folder, checkpoints, frames=FRAMES, **options):
    """Both streams' predictions."""
    options = {"workers": 0, "device": "cpu", **options}
    found = evaluate(folder, checkpoints, options=EvaluateOptions(frames=frames, **options))
    return found.evaluation.predictions


def run_command(capfd, *arguments):
    """Exit code, standard output and standard error."""
    code = exit_code(*arguments)
    return code, *capfd.readouterr()


def compute(checkpoint, clip):
    with torch.inference_mode():
        return i3d.load(checkpoint)(torch.from_numpy(np.ascontiguousarray(clip))[None])[0].numpy()


def test_logits_are_those_of_the_programs_clips(old, samples, checkpoints):
    with pytest.warns(UserWarning, match="labels have no names, so they are taken for positions"):
        table = run(old, checkpoints)
    assert (table.about.preset, table.about.frames, table.about.found) == ("chainer-i3d", FRAMES, 2)
    assert table.about.classes == CLASSES
    assert table.targets.tolist() == [2, 0]
    for stream, checkpoint in checkpoints.items():
        for row, sample in zip(table.logits[stream], samples, strict=True):
            direct = compute(checkpoint, program_clip(sample, stream, FRAMES))
            np.testing.assert_array_equal(row, direct)


def test_the_network_sees_251_frames_unless_said(old, samples, checkpoints, monkeypatch):
    seen = []

    def remember(network, clips, endpoint="logits"):
        seen.append((network.stream, clips[0].numpy()))
        return torch.zeros(len(clips), len(CLASSES))

    monkeypatch.setattr(Network, "compute", remember)
    with pytest.warns(UserWarning, match="--classes"):
        assert run(old, checkpoints, frames=None).about.frames == 251
    assert [stream for stream, _ in seen] == ["rgb", "flow"] * 2
    for (stream, clip), sample in zip(seen, [s for s in samples for _ in range(2)], strict=True):
        np.testing.assert_array_equal(clip, program_clip(sample, stream))


def test_the_oldest_layout_gives_the_same(tmp_path, old, samples, checkpoints):
    write_classes(tmp_path / "classes", samples)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    tables = [
        run(VideoSet(folder, classes=str(names)), checkpoints)
        for folder in (old, tmp_path / "classes")
    ]
    for stream in checkpoints:
        np.testing.assert_array_equal(tables[0].logits[stream], tables[1].logits[stream][::-1])


def test_labels_find_their_classes_by_name(tmp_path, old, checkpoints):
    """The folders that were there need not have been all classes, nor spelt as they are."""
    names = tmp_path / "names.txt"
    names.write_text("Bowling\nunused\nARCHERY\n")
    with pytest.raises(CheckpointError, match=r"labelled with 3 others .*name --classes"):
        run(VideoSet(old, classes=str(names)), checkpoints)
    names.write_text("Bowling\nzumba\nARCHERY\n")
    table = run(VideoSet(old, classes=str(names)), checkpoints)
    assert table.targets.tolist() == [0, 1]
    assert table.about.classes == CLASSES


def test_more_labels_than_the_network_has_classes(old, tmp_path):
    small = save_pair(tmp_path, num_classes=2, classes=CLASSES[:2])
    with pytest.raises(CheckpointError, match=r"labelled with 3 others .*--classes"):
        run(old, small)


def test_converted_shards_give_the_same_rgb_to_the_bit(tmp_path, old, samples, checkpoints):
    new = tmp_path / "shards"
    done = convert_shards(old, new, options=ConvertShardsOptions(workers=1))
    assert (done.found, done.encoded, done.failed, done.complete) == (2, 2, (), True)
    dataset = open_dataset(new)
    table = flow_table()
    for k, sample in enumerate(samples):
        read = dataset.read_sample(f"shard_{k}_0/sample_0")
        assert list(read.rgb) == sample.members["rgb"]  # not a byte was touched
        for axis, part in enumerate(("flow_x", "flow_y")):
            np.testing.assert_array_equal(read.stored_flow()[..., axis], table[sample.pixels(part)])
    with pytest.warns(UserWarning, match="name them when you convert"):
        converted = run(new, checkpoints)
    with pytest.warns(UserWarning, match="name them with --classes"):
        before = run(old, checkpoints)
    assert converted.about.preset == "chainer-i3d-converted"
    order = [converted.videos.index(video) for video in before.videos]
    assert converted.targets[order].tolist() == before.targets.tolist()
    np.testing.assert_array_equal(converted.logits["rgb"][order], before.logits["rgb"])
    difference = np.abs(converted.logits["flow"][order] - before.logits["flow"]).max()
    assert 0 < difference < 0.02  # measured 0.003: steps of 1/128, and no motion is 0


def test_the_table_is_the_formula():
    """round(f * 127 / 20) + 128, in exact numbers; 128, no motion, is exactly 0."""
    q = np.arange(256)
    numerator = (2 * q - 255) * 127  # of f * 127 / 20 = (2 q - 255) * 127 / 255
    expected = np.floor(numerator / 255 + 0.5).astype(int) + 128  # no halves: 255 is odd
    expected[128] = 128
    np.testing.assert_array_equal(flow_table(), expected)


def test_converting_again_makes_nothing_and_other_settings_are_refused(tmp_path, old, capfd):
    arguments = ["convert-shards", old, tmp_path / "new", "--classes", "kinetics400"]
    for made in (1, 0):
        code, out, err = run_command(capfd, *arguments, "--json")
        assert code == 0
        assert json.loads(out)["made"] == made
    assert open_dataset(tmp_path / "new").manifest.classes.name == "kinetics400"
    code, out, err = run_command(capfd, *arguments[:3])
    assert code == 2
    assert "other settings" in err and "kinetics400" in err
    code, out, err = run_command(capfd, "convert-shards", old, old)
    assert code == 2
    code, out, err = run_command(capfd, "convert-shards", tmp_path, tmp_path / "x")
    assert code == 1
    assert "holds no zips of the Chainer program" in err


def test_a_damaged_sample_is_skipped_with_its_reason(tmp_path, samples, checkpoints, capfd):
    write_shard(tmp_path / "shard_0_0.zip", samples)
    path = tmp_path / "shard_0_0.zip"
    data = path.read_bytes()
    at = data.index(samples[0].members["flow_y"][3]) + 100
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    with pytest.warns(UserWarning):
        table = run(tmp_path, checkpoints)
    assert table.about.found == 2 and len(table) == 1
    (skipped,) = table.about.skipped
    assert skipped.key == "shard_0_0/sample_0"
    assert "flow_y/3.jpg" in skipped.reason and str(tmp_path) in skipped.reason
    code, out, _ = run_command(capfd, "convert-shards", tmp_path, tmp_path / "new", "--json")
    assert code == 0
    (failed,) = json.loads(out)["failed"]
    assert "flow_y/3.jpg" in failed["reason"]
    assert str(tmp_path) not in (tmp_path / "new" / "failures.csv").read_text()


def test_features_of_both_streams(tmp_path, old, samples, checkpoints):
    options = FeatureOptions(window=str(FRAMES), workers=0, device="cpu")
    extract(old, tmp_path / "features", list(checkpoints.values()), options=options)
    found = np.load(tmp_path / "features" / "shard_0_0" / "sample_0.npz")
    for stream, checkpoint in checkpoints.items():
        clip = torch.from_numpy(np.ascontiguousarray(program_clip(samples[0], stream, FRAMES)))
        with torch.inference_mode():
            direct = i3d.load(checkpoint).features(clip[None]).mean(2)
        np.testing.assert_allclose(found[stream][:1], direct, atol=1e-6)  # measured 0
