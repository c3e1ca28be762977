"""The metric in a training loop: tensors of every layout and range, processes, checkpoints."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from support.bundles import lively_model

import i3d
from i3d.errors import DatasetError, UsageError
from i3d.tasks.fvd import feature_cache
from i3d.tasks.fvd.protocols import change_protocol
from i3d.tasks.fvd.result import FrameSizeWarning
from i3d.tasks.fvd.run import fvd
from i3d.tasks.options import ComputeOptions

pytestmark = pytest.mark.filterwarnings("ignore::i3d.tasks.fvd.result.FewVideosWarning")

SMALL = change_protocol("google-2018", {"size": 32, "frames": 9})
FAST = ComputeOptions(workers=0, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    i3d.save(lively_model(2, num_classes=5), path)
    return path


def videos(count, seed):
    """uint8 (N, 9, 20, 24, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 9, 20, 24, 3), dtype=np.uint8)


def metric_of(checkpoint, **options):
    return i3d.FrechetVideoDistance(checkpoint, SMALL, device="cpu", **options)


ORDERS = {"NTHWC": (0, 1, 2, 3, 4), "NTCHW": (0, 1, 4, 2, 3), "NCTHW": (0, 4, 1, 2, 3)}


@pytest.mark.parametrize("layout", ORDERS)
@pytest.mark.parametrize("value_range", [None, "0..1", "-1..1", "0..255"])
def test_every_layout_and_range_gives_the_same_features(checkpoint, layout, value_range):
    """Floats in [0, 1] and [0, 255] to the bit, since x / 255 * 255 is exact; [-1, 1] nearly."""
    given = videos(2, 3)
    reference = metric_of(checkpoint).features(given)
    tensor = torch.from_numpy(given).permute(*ORDERS[layout])
    if value_range is not None:
        tensor = tensor.float()
        if value_range != "0..255":
            tensor = tensor / 255
        if value_range == "-1..1":
            tensor = tensor * 2 - 1
    ours = metric_of(checkpoint, layout=layout, value_range=value_range).features(tensor)
    if value_range == "-1..1":
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-3)  # of 400; measured: 2e-4
    else:
        np.testing.assert_array_equal(ours, reference)


def test_gray_is_three_equal_channels(checkpoint):
    gray = videos(2, 4)[..., :1]
    reference = metric_of(checkpoint).features(np.repeat(gray, 3, -1))
    np.testing.assert_array_equal(metric_of(checkpoint).features(gray), reference)
    ours = metric_of(checkpoint, layout="NTHW").features(torch.from_numpy(gray[..., 0]))
    np.testing.assert_array_equal(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(checkpoint, dtype):
    """A generator's own type: what it rounds is lost, and nothing more."""
    given = torch.rand(2, 9, 20, 24, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = metric_of(checkpoint, value_range="0..1").features(given)
    exact = metric_of(checkpoint, value_range="0..1").features(given.float())
    np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"videos\[1\], frame 2 has the value nan"),
        (float("inf"), r"videos\[1\], frame 2 has the value inf"),
        (-0.5, r"has the value -0\.5, which is not in 0\.\.1; say the right one"),
        (200.0, r"has the value 200, which is not in 0\.\.1"),
    ],
)
def test_a_value_out_of_range_is_an_error_and_nothing_is_added(checkpoint, value, message):
    metric = metric_of(checkpoint, value_range="0..1")
    batch = torch.full((2, 9, 20, 24, 3), 0.5)
    batch[1, 2, 3, 4, 0] = value
    with pytest.raises(DatasetError, match=message):
        metric.update(batch)
    with pytest.raises(DatasetError, match="0 of 0 real videos"):
        metric.compute()


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2]],
        np.zeros((2, 9, 8, 8, 3), ">f4"),
        np.zeros((2, 9, 8, 8, 3), np.uint8)[:, ::-1],
        np.zeros((2, 9, 8, 8, 3), "U1"),
        torch.zeros(2, 9, 8, 8, 3, dtype=torch.complex64),
        torch.zeros(2, 9, 8, 8, 3, dtype=torch.bool),
    ],
)
def test_what_no_tensor_can_be_is_refused(checkpoint, given):
    with pytest.raises(UsageError, match="videos are"):
        metric_of(checkpoint, value_range="0..1").update(given)


