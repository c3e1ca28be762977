"""Named checkpoints: their records, and what a file is known by."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import bundles
from support.golden import shared
from support.paths import ROOT

import i3d
from i3d.errors import CheckpointError, UsageError
from i3d.models.checkpoints import (
    fingerprint,
    load,
    read_weights,
    save,
)
from i3d.models.foreign.readers import write_npz
from i3d.models.foreign.tf_bundle import parse_index
from i3d.models.format import write_safetensors
from i3d.models.released import CHECKPOINTS


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_records_agree_with_the_released_indices(checkpoint):
    path = shared("reference", "tensorflow_index", f"{checkpoint.folder}.index")
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == checkpoint.index_sha256
    _, entries = parse_index(data, str(path))
    assert max(e.offset + e.size for e in entries.values()) == checkpoint.data_bytes
    first = next(e for n, e in entries.items() if n.endswith("Conv3d_1a_7x7/conv_3d/w"))
    assert first.shape[3] == {"rgb": 3, "flow": 2}[checkpoint.stream]
    bias = next(e for n, e in entries.items() if n.endswith("Logits/Conv3d_0c_1x1/conv_3d/b"))
    assert f"kinetics{bias.shape[0]}" == checkpoint.classes


def test_records_are_complete():
    for name, c in CHECKPOINTS.items():
        assert c.name == name == f"{c.stream}_{c.folder.split('_')[1]}_{c.classes}"
        assert 50 < c.top1 < 100
        assert c.top5 is None or c.top1 < c.top5 < 100
        assert re.match(r"Kinetics.*(README of|arXiv \d{4}\.\d{5})", c.protocol)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="did you mean rgb_imagenet_kinetics400"):
        load("rgb_imagenet_kinetics40")
    with pytest.raises(UsageError, match=r"no/such\.safetensors: no such checkpoint or file"):
        load("no/such.safetensors")


def test_a_file_is_loaded_without_the_downloader(tmp_path):
    """Workers load files, too: requests alone takes 50 ms to import."""
    save(bundles.small_model(), tmp_path / "c.safetensors")
    script = "import sys, i3d; i3d.load('c.safetensors'); print('requests' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert found.stdout.split() == [b"False"]


def test_a_released_bundle_is_known_by_its_index(tmp_path, monkeypatch):
    """Whatever folder it lies in, and after conversion."""
    prefix = bundles.write(
        tmp_path / "any", bundles.tensorflow_variables(bundles.small_model(num_classes=400))
    )
    assert "any" in read_weights(prefix).config.source
    digest = hashlib.sha256(Path(f"{prefix}.index").read_bytes()).hexdigest()
    name = "rgb_scratch_kinetics400"
    released = dataclasses.replace(CHECKPOINTS[name], index_sha256=digest)
    monkeypatch.setitem(CHECKPOINTS, name, released)
    weights = read_weights(prefix)
    assert weights.config.source == released.source
    write_safetensors(weights, tmp_path / "c.safetensors")
    assert i3d.load(tmp_path / "c.safetensors").source == released.source


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_where_the_memory_ends_the_file_is_named(tmp_path, monkeypatch, suffix):
    """Python's own error says nothing."""
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(bundles.small_model().state_dict(), path)
    elif suffix == ".npz":
        with path.open("wb") as f:
            write_npz(bundles.small_model().weights(), f)
    else:
        save(bundles.small_model(), path)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", full)
    monkeypatch.setattr(np.lib.format, "read_array", full)
    monkeypatch.setattr("i3d.models.format.load_file", full)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert str(caught.value) == f"{path}: not enough memory to read it; end other programs"


def test_fingerprint_is_of_the_weights_and_not_of_the_file(tmp_path):
    model = bundles.small_model(num_classes=400)
    i3d.save(model, tmp_path / "m.safetensors")
    prefix = bundles.write(tmp_path / "tf", bundles.tensorflow_variables(model))
    with (tmp_path / "m.npz").open("wb") as f:
        write_npz(read_weights(prefix), f)
    found = {fingerprint(read_weights(p)) for p in (prefix, tmp_path / "m.npz")}
    assert found == {fingerprint(read_weights(tmp_path / "m.safetensors"))}
    with torch.no_grad():
        model.Logits.Conv3d_0c_1x1.bias[7] += 1e-6
    i3d.save(model, tmp_path / "n.safetensors")
    assert fingerprint(read_weights(tmp_path / "n.safetensors")) not in found
