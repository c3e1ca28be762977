"""Networks of the golden checkpoints, and Winograd's algorithm for small layers too."""

import pytest

import i3d
from i3d.models import winograd
from i3d.models.i3d import I3D


@pytest.fixture(scope="package")
def model_of(bundle_folder):
    """Function: (bundle, trainable) -> network, loaded once."""
    models = {}

    def get(name: str, trainable: bool = False) -> I3D:
        if (name, trainable) not in models:
            models[name, trainable] = i3d.load(bundle_folder(name), trainable=trainable).eval()
        return models[name, trainable]

    return get


@pytest.fixture
def always(monkeypatch):
    """The algorithm is taken for every layer that it is made for; the list of its calls."""
    calls = []
    plain = winograd.convolve
    for name in ("MIN_CHANNELS", "MIN_POSITIONS", "MIN_OPERATIONS"):
        monkeypatch.setattr(winograd, name, 0)

    def counted(x, *rest):
        calls.append(tuple(x.shape))
        return plain(x, *rest)

    monkeypatch.setattr(winograd, "convolve", counted)
    return calls
