"""What a features job reads again may have been changed: one line each, that names the file."""

import hashlib
import io
import json
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i3d.errors import DatasetError, UsageError
from i3d.records import SEAL, plain, seal_archive
from i3d.tasks.features.files import KIND, FeatureFolder, FeatureSettings, Rows, VideoAbout
from i3d.tasks.features.merged import merge, read_merged
from i3d.tasks.network import UsedCheckpoint

KEYS = ("a/one", "b")


def settings(container="npz"):
    return FeatureSettings(
        dataset="clips", container=container, preset="kinetics-i3d", fps=25, endpoint="clip",
        classes=(), window_frames=16, step_frames=8.0, rest="drop", short="loop", precision="fp32",
        checkpoints={"rgb": UsedCheckpoint("rgb.pt", "", "0" * 64)}, versions={"torch": "2"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Function: container -> a folder in which both videos have features."""

    def make(container="npz"):
        made = FeatureFolder(tmp_path, settings(container), KEYS)
        made.begin()
        for i, key in enumerate(KEYS):
            rows = Rows()
            rows.add(np.ones((2, 3), np.float32))
            spans = np.array([[0, 0.64], [0.32, 0.96]])
            about = VideoAbout(key, f"{key}.mp4", 24, 0.96, False, None)
            made.write(i, about, spans, {"rgb": rows})
            rows.close()
        return made

    return make


def seal(document):
    """As records.seal, of anything."""
    head = "{\n" + "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in document.items())
    return (head + SEAL.format(hashlib.sha256(head.encode()).hexdigest())).encode()


def message_of(error):
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": ["rgb"]}, "checkpoints is ['rgb']"),
        ({"checkpoints": {"rgb": "x"}}, "checkpoints.rgb is 'x'"),
        ({"versions": "2"}, "versions is '2'"),
        ({"window_frames": "16"}, "window_frames is '16'"),
        ({"classes": None}, "classes is None"),
        ({"fps": None}, "fps is None"),
    ],
)
def test_settings_of_other_types(folder, tmp_path, changes, words):
    made = folder()
    (tmp_path / "features.json").write_bytes(seal({"format": KIND, **plain(settings()), **changes}))
    with pytest.raises(DatasetError) as error:
        made.begin()
    assert words in message_of(error) and str(tmp_path) in str(error.value)


def test_a_name_with_line_ends_is_one_line(folder, tmp_path):
    made = folder()
    document = {"format": KIND, **plain(settings()), "versions": {"torch\n\nx": "2"}}
    (tmp_path / "features.json").write_bytes(seal(document))
    with pytest.raises(UsageError, match=r"begun with other settings: .*torch") as error:
        made.begin()
    message_of(error)


def header(text):
    data = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data


def array(value):
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def exchange(path, name, data):
    """Another member in the archive, under a right seal."""
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in (members | {name: data}).items():
            archive.writestr(member, content)
    seal_archive(buffer)
    path.write_bytes(buffer.getvalue())


BROKEN = [
    "{'descr': '<f8', 'shape': (2,",  # Python's tokenizer
    "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}",  # its integers
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
    "1",
]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("name", ["start_seconds.npy", "about.npy", "rgb.npy"])
def test_headers_that_numpy_cannot_read(folder, tmp_path, name, text):
    made = folder()
    exchange(tmp_path / "b.npz", name, header(text) + bytes(16))
    with pytest.raises(DatasetError) as error:
        merge(made, made.find_outcomes(), tmp_path / "all.h5", "hdf5")
    assert "b.npz is damaged" in message_of(error)
    assert "delete it and run the same command again" in str(error.value)


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"format": "i3d features 1"}', "{"])
def test_an_about_of_something_else(folder, tmp_path, text):
    made = folder()
    exchange(tmp_path / "b.npz", "about.npy", array(np.array(text)))
    with pytest.raises(DatasetError) as error:
        made.measure([0, 1])
    assert "b.npz is damaged" in message_of(error)


@pytest.mark.parametrize("damage", ["cut", "offset"])
def test_a_damaged_archive(folder, tmp_path, damage):
    """Where members would begin before the file does, a seek fails."""
    made = folder()
    path = tmp_path / "b.npz"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-200]
    else:
        at = data.rindex(b"PK\5\6") + 16
        data[at : at + 4] = (1 << 20).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DatasetError) as error:
        made.measure([0, 1])
    assert "b.npz is damaged" in message_of(error)


@pytest.mark.parametrize(
    "changes",
    [{"frames": "24"}, {"frames": None}, {"start_seconds": 1}, {"end_seconds": None}],
)
def test_what_stands_beside_an_array(folder, tmp_path, changes):
    made = folder("npy")
    path = tmp_path / "b.npy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DatasetError) as error:
        made.measure([0, 1])
    assert f"b.npy.json is damaged or was edited: {next(iter(changes))} is " in message_of(error)


@pytest.mark.parametrize(
    "changes",
    [{"found": "2"}, {"skipped": 1.5}, {"skipped": [{"video": "a"}]}, {"skipped": ["a"]}],
)
@pytest.mark.parametrize("suffix", ["parquet", "h5"])
def test_merged_files_of_other_types(tmp_path, suffix, changes):
    about = {"format": KIND, **plain(settings()), "found": 2, "skipped": []}
    path = tmp_path / f"all.{suffix}"

    def write(document):
        text = json.dumps(document)
        if suffix == "h5":
            with h5py.File(path, "w") as file:
                file["about"] = np.bytes_(text)
        else:
            table = pa.table({"video": ["a"]}).replace_schema_metadata({"i3d": text})
            pq.write_table(table, path)

    write(about)
    assert read_merged(str(path), settings()) == (2, ())
    write(about | changes)
    with pytest.raises(DatasetError) as error:
        read_merged(str(path), settings())
    assert f"all.{suffix} is damaged or was edited" in message_of(error)


# a text of variable length is the last: HDF5's library may read damage to one for ever
@pytest.mark.parametrize("about", [1, np.zeros(3), [b"a", b"b"], "group", b"{}"])
def test_an_hdf5_file_whose_about_is_no_text(tmp_path, about):
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        if isinstance(about, str):
            file.create_group("about")
        else:
            file["about"] = about
    with pytest.raises(DatasetError, match=r"all\.h5: not a feature file") as error:
        read_merged(str(path), settings())
    message_of(error)
