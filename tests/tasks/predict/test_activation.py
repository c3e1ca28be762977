"""Activation maps against their formula, the logits, and what a cell is seen to see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RegularGridInterpolator
from support import bundles
from support.golden import shared

import i3d
from i3d.errors import UsageError
from i3d.models.i3d import I3D, MaxPool
from i3d.models.padding import same_pads
from i3d.tasks.predict import upsample_map
from i3d.tasks.predict.activation import find_cell_centers, find_step_centers

CLASSES = [f"action {i}" for i in range(7)]
CHANNELS = {"rgb": 3, "flow": 2}


def network(stream="rgb", folded=False, **options) -> I3D:
    model = bundles.small_model(stream=stream, num_classes=None, classes=CLASSES, **options)
    return model.fold() if folded else model


def noise(stream="rgb", frames=16, size=224, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((CHANNELS[stream], frames, size, size), generator=generator) * 2 - 1


def written_out(model: I3D, clip: torch.Tensor, index: int) -> np.ndarray:
    """The formula, cell by cell, in double precision."""
    with torch.inference_mode():
        cells = model.endpoints(clip[None], ["Mixed_5c"])["Mixed_5c"][0].double().numpy()
    weights = model.state_dict()["Logits.Conv3d_0c_1x1.weight"][index, :, 0, 0, 0].double().numpy()
    _, steps, height, width = cells.shape
    result = np.empty((steps - 1, height, width))
    for t in range(steps - 1):
        for y in range(height):
            for x in range(width):
                both = weights @ cells[:, t, y, x] + weights @ cells[:, t + 1, y, x]
                result[t, y, x] = both / (2 * height * width * (steps - 1))
    return result


def logit_less_bias(model: I3D, clip: torch.Tensor, index: int) -> float:
    with torch.inference_mode():
        logit = model(clip[None])[0, index]
    return float(logit - model.state_dict()["Logits.Conv3d_0c_1x1.bias"][index])


@pytest.mark.parametrize("folded", [False, True], ids=["trainable", "folded"])
@pytest.mark.parametrize(
    ("stream", "frames"), [("rgb", 9), ("rgb", 16), ("rgb", 35), ("flow", 9), ("flow", 24)]
)
def test_map_is_the_formula_and_adds_up_to_the_logit(stream, frames, folded):
    model, clip = network(stream, folded), noise(stream, frames)
    map_ = i3d.activation_map(model, clip, 5)
    assert map_.shape == (-(-frames // 8) - 1, 7, 7)
    assert (map_.dtype, map_.device.type) == (torch.float32, "cpu")
    expected = written_out(model, clip, 5)
    # measured 4.6e-10, where values reach 1.2e-2
    np.testing.assert_allclose(map_, expected, rtol=0, atol=1e-8)
    total = logit_less_bias(model, clip, 5)
    assert float(map_.double().sum()) == pytest.approx(total, abs=1e-4)  # measured 2.6e-7


def test_released_network_on_a_real_video(rgb_scratch):
    model = i3d.load(rgb_scratch)
    frames = i3d.read_video(shared("clips", "arm_wrestling_340x256_28fps.mp4"), end_seconds=1.28)
    clip = i3d.rgb_clip(frames)
    map_ = i3d.activation_map(model, clip, "arm wrestling")
    index = model.classes.index("arm wrestling")
    # measured 2.7e-8, where values reach 0.56
    np.testing.assert_allclose(map_, written_out(model, clip, index), rtol=0, atol=1e-6)
    total = logit_less_bias(model, clip, index)
    assert total > 20
    assert float(map_.double().sum()) == pytest.approx(total, abs=1e-4)  # measured 1.6e-6 of 44.3
    y, x = np.unravel_index(int(map_.sum(0).argmax()), (7, 7))
    assert 2 <= y <= 4 and 2 <= x <= 4  # where the hands are, in the middle of the picture


def test_a_smaller_networks_map_has_its_own_size():
    model, clip = network(preset="kinetics-i3d-128"), noise(size=112)
    map_ = i3d.activation_map(model, clip, 1)
    assert map_.shape == (1, 4, 4)
    np.testing.assert_allclose(map_, written_out(model, clip, 1), rtol=0, atol=1e-8)
    assert float(map_.double().sum()) == pytest.approx(logit_less_bias(model, clip, 1), abs=1e-4)


def test_classes_by_name_and_clips_with_a_batch_axis():
    model, clip = network(), noise(frames=9)
    expected = i3d.activation_map(model, clip, 3)
    for given in (clip, clip[None]):
        for class_ in ("action 3", "Action_3", np.int64(3)):
            assert torch.equal(i3d.activation_map(model, given, class_), expected)


def test_a_network_in_training_is_looked_at_as_it_would_predict_and_left_as_it_was():
    model, clip = network(), noise(frames=9)
    expected = i3d.activation_map(model, clip, 3)
    model.train()
    model.Mixed_5c.eval()  # a frozen part
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    assert torch.equal(i3d.activation_map(model, clip, 3), expected)
    assert [layer.training for layer in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_callers_autocast_changes_nothing():
    model, clip = network(), noise(frames=9)
    expected = i3d.activation_map(model, clip, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(i3d.activation_map(model, clip, 3), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_": "actoin 3"}, r"'actoin 3' is none of the network's 7; did you mean 'action"),
        ({"class_": "\x1b[2J\u202e"}, r"class '\\x1b\[2J\\u202e' is none of the network's 7$"),
        ({"class_": 7}, "class 7: the network's are 0 to 6"),
        ({"class_": -1}, "class -1: the network's are 0 to 6"),
        ({"class_": 1.5}, "class 1.5: give its name or its index"),
        ({"clip": np.zeros((3, 16, 224, 224))}, r"a tensor float32 \(3, T, 224, 224\), not ndarr"),
        ({"clip": torch.zeros(3, 16, 224, 224).half()}, r"clip is float16 \(3, 16, 224, 224\)"),
        ({"clip": torch.zeros(2, 3, 16, 224, 224)}, r"\(2, 3, 16, 224, 224\); a map is of one cli"),
        ({"clip": torch.zeros(16, 224, 224)}, r"\(16, 224, 224\); a map is of one clip"),
        ({"clip": torch.zeros(2, 16, 224, 224)}, r"the rgb network takes float32 \(3, T, 224, 22"),
        ({"clip": torch.zeros(3, 16, 256, 340)}, "340x256 pixels; .* 224x224: crop them, as i3d.r"),
        ({"clip": torch.zeros(3, 8, 224, 224)}, "8 frames; I3D needs at least 9: repeat frames"),
        ({"model": torch.nn.Linear(1, 1)}, "a Linear: an activation map needs the network's layer"),
    ],
)
def test_what_has_no_map(change, words):
    given = {"model": network(), "clip": torch.zeros(3, 16, 224, 224), "class_": 0} | change
    with pytest.raises(UsageError, match=words) as caught:
        i3d.activation_map(**given)
    assert "\n" not in str(caught.value)


# --- where a cell looks ---------------------------------------------------------------------------


class AveragePool(torch.nn.Module):
    """In a max pooling's place: which pixel is the largest is chance, and here all count alike."""

    def __init__(self, pool: MaxPool) -> None:
        super().__init__()
        self.kernel, self.stride = pool.kernel, pool.stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = same_pads(x.shape[2:], self.kernel, self.stride)
        x = F.pad(x, [pad for pair in reversed(pads) for pad in pair])
        return F.avg_pool3d(x, self.kernel, self.stride)


