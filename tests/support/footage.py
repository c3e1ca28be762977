"""The same videos in every form."""

import io
import tarfile
import zipfile

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from support.videos import write_video

FRAMES, HEIGHT, WIDTH = 18, 40, 52


def make_videos(count, seed, frames=FRAMES):
    """uint8 (N, T, H, W, 3): soft patterns of many colours that move, all 256 levels among them."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture[:5].reshape(-1)[:256] = np.arange(256)
        made.append([np.roll(picture, (i + 1) * t, axis=1) for t in range(frames)])
    return np.array(made)


def write_lossless(path, video):
    """H.264 of RGB itself, without loss."""
    options = {"qp": "0", "preset": "ultrafast"}
    write_video(path, video, codec="libx264rgb", pixel_format="rgb24", options=options)


def png(picture):
    done, data = cv2.imencode(".png", picture[..., ::-1])
    assert done
    return data.tobytes()


def frame_files(videos):
    """Relative path -> content of PNG frames, numbered without zeros in front."""
    return {
        f"class {i % 2}/{i:02d}/frame_{t + 1}.png": png(frame)
        for i, video in enumerate(videos)
        for t, frame in enumerate(video)
    }


def write_files(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_everything(folder, videos):
    """One location a form, of videos in one class folder order; name -> (location, options)."""
    mp4 = folder / "mp4"
    for i, video in enumerate(videos):
        write_lossless(mp4 / f"{i:02d}.mp4", video)
    # the order of keys is that of the numbers
    frames = {k.partition("/")[2]: v for k, v in frame_files(videos).items()}
    write_files(folder / "png", {f"deep/er/{name}": data for name, data in frames.items()})
    backwards = dict(reversed(frames.items()))
    write_zip(folder / "frames.zip", backwards)
    write_tar(folder / "frames.tar", backwards)
    write_tar(folder / "frames.tar.gz", {f"top/{n}": d for n, d in frames.items()}, "w:gz")
    files = {path.name: path.read_bytes() for path in mp4.iterdir()}
    write_zip(folder / "stored.zip", files, zipfile.ZIP_STORED)
    write_zip(folder / "deflated.zip", files)
    write_tar(folder / "videos.tar", files)
    np.save(folder / "all.npy", videos)
    np.save(folder / "gap.npy", np.asfortranarray(videos))
    tensor = torch.from_numpy(videos)
    torch.save(tensor.permute(0, 1, 4, 2, 3), folder / "all.pt")  # a view, not contiguous
    save_file({"videos": tensor.permute(0, 4, 1, 2, 3).contiguous()}, folder / "all.safetensors")
    for name in ("npy", "npz", "pt", "safetensors"):
        (folder / name).mkdir()
    for i, video in enumerate(videos):
        np.save(folder / "npy" / f"{i}.npy", video)
        np.savez_compressed(folder / "npz" / f"{i}.npz", frames=video, label=np.zeros(1))
        torch.save({"video": tensor[i].permute(3, 0, 1, 2), "fps": 25}, folder / f"pt/{i}.pth")
        one = tensor[i].permute(0, 3, 1, 2).contiguous()
        save_file({"video": one}, folder / f"safetensors/{i}.safetensors")
    forms = ["mp4", "png", "frames.zip", "frames.tar", "frames.tar.gz", "stored.zip", "all.npy"]
    forms += ["deflated.zip", "videos.tar", "gap.npy", "all.pt", "all.safetensors"]
    forms += ["npy", "npz", "pt", "safetensors"]
    return {name: folder / name for name in forms}