def test_a_generators_own_tensor(checkpoint):
    """With its gradients, and in the middle of its autocast."""
    given = torch.rand(3, 9, 20, 24, 3, requires_grad=True)
    alone = metric_of(checkpoint, value_range="0..1").features(given.detach())
    with torch.autocast("cpu", torch.bfloat16):
        within = metric_of(checkpoint, value_range="0..1").features(given * 1)
    np.testing.assert_array_equal(within, alone)


def test_rounding_beyond_the_ends_is_cut_off(checkpoint):
    metric = metric_of(checkpoint, value_range="0..1")
    ends = metric.features(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 9, 8, 8, 3))
    beyond = torch.tensor([-5e-4, 1 + 5e-4]).view(2, 1, 1, 1, 1).expand(2, 9, 8, 8, 3)
    np.testing.assert_array_equal(metric.features(beyond), ends)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_any_batches_give_the_same_digits(checkpoint, batch):
    sets = {True: videos(20, 1), False: videos(20, 2)}
    whole, parts = metric_of(checkpoint), metric_of(checkpoint)
    for real, given in sets.items():
        whole.update(given, real)
        for start in range(0, 20, batch):
            parts.update(given[start : start + batch], real)
    assert parts.compute() == whole.compute()


def test_every_and_random_clips(checkpoint):
    given = np.concatenate([videos(2, 5), videos(2, 6), videos(2, 7)], axis=1)  # 27 frames
    every = metric_of(checkpoint, changes={"clips": "every"})
    every.update(given)
    thirds = metric_of(checkpoint)
    parts = np.concatenate([given[i, j : j + 9] for i in range(2) for j in (0, 9, 18)])
    np.testing.assert_array_equal(
        every.features(given), thirds.features(parts.reshape(6, 9, *given.shape[2:]))
    )
    some = metric_of(checkpoint, changes={"clips": "random", "seed": 3})
    np.testing.assert_array_equal(some.features(given), some.features(given))
    every.update(videos(2, 8), real=False)
    line = every.result().line
    assert "real=2x6clips:array" in line and "clips=every" in line


def test_reset_can_keep_the_real_set(checkpoint):
    kept = metric_of(checkpoint, reset_real_features=False)
    kept.update(videos(4, 1))
    first = []
    for seed in (2, 2, 3):
        kept.reset()
        kept.update(videos(4, seed), real=False)
        first.append(kept.compute())
    assert first[0] == first[1] != first[2]
    forgotten = metric_of(checkpoint)
    forgotten.update(videos(4, 1))
    forgotten.reset()
    with pytest.raises(DatasetError, match="0 of 0 real videos"):
        forgotten.compute()


def test_a_checkpoint_goes_on(checkpoint, tmp_path):
    one = metric_of(checkpoint)
    one.update(videos(20, 1))
    one.update(videos(7, 2), real=False)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = metric_of(checkpoint)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for metric in (one, other):
        metric.update(videos(9, 3), real=False)
    assert one.compute() == other.compute()
    with pytest.raises(UsageError, match="another metric's"):
        other.load_state_dict({"total": torch.zeros(3)})
    with pytest.raises(UsageError, match="no state of a FrechetVideoDistance"):
        other.load_state_dict({"i3d_fvd": torch.zeros(3, dtype=torch.uint8)})
    changed = i3d.FrechetVideoDistance(checkpoint, SMALL, changes={"frames": 10}, device="cpu")
    with pytest.raises(UsageError, match="frames: 10 and 9"):
        changed.load_state_dict(one.state_dict())


def test_a_reference_set_is_measured_once(checkpoint, tmp_path, monkeypatch):
    """By protocol, weights and files: the next run has it from the cache."""
    given = videos(18, 1)
    np.save(tmp_path / "real.npy", given)
    direct = metric_of(checkpoint)
    direct.update(given)
    direct.update(videos(5, 2), real=False)
    metric = metric_of(checkpoint)
    metric.update_from(tmp_path / "real.npy")
    metric.update(videos(5, 2), real=False)
    assert metric.compute() == direct.compute()
    assert metric.result().line == direct.result().line
    again = metric_of(checkpoint)
    monkeypatch.setattr(again.network, "_compute", lambda clips: pytest.fail("it was computed"))
    again.update_from(tmp_path / "real.npy")
    np.testing.assert_array_equal(again._sets[True].total().rows, direct._sets[True].total().rows)
    changed = metric_of(checkpoint, changes={"resolution": 16})
    changed.update_from(tmp_path / "real.npy")
    changed.update(videos(5, 2), real=False)
    assert changed.compute() != direct.compute()


