"""Networks of one job: their device and arithmetic, and the frames that they were made for."""

import threading

import pytest
import torch
from support import bundles
from support.bundles import small_model

from i3d.errors import CheckpointError, UsageError
from i3d.models.checkpoints import load, save
from i3d.models.foreign.names import HASSONY2, PYTORCH_I3D
from i3d.parallel.world import World
from i3d.presets import find_preset
from i3d.tasks.convert import convert
from i3d.tasks.evaluate import EvaluateOptions, evaluate
from i3d.tasks.features import FeatureOptions, extract
from i3d.tasks.fvd import FrechetVideoDistance, fvd
from i3d.tasks.network import choose_device, common_preset, compute, full_float32, load_network
from i3d.tasks.options import ComputeOptions
from i3d.tasks.precompute.encode import flow_videos
from i3d.tasks.predict import Predictor
from i3d.tasks.train.options import TrainOptions
from i3d.tasks.train.run import train
from i3d.tasks.verify import verify


def networks(rgb, flow):
    presets = {"rgb": rgb, "flow": flow}
    return {s: load_network(small_model(stream=s, preset=p)) for s, p in presets.items()}


def test_the_preset_is_that_of_all_networks_and_of_the_shards():
    pair = networks("kinetics-i3d-48", "kinetics-i3d-48")
    expected = find_preset("kinetics-i3d-48")
    assert common_preset(pair, None) == common_preset(pair, "kinetics-i3d-48") == expected


@pytest.mark.parametrize(
    ("presets", "shards", "words"),
    [
        (
            ("kinetics-i3d", "kinetics-i3d-48"),
            None,
            "the flow network was made for preset kinetics-i3d-48, and the other checkpoint for "
            "kinetics-i3d",
        ),
        (
            ("kinetics-i3d", "kinetics-i3d"),
            "kinetics-i3d-48",
            "the rgb network was made for preset kinetics-i3d, and the shards for kinetics-i3d-48",
        ),
    ],
)
def test_networks_that_need_other_frames_are_refused(presets, shards, words):
    with pytest.raises(CheckpointError, match=f"^{words}$"):
        common_preset(networks(*presets), shards)


@pytest.mark.parametrize(
    "form", ["bundle", "TF-Hub", "npz", "pytorch-i3d", "hassony2", "safetensors"]
)
def test_a_released_network_is_known_in_whatever_file_it_comes(rgb_scratch, tmp_path, form):
    model = load(rgb_scratch, trainable=True)
    if form == "bundle":
        path = bundles.write(tmp_path, bundles.tensorflow_variables(model))
    elif form == "TF-Hub":  # BatchNorm as [1, 1, 1, 1, C], a compressed index, a SavedModel folder
        variables = {
            name: array.reshape(1, 1, 1, 1, -1) if "batch_norm" in name else array
            for name, array in bundles.tensorflow_variables(model).items()
        }
        bundles.write(tmp_path / "variables", variables, compression=1, compress=bundles.snappy)
        for written in (tmp_path / "variables").iterdir():
            written.rename(written.with_name(written.name.replace("model.ckpt", "variables")))
        path = tmp_path
    elif form in ("npz", "safetensors"):
        path = tmp_path / f"any.{form}"
        convert(rgb_scratch, path)
    else:
        naming = PYTORCH_I3D if form == "pytorch-i3d" else HASSONY2
        path = tmp_path / "any.pt"
        torch.save({naming.key(name): t for name, t in model.state_dict().items()}, path)
    for bn_eps in (None, 1e-5):
        assert load_network(path, bn_eps=bn_eps).released == "rgb_scratch_kinetics400"


def test_another_network_is_no_released_one(rgb_scratch, tmp_path):
    model = load(rgb_scratch, trainable=True)
    with torch.no_grad():
        model.Logits.Conv3d_0c_1x1.bias[7] += 1e-6
    save(model, tmp_path / "other.safetensors")
    assert load_network(tmp_path / "other.safetensors").released == ""


class Reached(Exception):
    """A job makes a GPU the current one."""


# Process 6 of 8 on two nodes of four GPUs each; none of the files is there.
NOWHERE = "/nowhere"
SIXTH = World(rank=6, size=8, local_size=4, local_rank=2)
JOBS = {
    "evaluate": lambda: evaluate(
        NOWHERE, {"rgb": NOWHERE}, options=EvaluateOptions(device="cuda"), world=SIXTH
    ),
    "features": lambda: extract(
        NOWHERE, NOWHERE, [NOWHERE], options=FeatureOptions(device="cuda"), world=SIXTH
    ),
    "fvd": lambda: fvd(
        NOWHERE, NOWHERE, checkpoint=NOWHERE, options=ComputeOptions(device="cuda"), world=SIXTH
    ),
    "train": lambda: train(
        NOWHERE,
        stream="rgb",
        output=NOWHERE,
        options=TrainOptions(device="cuda"),
        world=SIXTH,
    ),
    "FrechetVideoDistance": lambda: FrechetVideoDistance(NOWHERE, device="cuda:2"),
    "predict": lambda: Predictor([NOWHERE], device="cuda:2"),
    "verify": lambda: verify(device="cuda:2"),
    "precompute's process with the GPU": lambda: flow_videos([], device="cuda:2"),
}


