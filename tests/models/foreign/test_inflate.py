"""A still video gives the inflated network what the picture gives the 2D network.

The 2D network is written here with torch.nn.functional from the table of "Going Deeper with
Convolutions" and torchvision's names (torchvision/models/googlenet.py), with SAME padding; it
shares no code with the package.
"""

import json
import re
import struct

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.googlenet import BLOCKS, googlenet

from i3d.errors import CheckpointError
from i3d.models.checkpoints import build
from i3d.models.foreign import inflate as module
from i3d.models.foreign.inflate import inflate

# I3D's endpoints in the order in which the 2D network passes them.
ENDPOINTS = [
    "Conv3d_1a_7x7",
    "MaxPool3d_2a_3x3",
    "Conv3d_2b_1x1",
    "Conv3d_2c_3x3",
    "MaxPool3d_3a_3x3",
    "Mixed_3b",
    "Mixed_3c",
    "MaxPool3d_4a_3x3",
    "Mixed_4b",
    "Mixed_4c",
    "Mixed_4d",
    "Mixed_4e",
    "Mixed_4f",
    "MaxPool3d_5a_2x2",
    "Mixed_5b",
    "Mixed_5c",
]
# Mixed_5c sees 99 frames: of 128 the middle time steps see no padding.
FRAMES = 128
SIDE = 32


def same(x, kernel, stride):
    pads = []
    for size in reversed(x.shape[2:]):  # F.pad begins with the last axis
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)  # zeros: a max pooling's input is not negative


def picture_activations(state, x):
    """Endpoint -> activations of pictures (B, 3, H, W), and the features and class scores."""
    state = {name: tensor.to(x.dtype) for name, tensor in state.items()}

    def unit(name, x, stride=1):
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(same(x, weight.shape[-1], stride), weight, stride=stride)
        statistics = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scale, offset = state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]
        return F.relu(F.batch_norm(x, *statistics, scale, offset, eps=1e-3))

    def pool(x, kernel, stride):
        return F.max_pool2d(same(x, kernel, stride), kernel, stride)

    def block(name, x):
        return torch.cat(
            [
                unit(f"{name}.branch1", x),
                unit(f"{name}.branch2.1", unit(f"{name}.branch2.0", x)),
                unit(f"{name}.branch3.1", unit(f"{name}.branch3.0", x)),
                unit(f"{name}.branch4.1", pool(x, 3, 1)),
            ],
            1,
        )

    steps = [
        lambda x: unit("conv1", x, 2),
        lambda x: pool(x, 3, 2),
        lambda x: unit("conv2", x),
        lambda x: unit("conv3", x),
        lambda x: pool(x, 3, 2),
        *(lambda x, n=n: block(n, x) for n in ("inception3a", "inception3b")),
        lambda x: pool(x, 3, 2),
        *(lambda x, n=n: block(n, x) for n in BLOCKS if n.startswith("inception4")),
        lambda x: pool(x, 2, 2),
        *(lambda x, n=n: block(n, x) for n in ("inception5a", "inception5b")),
    ]
    found = {}
    for name, step in zip(ENDPOINTS, steps, strict=True):
        x = found[name] = step(x)
    features = x.mean((2, 3))
    return found, features, F.linear(features, state["fc.weight"], state["fc.bias"])


def still(picture):
    """(B, C, H, W) -> (B, C, T, H, W)."""
    return picture[:, :, None].repeat(1, 1, FRAMES, 1, 1)


