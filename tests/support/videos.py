"""Small videos for the tests, written with PyAV.

Every frame is one flat gray: frame i is ``level(i)``, so that a reader's output tells which source
frame it shows. Neighbours differ by enough to survive lossy coding.
"""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVELS = 8  # distinct grays; frames i and i + 8 look alike
STEP = 26


def level(index):
    """The gray of source frame ``index``: 30, 56, ..., 212, then again from 30."""
    return 30 + STEP * (index % LEVELS)


def gray_frame(index, width=64, height=48):
    return np.full((height, width, 3), level(index), np.uint8)


def which(frames):
    """The source frame (modulo LEVELS) that each output frame shows."""
    means = np.asarray([frame[..., 1].mean() for frame in frames])
    found = np.round((means - 30) / STEP).astype(int)
    assert np.abs(means - (30 + STEP * found)).max() < STEP / 3, "a frame is blended or damaged"
    return found.tolist()


def write_video(
    target: Path | str | io.BytesIO,
    images: Iterable[np.ndarray] | int = 25,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container: str | None = None,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    gop: int | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    width: int = 64,
    height: int = 48,
    prepare=None,
    edit_packet=None,
    sound: tuple[str, float] | None = None,
):
    """Write RGB images (or so many gray frames) and return ``target``.

    ``pts`` are in ``time_base``; ``prepare(frame, index)`` may change each frame before encoding
    and ``edit_packet(packet, index)`` each packet before it is written. ``sound`` is a codec and
    seconds of silence.
    """
    if isinstance(images, int):
        images = [gray_frame(i, width, height) for i in range(images)]
    images = list(images)
    height, width = images[0].shape[:2]
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = str(target)
    else:
        file = target
    # bitexact: without the random numbers that Matroska's muxer writes
    container_options = {"fflags": "+bitexact", **(container_options or {})}
    with av.open(file, "w", format=container, container_options=container_options) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if codec == "libx264":
            # The bytes would differ from run to run: x264's macroblock tree depends on what was in
            # memory before.
            options = {"threads": "1", "mbtree": "0", **(options or {})}
        stream.options = options or {}
        if gop is not None:
            stream.gop_size = gop
        if time_base is not None:
            stream.codec_context.time_base = time_base
            stream.time_base = time_base
        if rotation is not None:
            degrees, mirror_x, mirror_y = rotation
            stream.set_display_rotation(degrees, hflip=mirror_x, vflip=mirror_y)
        if sound is not None:
            sound_stream = output.add_stream(sound[0], rate=48000)
        packets = []
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pixel_format != "rgb24":
                frame = frame.reformat(format=pixel_format)
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, rate) if time_base is None else time_base
            if prepare is not None:
                frame = prepare(frame, i)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for i, packet in enumerate(packets):
            if edit_packet is not None:
                edit_packet(packet, i)
            output.mux(packet)
        if sound is not None:
            output.mux(encode_silence(sound_stream, sound[1]))
    return target


def video_bytes(images: Iterable[np.ndarray] | int = 25, *, container: str = "mp4", **kwargs):
    """As :func:`write_video`, but returns the file's bytes."""
    buffer = io.BytesIO()
    write_video(buffer, images, container=container, **kwargs)
    return buffer.getvalue()


def write_two_sizes(target: Path, first=(64, 48), second=(96, 48), frames=10):
    """An H.264 stream whose size changes in the middle: two streams, one after the other."""
    packets = b"".join(
        video_bytes([gray_frame(i, *size) for i in range(start, start + frames)], container="h264")
        for start, size in ((0, first), (frames, second))
    )
    target.write_bytes(packets)
    return target


def encode_silence(stream, seconds):
    """The packets of a silence."""
    rate = stream.rate
    samples = np.zeros((1, int(rate * seconds)), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    return stream.encode(frame) + stream.encode(None)


def write_audio(target: Path, seconds=1.0):
    """A file that holds only sound."""
    with av.open(str(target), "w") as output:
        output.mux(encode_silence(output.add_stream("aac", rate=16000), seconds))
    return target


def noise_images(count, width=96, height=64, seed=0):
    """Moving noise: frames that compress badly, so that damage in a file's middle hits pictures."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return [np.roll(base, i, axis=1) for i in range(count)]


def reference_indices(stamps, duration, time_base, fps=25, start=0, end=None):
    """The definition: for each k, the last frame whose stamp is not after start + k / fps.

    ``stamps`` and ``duration`` are in ticks from the first frame.
    """
    fps, start = Fraction(fps), Fraction(start)
    last = stamps[-1] + duration if end is None else min(stamps[-1] + duration, end / time_base)
    count = max(1, round(fps * (last * time_base - start)))
    shown = []
    for k in range(count):
        now = start + k / fps
        shown.append(max(i for i, s in enumerate(stamps) if s * time_base <= now + time_base / 2))
    return shown


def decode_all(path):
    """(frames, ticks since the first one, last frame's duration, time base), by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        stamps = [f.pts - frames[0].pts for f in frames]
        return frames, stamps, frames[-1].duration, stream.time_base