@pytest.fixture
def four_gpus(monkeypatch):
    """As far as PyTorch is asked how many there are; whatever else comes to CUDA fails here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_begins_with_its_own_gpu(four_gpus, monkeypatch, job):
    def make_current(device):
        raise Reached(device)

    monkeypatch.setattr(torch.cuda, "set_device", make_current)
    with pytest.raises(Reached, match=r"^cuda:2$"):
        job()


def test_processes_share_gpus_in_turn(four_gpus, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    chosen = [choose_device("cuda", World(local_rank=rank)) for rank in range(6)]
    assert chosen == current == [f"cuda:{rank % 4}" for rank in range(6)]
    assert choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match=r"'cuda:4': there are cuda:0 to cuda:3"):
        choose_device("cuda:4")
    assert len(current) == 6


# --- float32 --------------------------------------------------------------------------------------

BACKENDS = torch.backends
CONVOLUTION = BACKENDS.cudnn.conv


def set_all(**precisions):
    """What a user sets: ``cudnn_conv="tf32"`` is ``torch.backends.cudnn.conv.fp32_precision``."""
    for name, precision in precisions.items():
        owner = BACKENDS
        for part in () if name == "all" else name.split("_"):
            owner = getattr(owner, part)
        owner.fp32_precision = precision


def older_switch():
    try:
        return BACKENDS.cudnn.allow_tf32
    except RuntimeError:
        return "raises"


def read_all():
    """All that is set, as far as it can be read."""
    owners = BACKENDS.cudnn, CONVOLUTION, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul
    owners += BACKENDS, BACKENDS.cuda.matmul
    return [owner.fp32_precision for owner in owners], older_switch(), BACKENDS.cudnn.benchmark


def read_inherited():
    """The same, while the user sets the precision of all to this and that."""
    found = [read_all()]
    for precision in ("ieee", "tf32", "bf16", "none"):
        with BACKENDS.flags(fp32_precision=precision):
            found.append(read_all())
    return found


USERS = {
    "nothing": lambda: None,
    "TF32 everywhere": lambda: set_all(all="tf32"),
    "bfloat16 everywhere": lambda: set_all(all="bf16"),
    "TF32 in cuDNN": lambda: set_all(cudnn="tf32", cudnn_conv="ieee"),
    "TF32 in cuDNN's convolutions": lambda: set_all(cudnn="ieee", cudnn_conv="tf32"),
    "TF32 inherited": lambda: set_all(all="tf32", cudnn_conv="none"),
    "TF32 nowhere": lambda: set_all(all="ieee", cudnn_conv="ieee"),
    "bfloat16 in oneDNN": lambda: set_all(mkldnn_matmul="bf16", mkldnn_conv="bf16"),
    "the older switch off": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "both switches": lambda: (set_all(all="tf32"), setattr(BACKENDS.cudnn, "allow_tf32", False)),
    "the older switch of products": lambda: torch.set_float32_matmul_precision("medium"),
    "cuDNN's trials": lambda: setattr(BACKENDS.cudnn, "benchmark", True),
}


@pytest.fixture(params=USERS.values(), ids=USERS)
def users_precision(request):
    request.param()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32, BACKENDS.cudnn.benchmark = True, False
    set_all(all="none", cudnn="none", mkldnn_conv="none", mkldnn_matmul="none")


def check_full():
    for operation in (CONVOLUTION, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul):
        assert operation.fp32_precision in ("ieee", "none")


def test_a_network_computes_in_float32_and_leaves_the_users_precision(users_precision):
    def model(clips):
        check_full()
        if fails:
            raise ValueError("in the middle")
        return clips.mean((2, 3, 4))

    before = read_inherited()
    for fails in (False, True, False):
        try:
            compute(model, torch.zeros(1, 3, 9, 8, 8))
        except ValueError:
            assert fails
        assert read_inherited() == before


def test_training_lets_cudnn_try_kernels_and_leaves_the_users_precision(users_precision):
    before = read_inherited()
    with pytest.raises(ValueError, match="middle"), full_float32(benchmark=True):
        check_full()
        assert BACKENDS.cudnn.benchmark
        raise ValueError("in the middle")
    assert read_inherited() == before


def test_bfloat16_elsewhere_does_not_reach_a_network(rgb_scratch):
    """Where the CPU has such products (AVX-512 BF16 or AMX), they would change the logits."""
    model = load(rgb_scratch)
    clips = torch.rand(1, 3, 16, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = compute(model, clips)
    with BACKENDS.flags(fp32_precision="bf16"):
        assert torch.equal(compute(model, clips), expected)


def test_one_thread_at_a_time_changes_the_settings():
    """They are the process's: who leaves would give the other the user's again."""
    entered, inside, leave = threading.Event(), threading.Event(), threading.Event()

    def second():
        entered.set()
        with full_float32():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=second)
    with full_float32(), full_float32():  # the same thread may, again
        thread.start()
        entered.wait(30)
        assert not inside.wait(0.3)
    assert inside.wait(30)
    leave.set()
    thread.join()