def positive_network(*, average: bool) -> I3D:
    """Every filter adds up what it sees, so that a gradient says how much of it is seen."""
    torch.manual_seed(0)
    model = I3D(num_classes=2, width=0.06).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("conv.weight"):
            tensor.uniform_(0.5, 1.5).div_(tensor[0].numel())
    if average:
        for parent in list(model.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, MaxPool):
                    setattr(parent, name, AveragePool(layer))
    return model


def gradient(model: I3D, shape: tuple[int, ...], cell: tuple[int, ...], axis: int) -> np.ndarray:
    """How much a cell of Mixed_5c depends on each place of one axis of the clip (T, H, W)."""
    torch.manual_seed(1)
    clip = torch.rand((1, 3, *shape)).requires_grad_()
    t, y, x = cell
    model.endpoints(clip, ["Mixed_5c"])["Mixed_5c"][0, :, t, y, x].sum().backward()
    return clip.grad[0].abs().sum([a for a in range(4) if a != axis + 1]).numpy()


def centroid(weights: np.ndarray) -> float:
    return float((weights * np.arange(len(weights))).sum() / weights.sum())


@pytest.mark.parametrize("size", [224, 225, 449])
def test_cells_are_centred_in_space_where_they_look(size):
    """On an even grid, 15.5 + 32 k, they would be up to 7.5 pixels off."""
    centers = find_cell_centers(size)
    cell = (len(centers) - 1) // 2
    found = [
        centroid(gradient(positive_network(average=True), (9, size, size), (0, cell, cell), axis))
        for axis in (1, 2)
    ]
    # measured 0.1 where the picture holds all that the cell sees, and 0.5 where it cuts it off
    assert found == pytest.approx([centers[cell]] * 2, abs=0.3 if size > 400 else 1)