def test_a_folders_failures_are_counted(checkpoint, tmp_path):
    for i, frames in enumerate((9, 9, 5, 9)):
        np.save(tmp_path / f"{i}.npy", videos(1, i)[0, :frames])
    metric = metric_of(checkpoint)
    with pytest.warns(UserWarning, match="real: 4 found = 3 used \\+ 1 skipped"):
        metric.update_from(tmp_path)
    other = metric_of(checkpoint)
    other.load_state_dict(metric.state_dict())
    other.update(videos(3, 9), real=False)
    real = other.result().real
    assert (real.found, real.used, real.skipped) == (4, 3, 1)


def test_sets_of_other_sizes_are_warned_of(checkpoint):
    metric = metric_of(checkpoint)
    metric.update(videos(3, 1))
    metric.update(videos(3, 2)[:, :, :10], real=False)
    with pytest.warns(FrameSizeWarning, match="REAL has frames of 24x20, FAKE of 24x10"):
        metric.compute()


def test_whole_strides_of_tensors(checkpoint):
    metric = metric_of(checkpoint, changes={"stride": 2, "whole_strides": True})
    given = np.concatenate([videos(2, 1), videos(2, 2)], axis=1)
    assert metric.features(given).shape == (2, 5)  # 18 frames
    with pytest.raises(DatasetError, match="17 frames; 9 frames at stride 2 need 18"):
        metric.features(given[:, :17])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": {"frame": 16}}, "no protocol has a setting 'frame': bn_eps, clips"),
        ({"changes": {"frames": "16"}}, "frames '16': it must be a whole number"),
        ({"changes": {"frames": 9.5}}, "frames 9.5: it must be a whole number"),
        ({"changes": {"crop": "square"}}, "crop square: it says nothing without a resolution"),
        ({"layout": "TCHW"}, "layout 'TCHW': it must be"),
        ({"value_range": "0-1"}, "value_range '0-1': it must be"),
    ],
)
def test_options_without_meaning(checkpoint, options, message):
    with pytest.raises(UsageError, match=message):
        metric_of(checkpoint, **options)


def test_a_state_that_cannot_be_read_changes_nothing(checkpoint):
    metric = metric_of(checkpoint)
    metric.update(videos(3, 1))
    before = metric.state()
    for state in ({"i3d_fvd": 3}, {"i3d_fvd": torch.zeros(9, dtype=torch.uint8)}):
        with pytest.raises(UsageError):
            metric.load_state_dict(state)
    with pytest.raises(UsageError, match="real='fake': it must be True or False"):
        metric.update(videos(3, 1), real="fake")
    assert metric.state() == before


def test_random_clips_go_by_the_number_in_the_set(checkpoint):
    """Whatever was added from elsewhere before, and in whichever batches."""
    given = np.concatenate([videos(6, i) for i in range(4)], axis=1)
    one = metric_of(checkpoint, changes={"clips": "random"})
    one.update(given)
    other = metric_of(checkpoint, changes={"clips": "random"})
    other.merge(one)
    other.update(given[:2])
    other.update(given[2:])
    rows = other._sets[True].own.total().rows
    np.testing.assert_array_equal(rows, one._sets[True].own.total().rows)


