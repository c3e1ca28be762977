"""Our own files: what is saved is loaded, and what they say of themselves is checked."""

import json
import math
import struct
from pathlib import Path

import fsspec
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
from i3d.models.format import MAX_FILE_BYTES
from i3d.models.i3d import I3D
from i3d.records import plain

FIRST = "Conv3d_1a_7x7.conv.weight"
VARIANCE = "Conv3d_1a_7x7.bn.running_var"


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

    def broken(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
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
        ({"i3d": "0" * 9_000_000}, "a header of 9,0.* where 8,388,608 are read at most"),
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
        ({"bn_eps": -1.0}, "bn_eps is -1.0"),
        ({"bn_eps": math.nan}, r"not what i3d writes \(bn_eps is nan; expected float\)"),
        ({"bn_eps": "1e-3"}, "bn_eps is '1e-3'; expected float"),
        ({"width": 1e9}, "its metadata: width is 1000000000.0; it must be above 0"),
        ({"width": -math.inf}, "width is -inf; expected float"),
        ({"width": [1]}, r"width is \[1\]; expected"),
        ({"classes": [1] * 7}, "classes is 1; expected str"),
        ({"classes": [["a"]] * 7}, r"classes is \['a'\]; expected str"),
        ({"classes": {"a": 1}}, "classes is {'a': 1}; expected"),
        ({"classes": "folders"}, "classes is 'folders'; expected a list of names"),
        ({"classes": [*"abcdef", " "]}, "name 6 is empty"),
        ({"classes": list("abcdefa")}, r"'a' is there twice \(0 and 6\)"),
        ({"preset": "a\n" * 4000}, "preset 'a.{,300}$"),
        ({"source": 3}, "source is 3; expected str"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(tmp_path, change, words):
    path = tmp_path / "m.safetensors"
    model = bundles.small_model()
    metadata = {"i3d": json.dumps(plain(model.config) | change)}
    save_file(model.state_dict(), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def with_header(path, change) -> None:
    """Rewrite a file's JSON header, which safetensors itself would not write so."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


@pytest.mark.parametrize("value", [1, None, [1], {"width": 1}])
def test_metadata_that_are_no_text_are_refused(tmp_path, value):
    path = tmp_path / "m.safetensors"
    save_file(bundles.small_model().state_dict(), path)
    with_header(path, lambda header: header.update(__metadata__={"i3d": value}))
    with pytest.raises(CheckpointError, match=r"its metadata i3d is .*, no text") as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", ["file", "memory"])
@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "F128", 7])
def test_a_dtype_that_does_not_fit_is_one_line(tmp_path, dtype, place):
    path = tmp_path / "m.safetensors"
    save_file(bundles.small_model().state_dict(), path)
    with_header(path, lambda header: header["Logits.Conv3d_0c_1x1.bias"].update(dtype=dtype))
    if place == "memory":
        fsspec.filesystem("memory").pipe("/i3d-test/m.safetensors", path.read_bytes())
        path = "memory://i3d-test/m.safetensors"
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "m.safetensors"
    save(bundles.small_model(), path)
    with path.open("r+b") as f:
        f.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(CheckpointError, match="has more than 4,294,967,296 bytes"):
        load(path)


@pytest.mark.parametrize("names", [["a", "b", "a"], ["a", "", "c"], ["a", "b", "\t"]])
def test_a_network_has_names_that_differ(names):
    with pytest.raises(i3d.errors.I3DError, match=r"is there twice|is empty"):
        I3D(classes=names, width=0.125)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(FIRST), f"1 tensors are missing or unknown, '{FIRST}' first"),
        (lambda state: state.update(more=torch.ones(1)), "'more' first .unknown"),
        (
            lambda state: state[FIRST].view(-1)[5].fill_(torch.nan),
            "the first nan at .0, 0, 0, 0, 5",
        ),
        (
            lambda state: state.update({FIRST: state[FIRST][:3].clone()}),
            "has shape .3, 3, 7, 7, 7.",
        ),
        (lambda state: state.update({FIRST: state[FIRST].int()}), "has dtype int32"),
        (lambda state: state[VARIANCE].fill_(-1), "negative variance"),
    ],
)
def test_hugging_faces_way_checks_the_tensors_too(tmp_path, monkeypatch, change, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = bundles.small_model()
    model.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words) as caught:
        I3D.from_pretrained(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)
