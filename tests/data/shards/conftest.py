"""A folder to write shards to, and one of written shards."""

import pytest
from support.shards import write_folder


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return tmp_path / "out" if request.param == "local" else f"memory://{tmp_path.name}/out"


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "out"
    write_folder(folder)
    return folder
