"""What is in a video beside the action: camera, person, clothes, room, clutter and light.

    seed --draw_scene--> Scene

The scene is drawn from a generator that does not know the action: all that is in the picture beside
the figure is equally likely in every class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from i3d.demo.actions import Body, random_body, wander

FPS = 25
FRAMES = (56, 80)  # 2.2 to 3.2 seconds
HEIGHT = (128, 144)  # pixels
ASPECT = (1.2, 1.4)  # width / height


@dataclass(frozen=True)
class Camera:
    """Where the figure is seen from, at the N moments of a scene."""

    azimuth: np.ndarray  # (N,) radians; 0 is frontal, positive sees the figure's left side
    elevation: float  # radians above the horizon
    distance: float  # heights of the figure
    scale: np.ndarray  # (N,) pixels of one height at the figure's place
    shift: np.ndarray  # (N, 2) pixels to the right and down, of the whole picture
    tilt: np.ndarray  # (N,) radians, of the whole picture
    aim: float  # the height in a standing figure that is in the middle of the picture


@dataclass(frozen=True)
class Clutter:
    """A shape that drifts behind the figure."""

    outline: np.ndarray  # (K, 2) pixels, around 0
    start: np.ndarray  # (2,) pixels
    velocity: np.ndarray  # (2,) pixels a frame
    spin: float  # radians a frame
    color: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """All of a video but the action. Colours are RGB in 0..255."""

    height: int
    width: int
    frames: int
    exposures: int  # pictures that are averaged to a frame: motion blur
    body: Body
    build: float  # thickness of the limbs, of the average
    colors: dict[str, np.ndarray]  # of what covers the parts of the body
    camera: Camera
    backdrop: np.ndarray  # uint8 (H', W', 3), larger than the picture
    scroll: np.ndarray  # (2,) pixels a frame by which the backdrop moves
    clutter: tuple[Clutter, ...]
    shadow: float  # share of the light that the figure takes from the floor
    stool: tuple[float, float] | None  # x and z of its place where nobody sits on it
    light: np.ndarray  # (2,) the side that the light comes from, in the picture
    tones: np.ndarray  # uint8 (1, 256, 3): exposure, contrast and tint
    noise: np.ndarray  # int16 (H + 16, W + 16, 3)
    noise_at: np.ndarray  # (frames, 2) rows and columns

    @property
    def moments(self) -> np.ndarray:
        """(N,) times of the exposures in 0..1, the same read from either end."""
        shutter = ((np.arange(self.exposures) + 0.5) / self.exposures - 0.5) * 0.6
        times: np.ndarray = (np.arange(self.frames)[:, None] + 0.5 + shutter) / self.frames
        return times.ravel()


def draw_scene(seed: int) -> Scene:
    """Draw everything but the action."""
    rng = np.random.default_rng([0, seed])
    height = 2 * round(rng.uniform(*HEIGHT) / 2)
    width = 2 * round(height * rng.uniform(*ASPECT) / 2)
    frames = int(rng.integers(FRAMES[0], FRAMES[1], endpoint=True))
    exposures = int(rng.choice([1, 2, 3], p=[0.65, 0.2, 0.15]))
    backdrop, tones_behind, floor = _backdrop(rng, height, width)
    speed = rng.uniform(0.2, 1.6) if rng.random() < 0.4 else 0.0  # pixels a frame
    heading = rng.uniform(0, 2 * np.pi)
    scroll = speed * np.array([np.cos(heading), 0 if floor else np.sin(heading)])
    clutter = tuple(_clutter(rng, height, width) for _ in range(rng.choice([0, 0, 1, 2, 3, 4])))
    gain, gamma = rng.uniform(0.75, 1.15), rng.uniform(0.8, 1.25)
    ramp = np.linspace(0, 1, 256)[:, None] ** gamma * 255 * gain * rng.uniform(0.93, 1.07, 3)
    noise = rng.normal(0, rng.uniform(0, 6), (height + 16, width + 16, 3))
    toward = rng.uniform(0, np.pi)
    # Mostly frontal to three-quarter views, some profiles.
    side = rng.uniform(0, 55) if rng.random() < 0.85 else rng.uniform(55, 80)
    azimuth = np.deg2rad(rng.choice([-1, 1]) * side)
    behind = rng.uniform(0.35, 0.6) * rng.choice([-1, 1]), -rng.uniform(0.5, 0.8)
    turned = np.exp(-1j * azimuth) * complex(*behind)  # so that it is behind as the camera sees it
    return Scene(
        height=height,
        width=width,
        frames=frames,
        exposures=exposures,
        body=random_body(rng),
        build=rng.uniform(0.88, 1.25),
        colors=_wardrobe(rng, tones_behind),
        camera=_camera(rng, azimuth, height, frames, exposures),
        backdrop=backdrop,
        scroll=scroll,
        clutter=clutter,
        shadow=rng.uniform(0.2, 0.55) if rng.random() < 0.75 else 0.0,
        stool=(turned.real, turned.imag) if rng.random() < 0.5 else None,
        light=np.array([np.cos(toward), -np.sin(toward)]),
        tones=np.clip(ramp, 0, 255).astype(np.uint8)[None],
        noise=noise.round().astype(np.int16),
        noise_at=rng.integers(0, 17, (frames, 2)),
    )


def _camera(
    rng: np.random.Generator, azimuth: float, height: int, frames: int, exposures: int
) -> Camera:
    """A camera that drifts slowly and is held by hand, some more firmly than others."""
    seconds = np.arange(frames * exposures) / (FPS * exposures)
    drift = wander(rng, 0.35 * seconds, 5)  # (N, 5): slow
    shake = wander(rng, 3 * seconds, 3)  # (N, 3): up to 4 Hz
    unsteady = rng.choice([0.0, 1.0]) * rng.uniform(0.1, 1.0)
    moving = rng.choice([0.0, 1.0]) * rng.uniform(0.3, 1.0)
    shift = 0.02 * moving * drift[:, :2] + 0.006 * unsteady * shake[:, :2]  # of the height
    return Camera(
        azimuth=azimuth + np.deg2rad(5) * moving * drift[:, 2],
        elevation=np.deg2rad(rng.uniform(-3, 18)),
        distance=rng.uniform(3.5, 8),
        scale=height * rng.uniform(0.57, 0.72) * (1 + 0.02 * moving * drift[:, 3]),
        shift=height * (shift + rng.uniform(-0.02, 0.02, 2)),
        tilt=np.deg2rad(rng.uniform(-2, 2) + moving * drift[:, 4] + 0.4 * unsteady * shake[:, 2]),
        aim=rng.uniform(0.52, 0.56),
    )


def _wardrobe(rng: np.random.Generator, behind: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Colours of skin, hair and clothes that stand out from the colours ``behind`` them."""

    def visible(draw: Callable[[], np.ndarray], margin: float) -> np.ndarray:
        candidates = [draw() for _ in range(12)]
        margins = [min(np.linalg.norm(c - b) for b in behind) for c in candidates]
        enough = [c for c, m in zip(candidates, margins, strict=True) if m > margin]
        return enough[0] if enough else candidates[int(np.argmax(margins))]

    def skin() -> np.ndarray:
        fair, dark = np.array([240, 200, 175]), np.array([90, 56, 40])
        return fair + rng.random() * (dark - fair)

    def cloth() -> np.ndarray:
        return rng.uniform(25, 235) + rng.uniform(0.2, 1) * rng.uniform(-90, 90, 3)

    tone, shirt, trousers = visible(skin, 50), visible(cloth, 75), visible(cloth, 75)
    sleeves = rng.integers(0, 3)  # none, short, long
    shorts = rng.random() < 0.3
    colors = {
        "skin": tone,
        "hair": np.array([30, 20, 15]) + rng.random() * np.array([150, 110, 70]),
        "shirt": shirt,
        "upper sleeve": shirt if sleeves > 0 else tone,
        "lower sleeve": shirt if sleeves > 1 else tone,
        "trousers": trousers,
        "lower leg": tone if shorts else trousers,
        "shoes": visible(cloth, 50),
        "stool": cloth(),
    }
    return {cover: np.clip(color, 8, 245) for cover, color in colors.items()}


