"""The demo run once, on videos of a second with small random networks."""

import contextlib
import io

import pytest
from support.bundles import save_pair
from support.pages import read

from i3d import demo
from i3d.demo import pipeline, scene
from i3d.demo.actions import ACTIONS

PRESET = "kinetics-i3d-48"


@pytest.fixture(scope="session")
def preset():
    return PRESET


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    save_pair(folder, classes=ACTIONS, num_classes=12, preset=PRESET)
    return folder


@contextlib.contextmanager
def small_settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SHORT_SIDE", 48)
        patch.setattr(scene, "FRAMES", (20, 24))
        patch.setattr(pipeline, "EVALUATED_FRAMES", 12)
        yield


@contextlib.contextmanager
def no_source(folder):
    """As the fixture `cache`, which is of one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("I3D_CACHE", str(folder / "cache"))
        patch.setenv("I3D_CHECKPOINT_URL", str(folder / "no-mirror"))
        yield


@pytest.fixture
def quick():
    """Small videos of a second, and networks that see half of it."""
    with small_settings():
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Where it is run; what is made is in the folder ``demo`` in it."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="session")
def made(networks, place):
    """(what was found, what was printed), where no source of the released network is reached"""
    printed = io.StringIO()
    with (
        small_settings(),
        no_source(place),
        contextlib.chdir(place),
        contextlib.redirect_stdout(printed),
    ):
        found = demo.run_demo("demo", per_class=1, workers=1, checkpoints=networks)
    return found, printed.getvalue()


@pytest.fixture
def page(made, place):
    return read(place / "demo" / "index.html")
