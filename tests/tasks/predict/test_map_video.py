"""The video of activation maps: what is in the file, and that no other one is left."""

import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from support import bundles
from support.videos import noise_images, write_video

import i3d
from i3d.cli import main
from i3d.errors import UsageError, VideoError
from i3d.models.checkpoints import save
from i3d.presets import KINETICS_I3D, find_preset
from i3d.tasks.predict import MapVideo, Predictor, map_picture, map_video, upsample_map
from i3d.tasks.predict.map_picture import CAPTION_HEIGHT, Layout, draw_caption, fit_text

HOSTILE = "a\x1b[2J\n\u202ecba\u0000" + "ह" * 500 + "x" * 100_000
CLASSES = [f"action {i}" for i in range(7)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A network of pictures of 14x14 pixels, which takes no time."""
    path = tmp_path_factory.mktemp("networks") / "tiny.safetensors"
    save(bundles.small_model(preset="kinetics-i3d-16"), path)
    return path


@pytest.fixture(scope="module")
def predictor(networks):
    return Predictor(str(networks["rgb"]), device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 gray frames of moving noise: what has colour in a picture is the map's."""
    path = tmp_path_factory.mktemp("videos") / "noise.mp4"
    images = [cv2.GaussianBlur(x, (0, 0), 3) for x in noise_images(40, width=340, height=256)]
    write_video(path, [x[..., :1].repeat(3, -1) for x in images])
    return str(path)


def decoded(path) -> np.ndarray:
    """Frames by PyAV alone, uint8 (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--device", "cpu", *map(str, arguments)])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_file_is_the_videos_frames_in_a_form_that_browsers_play(networks, video, tmp_path, capsys):
    output = tmp_path / "where.MP4"
    (tmp_path / ".where.0123456789ab.tmp.MP4").write_bytes(b"of a run that was killed")
    code, out, _ = run(
        capsys, video, "--checkpoint", networks["rgb"], "--every", 0.6, "--map", output, "--json"
    )
    assert code == 0
    (result,) = json.loads(out)["results"]
    with av.open(str(output)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
        assert stream.frames == result["frames"] == 40
        assert (stream.width, stream.height) == (680, 512 + CAPTION_HEIGHT)
        assert [f.time for f in container.decode(video=0)] == [i / 25 for i in range(40)]
    data = output.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["where.MP4"]


def test_without_windows_a_short_video_is_shown_once(tiny, video, tmp_path, capsys):
    """The clip is looped to 250 frames, the video is not."""
    output = tmp_path / "where.mp4"
    assert run(capsys, video, "--checkpoint", tiny, "--map", output)[0] == 0
    assert len(decoded(output)) == 40


def test_only_what_was_looked_at_is_shown(networks, video, tmp_path):
    predictor, output = Predictor(str(networks["rgb"]), device="cpu"), tmp_path / "where.mp4"
    predictor.preset = replace(predictor.preset, clip_frames=10)  # in place of 10 s
    with MapVideo(output, predictor) as maps:
        prediction = predictor.predict(video, every_seconds=0.6, watch=maps.add)
    assert [w.start_seconds for w in prediction.windows] == [0, 0.6, 1.2]
    pictures = decoded(output)
    assert len(pictures) == 30
    source = i3d.read_video(video, short_side=512)[[0, 15, 30]]
    assert source.shape[1:] == (512, 680, 3)
    for i, frame in zip((0, 10, 20), source, strict=True):
        same, other = (
            np.corrcoef(picture[:512, :80].ravel(), frame[:, :80].ravel())[0, 1]
            for picture in (pictures[i], pictures[(i + 10) % 30])
        )
        assert same > 0.8 > 0.3 > other  # measured 0.96 and 0.00


def test_colour_is_where_the_map_is(predictor, video, tmp_path, monkeypatch):
    torch.manual_seed(0)
    map_ = torch.randn(4, 7, 7)  # half of it against the class
    monkeypatch.setattr(map_video, "activation_map", lambda *_: map_)
    output, looks = tmp_path / "where.mp4", []
    with MapVideo(output, predictor) as maps:

        def watch(look):
            looks.append(look)
            maps.add(look)

        predictor.predict(video, every_seconds=1.6, watch=watch)
    (look,) = looks
    expected = np.clip(upsample_map(map_, 40, 224).numpy(), 0, None)
    pictures = decoded(output)[:, :512].astype(float)
    small = np.stack([cv2.resize(p, (340, 256), interpolation=cv2.INTER_AREA) for p in pictures])
    color = np.ptp(small, axis=-1)
    square = color[:, 16:240, 58:282]
    correlation = np.corrcoef(square.ravel(), expected.ravel())[0, 1]
    elsewhere = np.corrcoef(square[:, ::-1].ravel(), expected.ravel())[0, 1]
    assert correlation > 0.9 > elsewhere  # measured 0.97: colours are no line; and -0.12
    assert square[expected == 0].mean() < 5  # gray levels
    outside = np.ones((256, 340), bool)
    outside[14:242, 56:284] = False
    assert color[:, outside].mean() < 5
    source = look.frames.mean(-1)
    dark = small.mean(-1)[:, outside] / source[:, outside]
    np.testing.assert_allclose(dark.mean(), 0.35, atol=0.03)


@pytest.mark.parametrize("streams", [["flow"], ["rgb", "flow"]])
def test_streams_stand_side_by_side(networks, tmp_path, streams):
    frames = np.stack([cv2.GaussianBlur(x, (0, 0), 3) for x in noise_images(10, 256, 256)])
    predictor = Predictor([str(networks[s]) for s in streams], device="cpu")
    output = tmp_path / "where.mp4"
    with MapVideo(output, predictor) as maps:
        predictor.predict(frames, every_seconds=0.4, watch=maps.add)
    pictures = decoded(output)
    assert pictures.shape == (10, 512 + CAPTION_HEIGHT, (516 if len(streams) == 2 else 0) + 512, 3)
    for left in range(0, pictures.shape[2], 516):
        assert pictures[:, :512, left : left + 512].std() > 10


def test_two_networks_of_a_stream_add_their_maps(networks, predictor, video):
    looks = []
    both = Predictor([str(networks["rgb"])] * 2, device="cpu")
    both.predict(video, every_seconds=1.6, watch=looks.append)
    alone = MapVideo("x.mp4", predictor)._find_evidence(looks[0], 3)
    double = MapVideo("x.mp4", both)._find_evidence(looks[0], 3)
    np.testing.assert_allclose(double["rgb"], 2 * alone["rgb"])


def test_captions_are_the_segments(predictor, video, tmp_path, monkeypatch):
    """One rule for both; where it says "uncertain" the map is the most probable class's."""
    said, asked = [], []
    monkeypatch.setattr(
        map_video, "draw_caption", lambda canvas, *what, **how: said.append((*what, how))
    )
    activation_map = i3d.activation_map

    def note(model, clip, index):
        asked.append(index)
        return activation_map(model, clip, index)

    monkeypatch.setattr(map_video, "activation_map", note)
    scale = iter([1e-3, 1e3, 1e-3])
    compute_logits = predictor._logits
    monkeypatch.setattr(
        predictor, "_logits", lambda *arguments: compute_logits(*arguments) * next(scale)
    )
    with MapVideo(tmp_path / "where.mp4", predictor) as maps:
        prediction = predictor.predict(video, every_seconds=0.6, watch=maps.add)
    names = [segment.name for segment in prediction.segments]
    assert names[0] is names[2] is None and names[1] is not None
    windows = [i for i, window in enumerate(prediction.windows) for _ in range((15, 15, 10)[i])]
    assert len(said) == len(windows) == 40
    for i, (window, (name, probability, how)) in enumerate(zip(windows, said, strict=True)):
        segment = prediction.segments[window]
        assert how["is_sure"] == (segment.name is not None)
        best = int(prediction.windows[window].logits.argmax())
        assert (name, asked[window]) == (CLASSES[best], best)
        if segment.name is not None:
            assert (name, probability) == (segment.name, segment.probability)
        assert how["seconds"] == pytest.approx(i / 25)


def test_a_window_over_a_cut_has_the_names_of_both_segments(predictor, tmp_path, monkeypatch):
    """Frame by frame, and the maps of the classes that stand under them."""
    said, asked = [], []
    monkeypatch.setattr(
        map_video, "draw_caption", lambda canvas, name, *_, seconds, **__: said.append(name)
    )
    activation_map = i3d.activation_map

    def note(model, clip, index):
        asked.append(index)
        return activation_map(model, clip, index)

    monkeypatch.setattr(map_video, "activation_map", note)
    answers = iter([1, 6, 2, 5])
    monkeypatch.setattr(
        predictor, "_logits", lambda *_: 50 * np.eye(7, dtype=np.float32)[next(answers)]
    )
    scenes = [np.full((256, 256, 3), level, np.uint8) for level in (0, 255)]
    frames = np.stack([scenes[0]] * 20 + [scenes[1]] * 32 + [scenes[0]] * 8)
    with MapVideo(tmp_path / "where.mp4", predictor) as maps:
        prediction = predictor.predict(frames, every_seconds=0.6, watch=maps.add)
    assert [w.cuts for w in prediction.windows] == [(), (0.8,), (), (2.08,)]
    expected = [(0.0, 0.8, 1), (0.8, 2.08, 2), (2.08, 2.4, 5)]
    found = [(s.start_seconds, s.end_seconds, s.index) for s in prediction.segments]
    assert found == expected
    names = [next(CLASSES[index] for _, end, index in expected if i / 25 < end) for i in range(60)]
    assert said == names
    assert asked == [1, 1, 2, 2, 2, 5]
    assert len(decoded(tmp_path / "where.mp4")) == 60


@pytest.mark.parametrize("sure", [True, False])
def test_caption_has_the_room_that_it_has(sure):
    layout = Layout.fit(256, 340, KINETICS_I3D, 1)

    def caption(name: str, probability: float = 0.97) -> np.ndarray:
        canvas = layout.canvas()
        draw_caption(canvas, name, probability, is_sure=sure, seconds=3600.04, span="window")
        return canvas

    blank, short, long = layout.canvas(), caption("bowing"), caption(HOSTILE)
    assert (short[:512] == blank[:512]).all() and (long[:512] == blank[:512]).all()
    assert (short[512:] != blank[512:]).any(-1).mean() > 0.02
    probability = np.s_[512:556, -90:]
    assert (short[probability] != blank[probability]).any()
    np.testing.assert_array_equal(short[probability], long[probability])
    assert (caption("bowing", 0.12)[probability] != short[probability]).any()


def test_names_of_any_script_and_none():
    for name in ("clean and jerk", "приседание", "深蹲", "스쿼트", "ñandú?"):
        assert fit_text(name, 28, 1000) == name
    assert fit_text("squat \U0001f3cb हि", 28, 1000) == "squat \\U0001f3cb \\u0939\\u093f"
    assert fit_text("a\x1b[2J\n\u202eb", 28, 1000) == "a\\x1b[2J\\n\\u202eb"
    assert (
        fit_text("squat (\u05e9\u05dc\u05d5\u05dd 12 \u05e7\u05e4\u05d4) jump", 28, 1000)
        == "squat (\u05d4\u05e4\u05e7 12 \u05dd\u05d5\u05dc\u05e9) jump"
    )
    for room in (0, 5, 50, 500):
        fitted = fit_text(HOSTILE, 28, room)
        assert map_picture.measure_text(fitted, 28) <= max(room, 0)
        assert "?" not in fitted
    assert fitted.startswith("a\\x1b[2J\\n\\u202ecba") and fitted.endswith("…")


@pytest.mark.parametrize("size", [(256, 16384), (16384, 256), (16, 16), (224, 224)])
def test_pictures_of_any_shape_have_an_even_size_of_bounded_length(size):
    preset = KINETICS_I3D if min(size) > 16 else find_preset("kinetics-i3d-16")
    layout = Layout.fit(*size, preset, 2)
    height, width = layout.size
    assert height % 2 == width % 2 == 0 and max(height, width) <= 2 * 1280 + 4
    canvas = layout.canvas()
    frame, shares = np.full((*size, 3), 99, np.uint8), np.ones((preset.crop, preset.crop))
    for panel, stream in enumerate(("rgb", "flow")):
        place = layout.place(canvas, panel)
        map_picture.draw_picture(place, frame, shares.astype(np.float32), layout, stream)
        assert place.size


# --- what is not written --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_in_the_middle_nothing_is_left(predictor, video, tmp_path, error):
    def watch(look):
        maps.add(look)
        assert list(tmp_path.iterdir())  # it has begun
        raise error

    with pytest.raises(error), MapVideo(tmp_path / "where.mp4", predictor) as maps:
        predictor.predict(video, every_seconds=0.6, watch=watch)
    assert not list(tmp_path.iterdir())


def test_a_video_that_fails_in_the_middle_leaves_nothing(
    networks, video, tmp_path, capsys, monkeypatch
):
    compute_logits = Predictor._logits

    def fail_later(self, clips, where):
        if "0.6 s" in where:
            raise VideoError(f"{where}: NaN")
        return compute_logits(self, clips, where)

    monkeypatch.setattr(Predictor, "_logits", fail_later)
    output = tmp_path / "where.mp4"
    output.write_bytes(b"of an earlier run")
    options = ["--checkpoint", networks["rgb"], "--every", 0.6, "--map", output]
    code, _, err = run(capsys, video, *options)
    assert code == 1 and "0.6 s: NaN" in err
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["where.mp4"]
    assert output.read_bytes() == b"of an earlier run"


def test_without_a_window_there_is_no_file(predictor, tmp_path):
    with MapVideo(tmp_path / "where.mp4", predictor):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_named(predictor, video, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(map_video.Mp4Writer, "write", full)
    output = tmp_path / "where.mp4"
    with pytest.raises(OSError) as caught, MapVideo(output, predictor) as maps:
        predictor.predict(video, every_seconds=0.6, watch=maps.add)
    assert caught.value.filename == str(output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("videos", "output", "words"),
    [
        (["VIDEO", "VIDEO"], "where.mp4", "--map shows one video, not 2"),
        (["VIDEO"], "where.avi", r"where.avi: a video of maps is an .mp4 file; end the name so"),
        (["VIDEO"], "no/where.mp4", "cannot write to the folder"),
        (["VIDEO"], "folder.mp4", "that is a folder"),
        (["VIDEO"], "VIDEO", "that is the video itself; give another name"),
    ],
)
def test_mistakes_in_the_call_exit_with_2(
    networks, video, tmp_path, capsys, monkeypatch, videos, output, words
):
    (tmp_path / "folder.mp4").mkdir()
    monkeypatch.chdir(tmp_path)
    names = [video if name == "VIDEO" else name for name in (*videos, output)]
    before = Path(video).read_bytes()
    code, out, err = run(capsys, *names[:-1], "--checkpoint", networks["rgb"], "--map", names[-1])
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert Path(video).read_bytes() == before


def test_an_exported_network_shows_no_layers(exported, tmp_path):
    path = exported("rgb")
    predictor = Predictor(str(path), device="cpu")
    with pytest.raises(UsageError, match=r"\.onnx: --map needs the network's layers, which an exp"):
        MapVideo(tmp_path / "where.mp4", predictor)
    with pytest.raises(UsageError, match=r"\.onnx: an activation map needs the network's layers"):
        i3d.activation_map(predictor.models[0], None, 0)