def picture(side=SIDE, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, channels, side, side, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.fixture
def file(tmp_path):
    """Function: state dict -> path of its file."""

    def write(state):
        path = tmp_path / "googlenet.safetensors"
        save_file({k: t.contiguous() for k, t in state.items()}, path)
        return path

    return write


@pytest.mark.parametrize("side", [SIDE, 27])
@torch.no_grad()
def test_a_still_video_gives_the_pictures_activations(file, side):
    state = googlenet()
    network = build(inflate(file(state))).double()
    expected, features, scores = picture_activations(state, picture(side))
    found = network.endpoints(still(picture(side)), ENDPOINTS)
    for name, theirs in expected.items():
        ours = found[name][:, :, found[name].shape[2] // 2]
        assert ours.shape == theirs.shape, name
        assert (theirs > 0).double().mean() > 0.1, name
        worst = (ours - theirs).abs().max() / theirs.abs().max()
        assert worst < 1e-12, name  # measured 4e-15 at most
    middle = network.features(still(picture(side)))[:, :, FRAMES // 16 - 1]
    torch.testing.assert_close(middle, features, rtol=1e-12, atol=1e-12)
    head = network.Logits.Conv3d_0c_1x1
    theirs = F.linear(middle, head.weight[:, :, 0, 0, 0], head.bias)
    torch.testing.assert_close(theirs, scores, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_any_weights_in_float32(file):
    """Rounding of the division and the folded scale included."""
    state = googlenet(exact=False, seed=3)
    network = build(inflate(file(state)))
    expected, _, _ = picture_activations(state, picture())
    found = network.endpoints(still(picture().float()), ENDPOINTS)
    for name, theirs in expected.items():
        ours = found[name][:, :, found[name].shape[2] // 2].double()
        assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5, name  # measured 2e-6


@torch.no_grad()
def test_only_the_ends_of_a_still_video_differ(file):
    """Time is padded with zeros there; what is equal in the middle is no accident."""
    state = googlenet()
    network = build(inflate(file(state))).double()
    expected, _, _ = picture_activations(state, picture())
    found = network.endpoints(still(picture()), ["Conv3d_1a_7x7"])["Conv3d_1a_7x7"]
    difference = (found - expected["Conv3d_1a_7x7"][:, :, None]).abs().amax((0, 1, 3, 4))
    # A filter of 7 at stride 2, padded (2, 3): the first output lacks two frames, the last two.
    assert difference[0] > 0.01 and (difference[-2:] > 0.01).all()
    assert (difference[1:-2] < 1e-12).all()


@torch.no_grad()
def test_flow_takes_the_gray_response(file):
    """x = y = g gives what a gray picture of g gives."""
    state = googlenet()
    network = build(inflate(file(state), stream="flow")).double()
    gray = picture(channels=1)
    expected, _, _ = picture_activations(state, gray.expand(-1, 3, -1, -1))
    found = network.endpoints(still(gray.expand(-1, 2, -1, -1)), ["Mixed_5c"])["Mixed_5c"]
    ours, theirs = found[:, :, found.shape[2] // 2], expected["Mixed_5c"]
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-12  # measured 3e-15


def test_the_full_network_and_its_classifier(file):
    state = googlenet(width=1.0, classes=1000)
    weights = inflate(file(state))
    assert weights.config.num_classes == 1000 and weights.config.width == 1
    assert weights.config.bn_eps == 1e-3 and weights.config.classes is None
    first = weights.tensors["Conv3d_1a_7x7.conv.weight"]
    assert first.shape == (64, 3, 7, 7, 7)
    scaled = state["conv1.conv.weight"] * state["conv1.bn.weight"].view(-1, 1, 1, 1)
    for k in range(7):
        torch.testing.assert_close(first[:, :, k] * 7, scaled, rtol=1e-6, atol=0)
    assert torch.equal(weights.tensors["Logits.Conv3d_0c_1x1.bias"], state["fc.bias"])


@pytest.mark.parametrize(
    "key", ["conv1.conv.weight", "inception4c.branch3.1.bn.running_var", "fc.weight"]
)
def test_a_missing_key_is_named(file, key):
    state = googlenet()
    del state[key]
    with pytest.raises(CheckpointError, match=rf"no {re.escape(key)} \(1 of .*googlenet"):
        inflate(file(state))


def test_another_network_is_one_line(file):
    with pytest.raises(CheckpointError, match=r"no conv1\.conv\.weight") as error:
        inflate(file({"features.0.weight": torch.zeros(2, 3, 3, 3)}))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inception3a.branch3.1.conv.weight": torch.zeros(4, 2, 5, 5)}, "k of 1, 3, 7"),
        ({"conv3.conv.weight": torch.zeros(24, 8)}, r"shape \(24, 8\)"),
        ({"conv3.conv.weight": torch.zeros(24, 8, 7, 7)}, "does not fit"),
        ({"conv2.conv.weight": torch.zeros(9, 8, 1, 1)}, "fit"),
        ({"conv1.conv.bias": torch.zeros(8)}, "unknown variables, conv1.conv.bias"),
        ({"conv2.bn.running_var": torch.full((8,), -1.0)}, "negative variance"),
        ({"conv2.bn.weight": torch.full((8,), torch.nan)}, "not finite"),
        ({"conv2.bn.weight": torch.ones(3)}, r"conv2.bn.weight has shape \(3,\)"),
        ({"conv2.conv.weight": torch.full((8, 8, 1, 1), torch.inf)}, "not finite"),
        ({"fc.weight": torch.zeros(5, 128, 2)}, "not 3D|does not fit"),
        ({"conv1.conv.weight": torch.zeros(8, 3, 7, 7, dtype=torch.complex64)}, "complex64"),
        ({"conv1.conv.weight": torch.zeros(8, 3, 7, 7, dtype=torch.int8)}, "dtype int8"),
        ({"conv2.bn.weight": torch.ones(8).to(torch.float8_e5m2)}, "float8_e5m2"),
    ],
)
def test_a_network_that_differs_is_refused(file, change, message):
    with pytest.raises(CheckpointError, match=message):
        inflate(file(googlenet() | change))


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_bfloat16_is_inflated_as_its_float32(file, stream):
    rounded = {
        key: t.bfloat16() if t.dtype.is_floating_point else t for key, t in googlenet().items()
    }
    found = inflate(file(rounded), stream=stream)
    assert found.config.source.endswith("(torchvision's googlenet), converted from bfloat16")
    wide = {key: t.float() if t.dtype.is_floating_point else t for key, t in rounded.items()}
    for name, tensor in inflate(file(wide), stream=stream).tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_files_that_are_no_safetensors(tmp_path, file, monkeypatch):
    with pytest.raises(CheckpointError, match="no such file"):
        inflate(tmp_path / "none.safetensors")
    pickled = tmp_path / "googlenet.pth"
    torch.save(googlenet(), pickled)
    with pytest.raises(CheckpointError, match="save_file"):
        inflate(pickled)
    path = file(googlenet())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        inflate(path)
    header = json.dumps({"conv1.conv.weight": {"dtype": "F32", "shape": [1 << 40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        inflate(path)
    path.write_bytes(data)
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="more than"):
        inflate(path)


def test_urls_are_read_too(file):
    import fsspec

    with fsspec.open("memory://inflate/googlenet.safetensors", "wb") as f:
        f.write(file(googlenet()).read_bytes())
    assert inflate("memory://inflate/googlenet.safetensors").config.num_classes == 5
