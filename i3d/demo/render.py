"""Videos of synthetic human actions, as arrays and as .mp4 files.

    action, seed --stage--> Shot: joints in space -> points in the picture of the seed's scene
    Shot -----> frames --encode_mp4--> bytes of an .mp4 file

The same seed gives the same pixels with the same version of OpenCV; another version may draw edges
a little differently.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from i3d import console, files
from i3d.demo.actions import ACTIONS, ALL_ACTIONS, JOINT, SIDES, check_action, perform
from i3d.demo.scene import FPS, Scene, draw_scene
from i3d.errors import I3DError, UsageError
from i3d.parallel.pool import Died, Failed, Result, WorkerPool
from i3d.video.writer import Mp4Writer

AHEAD = 3  # videos begun per worker beyond the one that is written next

# What is drawn: the convex hull of circles around joints (radii in heights), and what covers it.
_PARTS: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = (
    ("trousers", (("left hip", 0.056), ("right hip", 0.056), ("waist", 0.062))),
    ("shirt", (("waist", 0.066), ("left shoulder", 0.04), ("right shoulder", 0.04))),
    ("skin", (("neck", 0.03), ("head", 0.026))),
    ("hair", (("hair", 0.072),)),
    ("skin", (("head", 0.07),)),
    *(part for side in SIDES for part in (
        ("upper sleeve", ((f"{side} shoulder", 0.037), (f"{side} elbow", 0.029))),
        ("lower sleeve", ((f"{side} elbow", 0.028), (f"{side} wrist", 0.022))),
        ("skin", ((f"{side} wrist", 0.022), (f"{side} fingers", 0.02))),
        ("trousers", ((f"{side} hip", 0.056), (f"{side} knee", 0.042))),
        ("lower leg", ((f"{side} knee", 0.041), (f"{side} ankle", 0.029))),
        ("shoes", ((f"{side} heel", 0.026), (f"{side} toe", 0.021))),
    )),
)  # fmt: skip
_COVERS = [cover for cover, _ in _PARTS]
_JOINTS = [JOINT[joint] for _, circles in _PARTS for joint, _ in circles]  # of every circle
_RADII = np.array([radius for _, circles in _PARTS for _, radius in circles])
_ENDS = np.cumsum([len(circles) for _, circles in _PARTS])
_STARTS = _ENDS - [len(circles) for _, circles in _PARTS]

_SUBPIXEL_BITS = 4  # cv2 draws at sixteenths of a pixel
_ROUND = np.linspace(0, 2 * np.pi, 12, endpoint=False)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND)], -1)  # (12, 2)
# A part is painted three times: (colour, its own radius, shift towards the light in radii).
_LAYERS = ((0.7, 1.0, 0.0), (1.0, 0.82, 0.1), (1.15, 0.45, 0.35))


@dataclass(frozen=True)
class Shot:
    """A performance in its scene, projected into the picture at the scene's N moments."""

    scene: Scene
    points: np.ndarray  # (N, joints, 2) pixels, x before y
    depths: np.ndarray  # (N, joints) heights from the camera
    shadows: np.ndarray  # (N, joints, 2) pixels, where the joints' shadows fall on the floor
    stool: np.ndarray | None  # (N, 20, 2) pixels, see `_stool_corners`


def render_video(action: str, seed: int) -> np.ndarray:
    """Render a person who does something.

    Args:
        action: one of `i3d.demo.actions.ALL_ACTIONS`.
        seed: number, at least 0, from which all else is drawn.

    Returns:
        uint8 (T, H, W, 3) RGB at 25 fps; T, H and W are random, see `i3d.demo.scene`.

    Raises:
        UsageError: no such action.
    """
    return _draw(stage(action, seed))