def test_a_script_needs_no_guard(checkpoint, tmp_path):
    """Unless it asks for workers, which import it again."""
    np.save(tmp_path / "real.npy", videos(5, 1))
    script = tmp_path / "train.py"
    script.write_text(
        "import i3d, numpy\n"
        "changes = {'size': 32, 'frames': 9}\n"
        f"metric = i3d.FrechetVideoDistance({str(checkpoint)!r}, changes=changes)\n"
        f"metric.update_from({str(tmp_path / 'real.npy')!r})\n"
        f"metric.update(numpy.load({str(tmp_path / 'real.npy')!r})[:3], real=False)\n"
        "print(metric.compute())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


TWO_RANKS = """
import sys, json, warnings
import numpy as np, torch.distributed as dist
sys.path[:0] = json.loads(sys.argv[3])
import i3d
from i3d.errors import UsageError
from i3d.tasks.fvd.protocols import change_protocol
warnings.simplefilter("ignore")
dist.init_process_group("gloo")
rank = dist.get_rank()
small = change_protocol("google-2018", {"size": 32, "frames": 9})
metric = i3d.FrechetVideoDistance(sys.argv[1], small, device="cpu")
for name, real in (("real", True), ("fake", False)):
    mine = np.load(f"{sys.argv[2]}/{name}.npy")[rank::2]
    for start in range(0, len(mine), 5):
        metric.update(mine[start : start + 5], real)
found = [metric.compute(), metric.compute()]
metric.sync()
try:
    metric.update(mine)
    refused = False
except UsageError as error:
    refused = "unsync" in str(error)
found.append(metric.compute())
metric.unsync()
print(json.dumps([found, metric.result().real.used, refused]))
dist.destroy_process_group()
"""


def test_two_processes_agree_with_one(checkpoint, tmp_path):
    """Each has every other video; compute is of all of them, on both, and changes nothing."""
    one = metric_of(checkpoint)
    for name, real, seed in (("real", True, 1), ("fake", False, 2)):
        given = videos(41, seed)
        np.save(tmp_path / f"{name}.npy", given)
        one.update(given, real)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", textwrap.dedent(TWO_RANKS), str(checkpoint), str(tmp_path)]
    running = [
        subprocess.Popen(
            [*command, json.dumps(sys.path)],
            env=os.environ | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    reports = [json.loads(out) for out, _ in outputs]
    assert reports[0] == reports[1]
    found, used, refused = reports[0]
    assert used == 41 and refused
    # the same sums in another order; measured: 2e-14
    assert found == pytest.approx([one.compute()] * 3, rel=1e-9)


# --- the cache ------------------------------------------------------------------------------------


def compare(folder, checkpoint, **options):
    return fvd(
        folder / "real.npy",
        folder / "fake.npy",
        checkpoint=checkpoint,
        protocol=SMALL,
        options=FAST,
        **options,
    )


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "real.npy", videos(40, 1))
    np.save(tmp_path / "fake.npy", videos(35, 2))
    return tmp_path


def test_features_are_taken_from_the_cache(folder, checkpoint, cache):
    first = compare(folder, checkpoint)
    assert (first.real.resumed, first.fake.resumed) == (0, 0)
    again = compare(folder, checkpoint)
    assert (again.real.resumed, again.fake.resumed) == (40, 35)
    assert again.as_dict() == first.as_dict()
    assert compare(folder, checkpoint, cache=False).as_dict() == first.as_dict()
    assert len(list(cache.glob("fvd/*/*.npz"))) == 3 + 3  # blocks of 16 videos


def test_a_set_that_was_replaced_is_measured_again(folder, checkpoint):
    first = compare(folder, checkpoint)
    (folder / "fake.npy").unlink()
    np.save(folder / "fake.npy", videos(35, 3))  # as many bytes
    again = compare(folder, checkpoint)
    assert (again.real.resumed, again.fake.resumed) == (40, 0)
    assert again.value != first.value


@pytest.mark.parametrize(
    "damage", [lambda d: d[:100], lambda d: d[:-70] + bytes(70), lambda d: b""]
)
def test_damaged_features_are_measured_again(folder, checkpoint, cache, damage):
    first = compare(folder, checkpoint)
    for path in cache.glob("fvd/*/*.npz"):
        path.write_bytes(damage(path.read_bytes()))
    again = compare(folder, checkpoint)
    assert (again.real.resumed, again.value) == (0, first.value)
    assert compare(folder, checkpoint).real.resumed == 40


def test_a_cache_that_cannot_be_written_costs_nothing(folder, checkpoint, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("I3D_CACHE", str(blocked))
    assert compare(folder, checkpoint).value == compare(folder, checkpoint, cache=False).value


def test_the_oldest_features_go_first(folder, checkpoint, cache):
    compare(folder, checkpoint)
    paths = sorted(cache.glob("fvd/*/*.npz"))
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    sizes = [path.stat().st_size for path in paths]
    feature_cache.drop_oldest(sum(sizes[-2:]))
    assert sorted(cache.glob("fvd/*/*.npz")) == paths[-2:]


def test_a_killed_job_goes_on(folder, checkpoint, cache, monkeypatch):
    """After the network failed in the third block only what was missing is computed."""
    whole = compare(folder, checkpoint, cache=False)
    calls = []
    original = feature_cache.FeatureCache.keep

    def keep(self, videos, first, rows):
        original(self, videos, first, rows)
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache.FeatureCache, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            compare(folder, checkpoint)
    again = compare(folder, checkpoint)
    assert again.real.resumed == 32
    assert again.as_dict() == whole.as_dict()
