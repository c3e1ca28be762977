"""``i3d fvd`` of the same videos in every form: the same number to the last digit."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.bundles import small_model
from support.command import exit_code
from support.footage import make_videos, write_everything

import i3d
from i3d.data.footage.options import FootageOptions
from i3d.tasks.fvd.protocols import change_protocol
from i3d.tasks.fvd.run import fvd, save_set
from i3d.tasks.options import ComputeOptions

pytestmark = pytest.mark.filterwarnings("ignore::i3d.tasks.fvd.result.FewVideosWarning")

SMALL = change_protocol("google-2018", {"size": 64})
FAST = ComputeOptions(workers=0, device="cpu")
# relative; measured 5.5e-6, 2.2e-4 and 2.1e-2 at most, of sets that lie close together
LARGEST = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-1}
# of the others tests/data/footage tells that their frames are the same
FORMS = ("mp4", "png", "frames.zip", "frames.tar", "videos.tar", "all.npy", "pt")
CLASSES = ("archery", "bowling", "clapping")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = small_model(1, classes=CLASSES, num_classes=3, width=1 / 16)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    i3d.save(model, path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory, checkpoint):
    """REAL as statistics, and FAKE in every form."""
    folder = tmp_path_factory.mktemp("sets")
    np.save(folder / "real.npy", make_videos(2, 1))
    how = {"checkpoint": checkpoint, "protocol": SMALL, "options": FAST, "cache": False}
    save_set(folder / "real.npy", folder / "real.npz", **how)
    fake = make_videos(2, 2)
    return folder / "real.npz", fake, write_everything(folder / "fake", fake)


@pytest.fixture
def measure(sets, checkpoint):
    """Function: location of FAKE, what is said of it -> the result."""

    def run(fake, **options):
        return fvd(
            sets[0],
            fake,
            checkpoint=checkpoint,
            protocol=SMALL,
            cache=False,
            footage=FootageOptions(**options),
            options=FAST,
        )

    return run


def test_every_form_gives_the_same_number(sets, measure):
    """To the last digit; the line says what they were read from."""
    _, _, forms = sets
    results = {name: measure(forms[name]) for name in FORMS}
    values = {name: result.value for name, result in results.items()}
    assert set(values.values()) == {values["mp4"]} and values["mp4"] > 0
    origins = {name: result.fake.origin for name, result in results.items()}
    assert {origins[n] for n in ("png", "frames.zip", "frames.tar")} == {"frames-png"}
    assert {result.name for result in results.values()} == {results["mp4"].name}
    assert {origins[n] for n in ("mp4", "videos.tar")} == {"files"}
    assert {origins[n] for n in ("all.npy", "pt")} == {"array"}


def test_floats_give_the_same_number(sets, measure, tmp_path):
    """0..1 in float32 is exact; -1..1 and shorter floats are as far as they round."""
    _, fake, forms = sets
    exact = measure(forms["mp4"]).value
    unit = torch.from_numpy(fake) / 255
    (tmp_path / "set").mkdir()
    for i, video in enumerate(unit):
        torch.save(video.permute(0, 3, 1, 2), tmp_path / "set" / f"{i}.pt")  # (T, C, H, W)
    save_file({"videos": unit.permute(0, 4, 1, 2, 3).contiguous()}, tmp_path / "c.safetensors")
    for location in (tmp_path / "set", tmp_path / "c.safetensors"):
        result = measure(location, value_range="0..1")
        assert result.value == exact
        assert "fake=2:array:0..1 " in result.line and "array" not in result.name
    named = measure(tmp_path / "set", value_range="0..1", layout="NTCHW")
    assert named.value == exact
    for kind, largest in LARGEST.items():
        torch.save((unit * 2 - 1).to(kind), tmp_path / "x.pt")
        found = measure(tmp_path / "x.pt", value_range="-1..1").value
        assert abs(found / exact - 1) < largest, (kind, found / exact - 1)


@pytest.fixture
def refusal(sets, checkpoint, capsys):
    """Function: location of FAKE, options -> exit code and what the command says."""

    def run(fake, *options):
        common = ("--checkpoint", checkpoint, "--workers", 0, "--device", "cpu")
        code = exit_code("fvd", sets[2]["npy"], fake, *common, *options)
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return run


def test_options_are_asked_for_and_refused_in_vain(sets, refusal, tmp_path):
    _, fake, forms = sets
    np.save(tmp_path / "x.npy", np.float32(fake) / 255)
    code, err = refusal(tmp_path / "x.npy")
    assert code == 2 and "floats do not say what white is; give --range" in err
    code, err = refusal(forms["mp4"], "--range", "0..1")
    assert code == 2 and "hold no floats; leave the option out" in err
    code, err = refusal(forms["all.npy"], "--layout", "NTCHW")
    assert code == 2 and "--layout NTCHW: " in err and "hold no array with these axes" in err
    np.save(tmp_path / "x.npy", np.float32(fake))
    code, err = refusal(tmp_path / "x.npy", "--range", "0..1")
    assert code == 1 and "which is outside of --range 0..1" in err
