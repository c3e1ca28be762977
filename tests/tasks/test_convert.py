"""Conversion between the formats: the same bytes, and refusals before anything is written."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import bundles
from support.golden import shared

from i3d.errors import I3DError, UsageError
from i3d.models.checkpoints import load, read_weights, save
from i3d.tasks.convert import convert


def test_npz_is_the_chainer_programs_file(bundle_folder, tmp_path):
    theirs = shared("reference", "tensorflow", "rgb400_chainer.npz")
    keys = json.loads(shared("reference", "chainer_npz_keys.json").read_text())
    convert(bundle_folder("rgb400"), tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as ours, np.load(theirs) as reference:
        assert set(ours.files) == set(reference.files) == {k["key"] for k in keys}
        for k in keys:
            array = ours[k["key"]]
            assert (array.dtype, list(array.shape)) == (k["dtype"], k["shape"])
            np.testing.assert_array_equal(array, reference[k["key"]])


def test_npz_round_trip_is_exact_and_repeatable(tmp_path):
    save(bundles.small_model(classes=list("abcdefg"), num_classes=None), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.npz")
    convert(tmp_path / "b.npz", tmp_path / "c.safetensors", classes=None)
    a, c = read_weights(tmp_path / "a.safetensors"), read_weights(tmp_path / "c.safetensors")
    assert all(torch.equal(a.tensors[name], c.tensors[name]) for name in a.tensors)
    convert(tmp_path / "a.safetensors", tmp_path / "b2.npz")
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "b2.npz").read_bytes()


def test_peak_memory_of_the_largest_bundle(bundle_folder, tmp_path):
    code = (
        "import re, sys; from i3d.tasks.convert import convert; convert(*sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, str(bundle_folder("rgb600"))]
    done = subprocess.run(
        [*command, str(tmp_path / "out.safetensors")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 400 * 1024  # KiB; measured 317 MiB, of which torch alone is 219


def test_convert_refuses_what_it_cannot_write(tmp_path):
    save(bundles.small_model(), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"\.h5.*\.safetensors or \.npz"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.h5")
    with pytest.raises(UsageError, match="7 classes, but kinetics400 has 400"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.npz", classes="kinetics400")
    with pytest.raises(UsageError, match="bn-eps"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.npz", bn_eps=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("bn_eps", [0.0, -1e-3, 1.0])
def test_an_epsilon_that_no_network_has_is_refused(tmp_path, bn_eps):
    torch.save(bundles.small_model().state_dict(), tmp_path / "a.pt")
    with pytest.raises(I3DError, match=f"bn_eps is {bn_eps}"):
        convert(tmp_path / "a.pt", tmp_path / "b.npz", bn_eps=bn_eps)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_another_epsilon_with_small_variances_is_the_same_network(tmp_path):
    """Shifted by the epsilons' difference they would be negative, which no reader takes."""
    model = bundles.small_model(bn_eps=1e-5)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor[::2] = torch.rand(len(tensor[::2])) * 1e-3
            tensor[0] = 0
        elif "1a_7x7.conv.weight" in name:
            tensor *= 0.05  # as the weights of a layer with small variances are
    torch.save(model.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.npz", bn_eps=1e-5)
    with np.load(tmp_path / "b.npz") as arrays:
        variances = [arrays[key] for key in arrays.files if key.endswith("avg_var")]
    assert min(v.min() for v in variances) == 0
    clip = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = model(clip)
        found = load(tmp_path / "b.npz", trainable=True).eval()(clip)
    difference = float((found - expected).abs().max() / expected.std())
    assert difference < 5e-5  # measured 9.3e-6


def test_convert_says_what_it_made_float32(tmp_path):
    state = {key: tensor.bfloat16() for key, tensor in bundles.small_model().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    result = convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert result.source == "PyTorch: i3d, converted from bfloat16"
    first = str(result).splitlines()[0]
    assert first.endswith(f"width 0.125; {result.source}")
    assert load(tmp_path / "b.safetensors").source == result.source


def test_convert_keeps_class_names(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    prefix = bundles.write(tmp_path / "tf", bundles.tensorflow_variables(bundles.small_model()))
    result = convert(prefix, tmp_path / "a.safetensors", classes=str(names))
    assert result.num_classes == 7
    assert load(tmp_path / "a.safetensors").classes == tuple("abcdefg")