def test_the_network_itself_sees_as_much_before_a_cells_centre_as_after_it():
    seen = gradient(positive_network(average=False), (9, 448, 448), (0, 7, 7), 2).nonzero()[0]
    assert find_cell_centers(448)[7] == pytest.approx((seen[0] + seen[-1]) / 2, abs=2)


@pytest.mark.parametrize("frames", [112, 113, 118])
def test_steps_are_centred_in_time_where_they_look(frames):
    model, step = positive_network(average=True), 6
    pair = [
        centroid(gradient(model, (frames, 32, 32), (t, 0, 0), 0)) for t in (step, step + 1)
    ]  # of two steps of Mixed_5c
    # measured 0.01
    assert find_step_centers(frames)[step] == pytest.approx(np.mean(pair), abs=0.1)


def test_centers_that_the_docstrings_name():
    assert find_cell_centers(224).tolist() == [23 + 32 * k for k in range(7)]
    assert find_step_centers(64).tolist() == [9 + 8 * k for k in range(7)]


@pytest.mark.parametrize(("frames", "size"), [(9, 224), (64, 224), (250, 112), (33, 225)])
def test_upsampled_map_is_linear_between_the_centres(frames, size):
    steps, cells = find_step_centers(frames), find_cell_centers(size)
    map_ = torch.randn(len(steps), len(cells), len(cells))
    large = upsample_map(map_, frames, size)
    assert (large.shape, large.dtype) == ((frames, size, size), torch.float32)
    rng = np.random.default_rng(0)
    places = np.column_stack([rng.integers(0, n, 2000) for n in (frames, size, size)])
    axes = (steps, cells, cells)
    # SciPy wants two places on an axis at least
    double = [(np.array([a[0], a[0] + 1]), 2) if len(a) == 1 else (a, 1) for a in axes]
    values = map_.numpy().repeat(double[0][1], 0)
    inside = np.column_stack([np.clip(p, a[0], a[-1]) for p, a in zip(places.T, axes, strict=True)])
    expected = RegularGridInterpolator([a for a, _ in double], values)(inside)
    np.testing.assert_allclose(large[tuple(places.T)], expected, rtol=0, atol=1e-5)


def test_a_map_of_another_clip_is_not_laid_over():
    with pytest.raises(UsageError, match=r"map_ has shape \(3, 7, 7\); of a clip of 64"):
        upsample_map(torch.zeros(3, 7, 7), 64, 224)
    with pytest.raises(UsageError, match="frames=8"):
        upsample_map(torch.zeros(1, 7, 7), 8, 224)