def stage(action: str, seed: int) -> Shot:
    """Place an action in the scene of ``seed``; the arguments are `render_video`'s."""
    check_action(action)
    scene = draw_scene(seed)
    # The number before the seed keeps the streams apart: 0 is the scene's.
    rng = np.random.default_rng([1 + ALL_ACTIONS.index(action), seed])
    played = perform(action, rng, scene.moments, seconds=scene.frames / FPS, body=scene.body)
    heights = played.joints[..., 1]
    # The camera is aimed half-way at what is low or high.
    aim = scene.camera.aim + 0.5 * ((heights.min() + heights.max()) / 2 - 0.5)
    points, depths = _project(played.joints, scene, aim)
    shadows = played.joints.copy()
    shadows[..., 0] -= 0.3 * scene.light[0] * shadows[..., 1]
    shadows[..., 1] = 0
    stool = None
    if scene.stool is not None:
        x, z = scene.stool
        place = np.array([x, 0.28, z]) if played.seat is None else played.seat
        corners = np.broadcast_to(_stool_corners(place), (len(points), 20, 3))
        stool, _ = _project(corners, scene, aim)
    return Shot(scene, points, depths, _project(shadows, scene, aim)[0], stool)


def _project(places: np.ndarray, scene: Scene, aim: float) -> tuple[np.ndarray, np.ndarray]:
    """Places in space (N, P, 3) -> pixels (N, P, 2) and distances from the camera (N, P)."""
    camera = scene.camera
    sin, cos = np.sin(camera.azimuth)[:, None], np.cos(camera.azimuth)[:, None]  # (N, 1)
    x, y, z = np.moveaxis(places - [0, aim, 0], -1, 0)  # (N, P) each
    right, near = cos * x - sin * z, sin * x + cos * z
    up = np.cos(camera.elevation) * y - np.sin(camera.elevation) * near
    depth = camera.distance - np.sin(camera.elevation) * y - np.cos(camera.elevation) * near
    pixels = camera.scale[:, None] * camera.distance / depth
    flat = np.stack([right * pixels, -up * pixels], -1)  # (N, P, 2)
    sin, cos = np.sin(camera.tilt), np.cos(camera.tilt)
    rotation = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    middle = np.array([scene.width, scene.height]) / 2 + camera.shift
    return flat @ rotation.transpose(0, 2, 1) + middle[:, None], depth


def _stool_corners(seat: np.ndarray) -> np.ndarray:
    """The corners of a stool under a pelvis: 8 of the top, 8 below it, 4 feet; (20, 3)."""
    around = np.linspace(0, 2 * np.pi, 8, endpoint=False) + np.pi / 8
    ring = np.stack([np.cos(around), 0 * around, np.sin(around)], -1)
    top = seat[1] - 0.065
    rings = [(0.13, top), (0.13, top - 0.035), (0.11, 0.0)]
    places = [seat * [1, 0, 1] + radius * ring + [0, height, 0] for radius, height in rings]
    return np.concatenate([places[0], places[1], places[2][::2]])


def _draw(shot: Shot) -> np.ndarray:
    """Paint the frames: uint8 (T, H, W, 3)."""
    scene = shot.scene
    frames = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    outlines = _outlines(shot)
    for i in range(scene.frames):
        exposed: list[np.ndarray] = []
        for n in range(i * scene.exposures, (i + 1) * scene.exposures):
            picture = _paint_backdrop(scene, n)
            _paint_shadow(picture, shot, n)
            if shot.stool is not None:
                _paint_stool(picture, shot.stool[n], scene)
            _paint_figure(picture, shot, outlines[:, n], n)
            exposed.append(picture)
        blurred = np.asarray(np.mean(exposed, axis=0, dtype=np.float32).round(), np.uint8)
        top, left = scene.noise_at[i]
        noise = scene.noise[top : top + scene.height, left : left + scene.width]
        cv2.add(cv2.LUT(blurred, scene.tones), noise, dst=frames[i], dtype=cv2.CV_8U)
    return frames