def _backdrop(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, list[np.ndarray], bool]:
    """A wall, often with a floor: its picture, its main colours, and whether there is a floor."""
    high, wide = height + 48, width + 48
    wall = rng.uniform(40, 215) + rng.uniform(-35, 35, 3)
    picture = wall + _texture(rng, high, wide) * rng.uniform(-32, 32, 3)
    for _ in range(rng.choice([0, 0, 1, 2, 3])):  # pictures and windows
        x, y = int(rng.uniform(0, wide)), int(rng.uniform(0, 0.55 * high))
        w, h = rng.uniform(0.08, 0.25, 2) * height
        picture[y : y + int(h), x : x + int(w)] += rng.uniform(-45, 45, 3)
    colors = [wall]
    floor = bool(rng.random() < 0.65)
    if floor:
        top = int(24 + height * rng.uniform(0.56, 0.7))
        ground = wall + rng.choice([-1, 1]) * rng.uniform(15, 60) + rng.uniform(-15, 15, 3)
        picture[top:] = ground + _texture(rng, high - top, wide) * rng.uniform(-20, 20, 3)
        if rng.random() < 0.5:
            picture[top - 3 : top] = (wall + ground) / 2 - 30  # a skirting board
        colors.append(ground)
    return np.clip(picture, 0, 255).astype(np.uint8), colors, floor


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random pattern: float (height, width, 1), about -1..1."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    period = rng.uniform(10, 50)  # pixels
    kind = rng.choice(["gradient", "noise", "stripes", "checks", "blobs"])
    if kind == "gradient":
        pattern = 2 * (along - along.min()) / np.ptp(along) - 1
    elif kind == "stripes":
        pattern = np.clip(rng.uniform(1, 4) * np.sin(2 * np.pi * along / period), -1, 1)
    elif kind == "checks":
        pattern = np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
        pattern = cv2.GaussianBlur(pattern, (0, 0), rng.uniform(0.6, 2))
    elif kind == "noise":
        pattern = np.zeros((height, width), np.float32)
        for cells in (3, 6, 12, 24, 48):
            grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
            grid *= cells ** -rng.uniform(0.1, 0.9) * 1.5
            pattern += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        pattern = np.zeros((height, width), np.float32)
        for _ in range(30):
            center = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            radius, value = int(rng.uniform(4, 26)), rng.uniform(-1, 1)
            cv2.circle(pattern, center, radius, value, cv2.FILLED)
        pattern = cv2.GaussianBlur(pattern, (0, 0), rng.uniform(0.7, 4))
    return pattern[..., None]


def _clutter(rng: np.random.Generator, height: int, width: int) -> Clutter:
    """A convex shape of 5 to 20 percent of the picture's height."""
    corners = rng.choice([3, 4, 5, 20])
    around = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    size = rng.uniform(0.025, 0.1, 2) * height
    heading = rng.uniform(0, 2 * np.pi)
    return Clutter(
        outline=np.stack([np.cos(around), np.sin(around)], -1) * size,
        start=rng.uniform(0, 1, 2) * [width, height],
        velocity=rng.uniform(0.2, 2.2) * np.array([np.cos(heading), np.sin(heading)]),
        spin=rng.uniform(-0.08, 0.08),
        color=tuple(rng.uniform(30, 225) + rng.uniform(-50, 50, 3)),
    )
