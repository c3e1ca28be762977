"""`i3d fvd` as a whole: protocols, citations, sizes, sweeps, classes, the page, every clip."""

import html
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from support.bundles import lively_model
from support.videos import write_video

import i3d
from i3d.cli import main
from i3d.tasks.fvd.options import ProtocolName
from i3d.tasks.fvd.protocols import PROTOCOLS

pytestmark = pytest.mark.filterwarnings("ignore::i3d.tasks.fvd.result.FewVideosWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    i3d.save(lively_model(2, num_classes=5), path)
    return path


def picture(rng, height, width):
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Lossless videos of 20 to 23 frames in two classes; the fake ones are smaller."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name, size in (("real", (48, 64)), ("fake", (32, 32))):
        for i in range(6):
            path = root / name / ("archery" if i % 2 else "bowling") / f"v{i}.mkv"
            path.parent.mkdir(parents=True, exist_ok=True)
            still = picture(rng, *size)
            frames = np.stack([np.roll(still, i * t, 1) for t in range(20 + i % 4)])
            write_video(path, frames, codec="ffv1", pixel_format="bgr0", rate=25)
    return root


@pytest.fixture
def call(capsys):
    """Function: arguments -> (exit code, standard output, standard error)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["fvd", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture
def run(call, folders, checkpoint):
    """The same of these sets and this network."""

    def run(*arguments, sets=("real", "fake")):
        how = "--checkpoint", checkpoint, "--device", "cpu", "--workers", "0"
        return call(*(folders / name for name in sets), *how, *arguments)

    return run


def test_the_table_has_every_protocol(call):
    code, text, _ = call("--protocols")
    assert code == 0
    for name, protocol in PROTOCOLS.items():
        assert re.search(rf"^{re.escape(name)} +{protocol.frames} ", text, re.MULTILINE)
        assert f"{name}: {protocol.source}" in text
    assert set(PROTOCOLS) == set(ProtocolName.__args__)
    assert len(json.loads(call("--protocols", "--json")[1])["protocols"]) == len(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_bibtex_of_every_protocol_is_whole(name, call):
    changes = ["--context", "2"] if name == "prediction" else []
    code, text, _ = call("--cite", "--protocol", name, *changes)
    assert code == 0
    entries = re.findall(r"^@\w+\{\w+,$", text, re.MULTILINE)
    assert len(entries) == (2 if name == "google-2018" else 3)
    assert text.count("{") == text.count("}")


def test_a_sentence_for_a_paper(run):
    code, out, _ = run("--cite", "--frames", "9", "--resolution", "32")
    assert code == 0
    flat = " ".join(out.split())
    value = out.split()[1]
    assert f"FVD is {value} between 6 real and 6 generated videos" in flat
    assert "the first clip of 9 frames of each video, frames resized to 32 x 32 first" in flat
    assert "changed in resolution=32, frames=9" in flat
    code, out, _ = run("--cite", "--frames", "9", "--resolution", "32", "--json")
    report = json.loads(out)
    assert report["bibtex"].startswith("@article{unterthiner2018") and report["fvd"] > 0


def test_sets_of_other_sizes_are_warned_of(run):
    code, out, _ = run("--frames", "9")
    assert code == 0
    assert (
        "warning: REAL has frames of 64x48, FAKE of 32x32: the distance measures that, too; "
        "--resolution 32 makes both of one size first"
    ) in out
    for changes in (["--resolution", "32"], ["--protocol", "cd-fvd", "--frames", "9"]):
        _, out, _ = run("--frames", "9", *changes)
        assert "REAL has frames" not in out


def test_statistics_know_sizes(run, tmp_path):
    saved = tmp_path / "real.npz"
    assert run("--frames", "9", "--save-statistics", saved, sets=["real"])[0] == 0
    _, out, _ = run("--frames", "9", sets=[saved, "fake"])
    assert "REAL has frames of 64x48, FAKE of 32x32" in out
    code, _, err = run("--frames", "9", "--resolution", "32", sets=[saved, "fake"])
    assert code == 2 and "resolution: 32 and" in err


def test_shorter_clips_are_those_of_their_own_runs(run):
    """One pass over the videos, and the same digits."""
    _, out, _ = run("--frames", "16", "--sweep", "9,12", "--json")
    lengths = {p["frames"]: p["distance"] for p in json.loads(out)["lengths"]}
    assert set(lengths) == {9, 12, 16}
    for frames, value in lengths.items():
        _, alone, _ = run("--frames", str(frames), "--json")
        assert json.loads(alone)["fvd"] == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "9,x"], "sweep '9,x': numbers of frames are needed"),
        (["--sweep", "32"], "sweep 32: clips have 16 frames; give --frames 32 as well"),
        (["--sweep", "4"], "frames 4: the network needs at least 9"),
        (["--protocol", "prediction"], "say with --context how many frames were given"),
        (["--context", "16"], "context 16: all 16 frames of a clip would be given ones"),
        (["--report", "page.txt"], "a report is a page; end its name in .html"),
        (["--resolution", "0"], "resolution 0: it must be 1 to 1024 pixels"),
        (["--filter", "area"], "filter area: it says nothing without a resolution"),
        (["--seed", "3"], "seed 3: it says nothing without random clips"),
        (["--context-frames", "dropped"], "it says nothing without a context"),
        (["--clips", "every", "--frames", "9", "--interval"], "those of one video are not: leave"),
    ],
)
def test_mistakes(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_no_set_is_written_over(run, call, tmp_path, checkpoint):
    rng = np.random.default_rng(0)
    for name in ("real", "fake"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(20, 5)))
    before = (tmp_path / "real.npy").read_bytes()
    given = tmp_path / "real.npy", tmp_path / "fake.npy"
    for option in ("--output", "--report"):
        code, _, err = call(*given, option, given[0])
        assert code == 2 and ("one of the sets" in err or ".html" in err)
    assert (tmp_path / "real.npy").read_bytes() == before


def test_features_and_statistics_say_at_once_what_they_cannot_give(call, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("real", "fake"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(20, 5)))
    given = tmp_path / "real.npy", tmp_path / "fake.npy"
    code, _, err = call(*given, "--frames", "32")
    assert code == 2 and "holds features, for which frames says nothing" in err
    code, _, err = call(*given, "--sweep", "9")
    assert code == 2 and "holds no videos, which --sweep needs" in err
    code, _, err = call("", given[1])
    assert code == 2 and "'' names no set" in err


def test_an_interval_needs_the_rows_of_one_set(run, tmp_path):
    """Of 500 features in a file of statistics no rows are left; the other set's are enough."""
    saved = tmp_path / "many.npz"
    videos = np.random.default_rng(1).integers(0, 256, (270, 9, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "many.npy", videos)
    run("--frames", "9", "--save-statistics", saved, sets=[tmp_path / "many.npy"])
    code, out, _ = run("--frames", "9", "--interval", "--json", sets=[saved, "fake"])
    low, high = json.loads(out)["interval"]
    assert code == 0 and low < high
    code, _, err = run("--frames", "9", "--kvd", sets=[saved, "fake"])
    assert code == 2 and "holds the sums of many videos" in err


def test_videos_that_lack_a_whole_stride_are_left_out(run):
    """Of 20 to 23 frames: 11 at stride 2 take 21, and StyleGAN-V wants 22."""
    _, out, _ = run("--protocol", "stylegan-v", "--frames", "11", "--stride", "2", "--json")
    report = json.loads(out)
    assert (report["real"]["used"], report["real"]["skipped"]) == (2, 4)  # 22 and 23 frames
    _, out, _ = run("--frames", "11", "--stride", "2", "--json")
    assert json.loads(out)["real"]["used"] == 4  # from 21 on


def test_other_numbers(run):
    code, out, _ = run(
        *("--frames", "9", "--kvd", "--precision-recall", "--per-class", "--interval", "--json")
    )
    report = json.loads(out)
    assert code == 0 and report["kvd"] is not None
    assert 0 <= report["precision_recall"]["precision"] <= 1
    assert [(c["name"], c["real"], c["fake"]) for c in report["classes"]] == [
        ("archery", 3, 3),
        ("bowling", 3, 3),
    ]
    low, high = report["interval"]
    assert low <= report["fvd"] <= high


def test_every_clip_and_short_videos(run):
    """20 to 23 frames: two clips of 9 each, or none of 24; which looped are six."""
    _, out, _ = run("--frames", "9", "--clips", "every", "--json")
    report = json.loads(out)
    assert (report["real"]["used"], report["real"]["clips"]) == (6, 12)
    assert "real=6x12clips:files" in report["line"]
    code, _, err = run("--frames", "24")
    assert code == 1
    assert "archery/v1: 21 frames; 24 frames need 24 (--short loop or stretch would" in err
    for rule in ("loop", "stretch"):
        _, out, _ = run("--frames", "24", "--short", rule, "--json")
        report = json.loads(out)
        assert f"short={rule}" in report["name"] and report["real"]["used"] == 6


def test_what_was_measured_before_is_said(run):
    first = run("--frames", "9")
    again = run("--frames", "9")
    assert again[1] == first[1]
    assert "measured before" not in first[2]
    assert "12 of 12 videos were measured before; --no-cache measures them again" in again[2]
    assert "measured before" not in run("--frames", "9", "--no-cache")[2]


def test_given_frames_count_or_not(run):
    counted = run("--protocol", "prediction", "--context", "2", "--frames", "9", "--json")[1]
    dropped = run(
        *("--protocol", "prediction", "--context", "2", "--frames", "9", "--json"),
        *("--context-frames", "dropped"),
    )[1]
    assert "context=2 context_frames=counted" in json.loads(counted)["line"]
    assert "context=2, context_frames=dropped" in json.loads(dropped)["name"]
    assert json.loads(counted)["fvd"] != json.loads(dropped)["fvd"]


def test_the_page_shows_the_videos(run, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run("--frames", "9", "--sweep", "9", "--report", str(page))
    assert code == 0
    text = page.read_text()
    assert html.escape(out.splitlines()[0], quote=True).replace("&#x27;", "&#39;") in text
    assert text.count("data:image/jpeg") >= 6  # a strip of each of the nearest and farthest
    assert "archery/v1" in text


def test_a_set_again_from_another_place(run, folders, tmp_path):
    """Copies are other files, so they are measured again, to the same digits."""
    shutil.copytree(folders / "real", tmp_path / "copy")
    one = run("--frames", "9", "--json")[1]
    again = run("--frames", "9", "--json", sets=(tmp_path / "copy", "fake"))[1]
    assert json.loads(one) == json.loads(again)
