"""Download one file so that a broken connection costs only what was in flight."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import requests
import urllib3

from i3d import files, web
from i3d.console import progress_bar

ATTEMPTS = 5  # in a row that bring next to nothing; one that advances may break off for ever
CHUNK_BYTES = 1 << 18
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class FetchError(OSError):
    """The file could not be fetched; what had arrived is kept and a later call goes on there."""


class _BrokenError(Exception):
    """The transfer broke off; worth another attempt."""


def fetch(
    source: str,
    target: Path,
    *,
    max_bytes: int,
    attempts: int | None = None,
    title: str | None = None,
) -> None:
    """Copy a URL or a local file to ``target``, going on where an earlier call stopped.

    What has arrived so far lies beside ``target`` with the suffix ``.part``; ``target`` itself
    appears when it is complete.

    Args:
        source: ``http(s)://`` URL, a URL that fsspec understands, or a local path.
        target: local path; nothing is done where it exists.
        max_bytes: a longer file is refused.
        attempts: in a row that bring next to nothing new; default: `ATTEMPTS`.
        title: text of the progress bar; None draws none.

    Raises:
        FetchError: not found, unreachable, too long, or broken off too often.
        OSError: the disk is full; what had arrived is kept, too.
    """
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    furthest, idle_attempts = _size(part), 0
    with progress_bar(title, unit="B") as bar:
        while True:
            try:
                with part.open("ab") as out:
                    bar.update(out.tell())
                    for position, total in _copy_rest(source, out, max_bytes):
                        bar.update(position, total=total)
                    os.fsync(out.fileno())
                break
            except (
                _BrokenError,
                requests.RequestException,
                urllib3.exceptions.HTTPError,
                TimeoutError,
                ConnectionError,
            ) as error:
                advanced = _size(part) >= furthest + web.STALL_BYTES
                idle_attempts = 0 if advanced else idle_attempts + 1
                furthest = max(furthest, _size(part))
                if idle_attempts >= (attempts or ATTEMPTS):
                    raise FetchError(f"{source}: {_reason(error)}") from error
                time.sleep(0.1 * 2**idle_attempts)
            except FetchError:
                raise
            except OSError as error:
                if error.errno in files.NO_ROOM:  # here, and no fault of the source's
                    with files.naming(part):
                        raise
                raise FetchError(f"{source}: {_reason(error)}") from error
    part.replace(target)


def _copy_rest(source: str, out: IO[bytes], max_bytes: int) -> Iterator[tuple[int, int | None]]:
    """Append what ``out`` lacks; yields (bytes so far, bytes in all if known)."""
    if source.startswith(("http://", "https://")):
        yield from _copy_http(source, out, max_bytes)
        return
    total = files.size(source)
    if total > max_bytes:
        raise FetchError(f"{source}: has {total:,} bytes, {max_bytes:,} were expected")
    if out.tell() > total:
        out.truncate(0)
    with files.open_read(source) as f:
        f.seek(out.tell())
        while chunk := f.read(CHUNK_BYTES):
            out.write(chunk)
            yield out.tell(), total
    if out.tell() != total:
        raise _BrokenError(f"broke off after {out.tell():,} of {total:,} bytes")


def _copy_http(source: str, out: IO[bytes], max_bytes: int) -> Iterator[tuple[int, int | None]]:
    have = out.tell()
    headers = {"Range": f"bytes={have}-"} if have else {}
    with web.Session() as session, web.get(source, session, headers) as response:
        status = response.status_code
        if status == 416:
            out.truncate(0)  # what we have does not begin this file, or is all of it: start over
            raise _BrokenError("the server has no such range")
        if status in RETRIED_STATUS:
            raise _BrokenError(f"the server answers {status} {response.reason}")
        if status not in (200, 206):
            raise FetchError(f"{source}: the server answers {status} {response.reason}")
        if status == 200:
            out.truncate(0)  # the whole file comes, whether or not a part was asked for
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        if total is not None and total > max_bytes:
            raise FetchError(f"{source}: has {total:,} bytes, {max_bytes:,} were expected")
        for chunk in web.read_chunks(response):
            have += len(chunk)
            if have > max_bytes:
                raise FetchError(f"{source}: has more than the {max_bytes:,} bytes expected")
            out.write(chunk)
            yield have, total
        if total is not None and have < total:
            raise _BrokenError(f"the connection broke off after {have:,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """One line: requests wraps the cause several layers deep."""
    silent = requests.ConnectTimeout | requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError
    if isinstance(error, silent):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError | urllib3.exceptions.HTTPError):
        return "no connection to the server"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error) or type(error).__name__
