"""Published figures beside ours: the table, the exit codes, and the released network itself."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support.bundles import small_model
from support.command import exit_code

import i3d
from i3d.models.checkpoints import fingerprint, read_weights, save
from i3d.models.released import CHECKPOINTS
from i3d.tasks import verify as module
from i3d.tasks.verify import CONSTANT, NOISE, SAMPLES, verify

NAME = "rgb_scratch_kinetics400"


def place(cache, monkeypatch, name=NAME, seed=0, known=True):
    """A small network in the cache under a released name, whose record has its hash."""
    cache.mkdir(exist_ok=True)
    path = cache / f"{name}.safetensors"
    save(small_model(seed, num_classes=400, stream=CHECKPOINTS[name].stream), path)
    digest = fingerprint(read_weights(path)) if known else "0" * 64
    record = dataclasses.replace(CHECKPOINTS[name], weights_sha256=digest)
    monkeypatch.setitem(CHECKPOINTS, name, record)
    return path


@pytest.fixture
def small_checks(monkeypatch):
    """The FVD checks on few videos, with the figures of the small network."""
    for name, published in (("CONSTANT", 0.0), ("NOISE", 0.0)):
        check = dataclasses.replace(
            getattr(module, name), videos=2, published=published, tolerance=1e9
        )
        monkeypatch.setattr(module, name, check)


def test_all_that_ran_is_within_its_tolerance(cache, monkeypatch, small_checks, capsys):
    path = place(cache, monkeypatch)
    assert exit_code("verify", "--device", "cpu", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["checkpoint"], result["path"], result["ok"]) == (NAME, str(path), True)
    rows = result["checks"]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "not run", "not run"]
    constant, noise = rows[1:3]
    assert constant["here"] == constant["difference"] > 0
    assert noise["here"] > 0
    assert all(row["source"] and row["tolerance_reason"] for row in rows[1:])
    assert "--samples" in rows[3]["reason"]


def test_noise_is_what_one_call_would_draw(cache, monkeypatch, small_checks):
    path = place(cache, monkeypatch)
    features = []
    model = i3d.load(path)
    for seed in (1, 2):
        videos = np.random.RandomState(seed).rand(2, 16, 224, 224, 3).astype(np.float32)
        with torch.inference_mode():
            features.append(model(torch.from_numpy(videos).permute(0, 4, 1, 2, 3)).double().numpy())
    statistics = [m for x in features for m in (x.mean(0), np.cov(x.T))]
    expected = i3d.frechet_distance(*statistics)
    here = verify(NAME, device="cpu").rows[2].here
    assert here == pytest.approx(expected, rel=1e-4)  # measured 1.1e-5 of a distance of 2.5e-5


def test_what_is_off_is_said_and_ends_with_1(cache, monkeypatch, capsys):
    place(cache, monkeypatch, known=False)
    monkeypatch.setattr(module, "CONSTANT", dataclasses.replace(CONSTANT, videos=2))
    assert exit_code("verify", NAME, "--quick", "--device", "cpu") == 1
    out = capsys.readouterr().out
    weights, constant, noise = out.splitlines()[2:5]
    assert f"i3d checkpoints download --force {NAME}" in weights
    assert "000000000000" in weights and "off" in weights
    assert "151.392440" in constant and constant.endswith("off")
    assert noise.endswith("not run: left out by --quick")
    assert out.splitlines()[-1] == "2 off, 3 not run"


def test_a_network_without_figures(cache, monkeypatch, capsys):
    place(cache, monkeypatch, "rgb_scratch_kinetics600")
    record = dataclasses.replace(CHECKPOINTS["rgb_scratch_kinetics600"], weights_sha256=None)
    monkeypatch.setitem(CHECKPOINTS, "rgb_scratch_kinetics600", record)
    assert exit_code("verify", "rgb_scratch_kinetics600") == 0
    out = capsys.readouterr().out
    assert "checksum in the released index" in out
    assert out.splitlines()[-1] == "nothing could be checked"
    assert exit_code("verify", "rgb_scratch_kinetics600", "--samples", cache) == 2


def write_samples(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stream, channels in (("rgb", 3), ("flow", 2)):
        clip = rng.uniform(-1, 1, (1, 79, 224, 224, channels)).astype(np.float32)
        np.save(folder / f"v_CricketShot_g04_c01_{stream}.npy", clip)


def test_the_authors_sample(cache, monkeypatch, tmp_path):
    write_samples(tmp_path / "samples")
    total = 0
    for seed, stream in enumerate(("rgb", "flow")):
        path = place(cache, monkeypatch, f"{stream}_imagenet_kinetics400", seed)
        clip = np.load(tmp_path / "samples" / f"v_CricketShot_g04_c01_{stream}.npy")
        with torch.inference_mode():
            total = total + i3d.load(path)(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))
    result = verify("rgb_imagenet_kinetics400", samples=tmp_path / "samples", device="cpu")
    assert [row.status for row in result.rows] == ["ok", "off", "off", "off", "off"]
    assert result.rows[3].here == pytest.approx(float(total.norm()), rel=1e-5)
    assert result.rows[4].here == pytest.approx(float(total.max()), rel=1e-5)
    (cache / "flow_imagenet_kinetics400.safetensors").unlink()
    result = verify("rgb_imagenet_kinetics400", samples=tmp_path / "samples", device="cpu")
    assert [row.status for row in result.rows[3:]] == ["not run", "not run"]
    assert "needs flow_imagenet_kinetics400" in result.rows[3].reason


def test_other_arrays_are_no_sample(cache, monkeypatch, tmp_path, capsys):
    place(cache, monkeypatch)
    assert exit_code("verify", "--samples", tmp_path) == 1
    assert "v_CricketShot_g04_c01_rgb.npy: no such file" in capsys.readouterr().err
    np.save(tmp_path / "v_CricketShot_g04_c01_rgb.npy", np.zeros((1, 8, 224, 224, 3), np.float32))
    assert exit_code("verify", "--samples", tmp_path) == 1
    assert "(1, 8, 224, 224, 3); the sample is float32 (1, 79" in capsys.readouterr().err


def test_an_unknown_name(capsys):
    assert exit_code("verify", "i3d") == 2
    assert NAME in capsys.readouterr().err


@pytest.mark.parametrize("here", [float("nan"), float("inf"), CONSTANT.published + 0.0021])
def test_no_figure_is_off(here):
    row = CONSTANT.row(here)
    assert row.status == "off"
    json.dumps(row.as_dict(), allow_nan=False)


def test_every_sample_is_of_released_networks():
    assert {name for sample in SAMPLES for name in sample.networks} <= set(CHECKPOINTS)


# --- the released network -------------------------------------------------------------------------


@pytest.fixture
def cached(cache, rgb_scratch):
    cache.mkdir()
    (cache / f"{NAME}.safetensors").symlink_to(rgb_scratch)


def test_released_network_on_black_and_white_videos(cached, monkeypatch):
    """Two of each: they are all alike, and so without variance, however many there are."""
    monkeypatch.setattr(module, "CONSTANT", dataclasses.replace(CONSTANT, videos=2))
    weights, constant, *_ = verify(NAME, quick=True, device="cpu").rows
    assert weights.status == "ok"
    assert abs(constant.difference) <= CONSTANT.tolerance == 0.002  # measured 3.9e-4


@pytest.mark.slow
def test_released_network_on_noise(cached):
    row = verify(NAME, device="cpu").rows[2]
    assert abs(row.difference) <= NOISE.tolerance == 1e-4  # measured 1.9e-5
