"""Winograd's algorithm over time against NumPy's correlation and PyTorch's convolution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.units import exact, unit

from i3d.models import winograd
from i3d.models.i3d import I3D


@pytest.mark.parametrize("taps", [3, 4])
def test_transforms_are_numpys_correlation(taps):
    a, g, b = winograd.transforms(taps)
    assert (a.shape, g.shape, b.shape) == ((4, taps + 3), (taps + 3, taps), (taps + 3, taps + 3))
    rng = np.random.default_rng(taps)
    for _ in range(20):
        frames, taps_of = rng.standard_normal(taps + 3), rng.standard_normal(taps)
        expected = np.correlate(frames, taps_of, "valid")
        np.testing.assert_allclose(a @ ((g @ taps_of) * (b @ frames)), expected, atol=1e-13)
    # The point that the bias goes with adds to every output alike.
    np.testing.assert_array_equal(a[:, winograd.BIAS_POINT], 1)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.sampled_from([3, 4, 6, 7, 8, 11, 12, 17]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels_last=st.booleans(),
)
def test_three_taps_give_the_convolution(batch, frames, height, width, channels_last):
    layer = unit()
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.randn(batch, 48, frames, height, width).contiguous(memory_format=order)
    filters = winograd.time_filters(layer.conv)
    with torch.inference_mode():
        result = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
    torch.testing.assert_close(  # measured 1.0e-5 at most, the plain sum's 7.4e-6
        result.double(), exact(layer, x), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("shape", [(2, 3, 9, 33, 50), (1, 3, 16, 64, 64), (2, 2, 23, 57, 49)])
def test_the_first_layer_gives_the_convolution(shape, always):
    """Odd and even sizes, whose SAME padding differs, in 3 and in 2 channels."""
    layer = unit((shape[1], 16), kernel=7, stride=2)
    x = torch.rand(shape) * 2 - 1
    with torch.inference_mode():
        result = layer(x)
    assert always == [shape]
    torch.testing.assert_close(  # measured 7.1e-6 at most, the plain sum's 3.3e-6
        result.double(), exact(layer, x), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("chunk_bytes", [1, 100_000, 1_000_000])
def test_chunks_do_not_change_the_result(chunk_bytes, monkeypatch):
    layer = unit()
    filters = winograd.time_filters(layer.conv)
    x = torch.randn(3, 48, 14, 9, 10)
    with torch.inference_mode():
        whole = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
        monkeypatch.setattr(winograd, "CHUNK_BYTES", chunk_bytes)
        cut = winograd.convolve(x, layer.conv, filters, [(1, 1)] * 3)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)


def test_error_of_a_layer_of_the_networks_size(always):
    """RMS; the output's is 0.9. The plain sum's is 7e-8 to 3.1e-7 by the processor's kernels."""
    layer = unit((128, 192))
    x = torch.randn(1, 128, 8, 14, 14).relu()
    with torch.inference_mode():
        error = (layer(x) - exact(layer, x)).square().mean().sqrt().item()
    assert len(always) == 1
    assert 1e-8 < error < 2e-6  # measured 5.9e-7 with AVX-512 and AVX2, 8.4e-7 with SSE4.1


def test_big_layers_alone_are_worth_it():
    """At the paper's size: the first layer, the big 3x3x3 ones, not the narrow nor the last."""
    with torch.device("meta"):
        network = I3D("rgb", 400)
        taken = {
            name: winograd.pays(network.get_submodule(name).conv, torch.empty(1, *shape))
            for name, shape in {
                "Conv3d_1a_7x7": (3, 64, 224, 224),
                "Conv3d_2b_1x1": (64, 32, 56, 56),
                "Conv3d_2c_3x3": (64, 32, 56, 56),
                "Mixed_3b.Branch_1.Conv3d_0b_3x3": (96, 32, 28, 28),
                "Mixed_3b.Branch_2.Conv3d_0b_3x3": (16, 32, 28, 28),
                "Mixed_4f.Branch_1.Conv3d_0b_3x3": (160, 16, 14, 14),
                "Mixed_4b.Branch_1.Conv3d_0b_3x3": (96, 2, 28, 40),  # half a tile
                "Mixed_5c.Branch_1.Conv3d_0b_3x3": (192, 8, 7, 7),
            }.items()
        }
    assert list(taken.values()) == [True, False, True, True, False, True, False, False]
