"""Our own files: what is saved is loaded, and what they say of themselves is checked."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import bundles

import i3d
from i3d.errors import CheckpointError
from i3d.models.checkpoints import (
    load,
    save,
)
from i3d.models.i3d import I3D
from i3d.records import plain


def test_save_and_load_round_trip(tmp_path):
    model = bundles.small_model(num_classes=None, classes=list("abcdefg"), width=0.3, bn_eps=2e-3)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", trainable=True)
    assert again.training
    assert again.config == model.config
    assert again.width == 0.3  # 2/7 would fit the shapes too
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(p.requires_grad for p in again.parameters())
    folded = load(tmp_path / "m.safetensors")
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    with pytest.raises(CheckpointError, match="trainable=True"):
        save(folded, tmp_path / "n.safetensors")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.safetensors"]


def test_saved_files_are_equal_to_the_byte(tmp_path):
    for name in "ab":
        save(bundles.small_model(classes="kinetics600", num_classes=600), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as f:
        config = json.loads(f.metadata()["i3d"])
    assert config["classes"] == "kinetics600"
    assert config["preset"] == "kinetics-i3d"


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(bundles.small_model(), path)
    before = path.read_bytes()

    def broken(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("i3d.models.format.save_file", broken)
    with pytest.raises(OSError, match="No space"):
        save(bundles.small_model(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_hugging_face_conventions(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = bundles.small_model(num_classes=None, classes=list("abcdefg"), stream="flow")
    model.save_pretrained(tmp_path / "hub")
    assert {p.name for p in (tmp_path / "hub").iterdir()} >= {"config.json", "model.safetensors"}
    clip = torch.randn(1, 2, 9, 32, 32)
    for again in (
        I3D.from_pretrained(tmp_path / "hub"),
        load(tmp_path / "hub", trainable=True).eval(),
        load(tmp_path / "hub" / "model.safetensors", trainable=True).eval(),
    ):
        assert again.classes == tuple("abcdefg")
        torch.testing.assert_close(again(clip), model(clip), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"i3d": "[]"}, "another"),
        ({"i3d": "[1]"}, "metadata is not what i3d writes"),
        ({"i3d": '{"width": 1}'}, "metadata is not what i3d writes"),
        ({"i3d": "{"}, "not a readable safetensors"),
        ({"i3d": '{"width": 1e30}'}, "metadata is not what i3d writes"),
    ],
)
def test_metadata_from_outside_is_checked(tmp_path, metadata, words):
    path = tmp_path / "m.safetensors"
    tensors = bundles.small_model().state_dict()
    save_file({k: tensors[k] for k in list(tensors)[:5]}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=words if words != "another" else "missing"):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 4.0}, "does not fit"),
        ({"width": 1e30}, "width is 1e\\+30"),
        ({"classes": ["a"]}, "7, but the class list has 1"),
        ({"preset": "other"}, "preset 'other'"),
        ({"bn_eps": 7.5}, "bn_eps is 7.5"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(tmp_path, change, words):
    path = tmp_path / "m.safetensors"
    model = bundles.small_model()
    metadata = {"i3d": json.dumps(plain(model.config) | change)}
    save_file(model.state_dict(), path, metadata=metadata)
    with pytest.raises(i3d.errors.I3DError, match=words):
        load(path)
