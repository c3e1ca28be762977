"""Fixtures: small videos, and the same ones in every form."""

import pytest
from support.footage import make_videos, write_everything


@pytest.fixture(scope="session")
def real_videos():
    return make_videos(5, 1)


@pytest.fixture(scope="session")
def fake_videos():
    return make_videos(4, 2)


@pytest.fixture(scope="session")
def forms(tmp_path_factory, fake_videos):
    return write_everything(tmp_path_factory.mktemp("forms"), fake_videos)