def _paint_backdrop(scene: Scene, n: int) -> np.ndarray:
    """The backdrop and the clutter before it, as the camera sees them at moment n."""
    camera, time = scene.camera, n / scene.exposures
    size = np.array([scene.width, scene.height])
    zoom = camera.scale[n] / camera.scale.mean()
    cos, sin = zoom * np.cos(camera.tilt[n]), zoom * np.sin(camera.tilt[n])
    turn = np.array([[cos, -sin], [sin, cos]])
    middle = np.array(scene.backdrop.shape[1::-1]) / 2
    offset = size / 2 + camera.shift[n] + scene.scroll * time - turn @ middle
    picture: np.ndarray = cv2.warpAffine(
        scene.backdrop, np.column_stack([turn, offset]), size.tolist(), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    for shape in scene.clutter:
        cos, sin = np.cos(shape.spin * time), np.sin(shape.spin * time)
        margin = 0.1 * scene.height  # what leaves on one side comes in on the other
        place = (shape.start + shape.velocity * time) % (size + 2 * margin) - margin
        outline = shape.outline @ np.array([[cos, sin], [-sin, cos]]) + place + camera.shift[n]
        _fill(picture, _fixed_point(outline), shape.color)
    return picture


def _paint_shadow(picture: np.ndarray, shot: Shot, n: int) -> None:
    """Darken the floor under the figure."""
    scene = shot.scene
    if not scene.shadow:
        return
    mask = np.full((scene.height // 2, scene.width // 2), 255, np.uint8)  # soft: half the pixels do
    dark = 255 * (1 - scene.shadow)
    places = _fixed_point(shot.shadows[n, _JOINTS] / 2)
    widths = np.maximum(1, scene.camera.scale[n] * scene.build * _RADII).astype(int)
    for start, end in zip(_STARTS, _ENDS, strict=True):
        cv2.line(mask, places[start].tolist(), places[end - 1].tolist(), dark, int(widths[start]),
                 cv2.LINE_AA, _SUBPIXEL_BITS)  # fmt: skip
    light = cv2.resize(cv2.blur(mask, (5, 5)), (scene.width, scene.height))
    cv2.multiply(picture, cv2.merge([light, light, light]), dst=picture, scale=1 / 255)


def _paint_stool(picture: np.ndarray, corners: np.ndarray, scene: Scene) -> None:
    """Paint a stool from its corners (20, 2)."""
    wood = scene.colors["stool"]
    points = _fixed_point(corners)
    for top, foot in zip(points[8:16:2], points[16:], strict=True):
        cv2.line(picture, top.tolist(), foot.tolist(), (0.6 * wood).tolist(), 2, cv2.LINE_AA,
                 _SUBPIXEL_BITS)  # fmt: skip
    _fill(picture, points[:16], 0.75 * wood)
    _fill(picture, points[:8], wood)


def _outlines(shot: Shot) -> np.ndarray:
    """The circles of all layers, in fixed point: (layers, N, circles, 12, 2)."""
    scene = shot.scene
    scale = (scene.camera.scale * scene.camera.distance)[:, None] / shot.depths[:, _JOINTS]
    radii = (scene.build * _RADII * scale)[..., None, None]  # (N, circles, 1, 1)
    centers = shot.points[:, _JOINTS, None]  # (N, circles, 1, 2)
    layers = [
        centers + radii * (size * _CIRCLE + shift * scene.light) for _, size, shift in _LAYERS
    ]
    return _fixed_point(np.stack(layers))


def _paint_figure(picture: np.ndarray, shot: Shot, outlines: np.ndarray, n: int) -> None:
    """Paint the parts of the body, the farthest one first."""
    depths = np.add.reduceat(shot.depths[n, _JOINTS], _STARTS) / (_ENDS - _STARTS)
    depths[_COVERS.index("hair")] += 0.015  # in profile the face is in front
    nearness = np.clip(1 - 0.5 * (depths - depths.mean()), 0.8, 1.2)  # what is far is darker
    for part in np.argsort(-depths, kind="stable"):
        color = shot.scene.colors[_COVERS[part]] * nearness[part]
        for layer, (shade, _, _) in enumerate(_LAYERS):
            _fill(picture, outlines[layer, _STARTS[part] : _ENDS[part]], shade * color)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _fill(picture: np.ndarray, points: np.ndarray, color: np.ndarray | tuple[float, ...]) -> None:
    """Fill the convex hull of fixed-point points (..., 2)."""
    hull = cv2.convexHull(points.reshape(-1, 1, 2))
    cv2.fillConvexPoly(picture, hull, tuple(map(float, color)), cv2.LINE_AA, _SUBPIXEL_BITS)


def encode_mp4(frames: np.ndarray, *, fps: int = FPS) -> bytes:
    """H.264 in mp4. The same frames give the same bytes with the same FFmpeg.

    Args:
        frames: uint8 (T, H, W, 3) RGB, T at least 1, H and W even.
        fps: frames per second.

    Raises:
        UsageError: wrong type or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UsageError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
    file = io.BytesIO()
    with Mp4Writer(file, width=frames.shape[2], height=frames.shape[1], fps=fps) as video:
        for picture in frames:
            video.write(picture)
    return file.getvalue()


def render_dataset(
    folder: str | os.PathLike[str],
    *,
    per_class: int,
    seed: int,
    actions: Sequence[str] = ACTIONS,
    progress: bool = False,
    workers: int = 1,
) -> int:
    """Write ``folder/<class name>/<class-name>-<number>.mp4`` for every action.

    Files that are there are left alone, so that a broken run goes on where it stopped. A video
    depends on the seed, its class and its number alone; sets of other seeds have other videos.

    Args:
        folder: a local folder, made if need be.
        per_class: videos of each class.
        seed: number that the videos depend on, at least 0.
        actions: any of `i3d.demo.actions.ALL_ACTIONS`.
        progress: whether to show a progress bar on standard error.
        workers: processes that render.

    Returns:
        The number of videos that were rendered.

    Raises:
        UsageError: a negative seed, fewer than one video or worker, or no such action.
        I3DError: a worker process died twice over the same video.
    """
    if min(per_class, workers) < 1 or seed < 0:
        least = f"per_class={per_class} and workers={workers} must be at least 1"
        raise UsageError(f"{least}, seed={seed} at least 0")
    for action in actions:
        check_action(action)
    jobs, paths = [], []
    for number in range(per_class):
        for action in actions:
            path = Path(folder) / action / f"{action.replace(' ', '-')}-{number:04d}.mp4"
            paths.append(path)
            if not path.exists():
                place = [seed, ALL_ACTIONS.index(action), number]
                state = np.random.SeedSequence(place).generate_state(2)
                jobs.append(_VideoJob(path, action, int(state[0]) << 32 | int(state[1])))
    title = "render" if progress else None
    with console.progress_bar(title, total=len(jobs), unit="videos") as bar:
        for done, (path, mp4) in enumerate(_render_all(jobs, workers=workers), start=1):
            files.write(path, mp4)
            bar.update(done)
    files.remove_leftovers(paths)
    return len(jobs)


@dataclass(frozen=True)
class _VideoJob:
    """A video that is to be made."""

    path: Path
    action: str
    seed: int


def _render_all(jobs: Sequence[_VideoJob], *, workers: int) -> Iterator[tuple[Path, bytes]]:
    """The files of the jobs, in their order: this process writes them, so none is left half."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from ((job.path, encode_mp4(render_video(job.action, job.seed))) for job in jobs)
        return
    with WorkerPool(_work, workers=workers) as pool:
        for job, outcome in pool.map(jobs, ahead=AHEAD * workers):
            if isinstance(outcome, Failed):
                raise outcome.error from RuntimeError(outcome.traceback)
            if isinstance(outcome, Died):
                raise I3DError(f"{job.path}: {outcome}; what is rendered stays: run again to go on")
            yield job.path, outcome.value


def _work(job: _VideoJob) -> Result:
    cv2.setNumThreads(1)  # the workers share the cores
    return Result(encode_mp4(render_video(job.action, job.seed)))
