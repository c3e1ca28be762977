"""Folders on storage servers."""

from pathlib import Path

from i3d import files, remote


def forget_servers() -> None:
    """Another S3, which only the environment tells from the one before, is opened anew."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    remote._answered.clear()


def upload(folder: Path, url: str) -> None:
    """Copy a folder of files."""
    for path in folder.rglob("*"):
        if path.is_file():
            files.write(files.join(url, path.relative_to(folder).as_posix()), path.read_bytes())


def contents(folder: Path | str) -> dict[str, bytes]:
    """Name and bytes of every file of a folder without folders."""
    found = {}
    for name in files.names_in(folder):
        with files.open_read(files.join(folder, name)) as file:
            found[name] = file.read()
    return found
