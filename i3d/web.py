"""Files behind http(s): read by ranges, with patience for a server that fails, and bounds on it.

    HTTP 404, 410                           there is no such file
    401, 403, other 4xx, a redirect loop    an error at once: asking again changes nothing
    408, 425, 429, 5xx, broken connections  asked again, for `PATIENCE_SECONDS` in all

What is raised is an OSError whose ``strerror`` says what happened and whose ``filename`` is the
URL without its password. This module is imported where the first URL is opened: requests takes
50 ms.
"""

import errno
import html
import io
import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import IO, Any, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from i3d.copies import keep_copy
from i3d.errors import hide_secrets

PATIENCE_SECONDS = 60.0  # with a server that fails, from the last byte that it sent
ANSWER_SECONDS = 10.0  # with one that has never answered this process: a mistyped name, perhaps
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # a server that sends fewer than STALL_BYTES for so long stalls
STALL_BYTES = 1 << 12
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.1, 8.0  # doubling
MAX_REDIRECTS = 10
CHUNK_BYTES = 1 << 16
BLOCK_BYTES = 1 << 21  # asked for at a time; FFmpeg reads sound and pictures from two places
BLOCKS = 4  # in memory, of each open file
MAX_LISTING_BYTES = 1 << 28  # 256 MiB: the index of a million files

ABSENT = frozenset({404, 410})
PASSING = frozenset({408, 425, 429})  # and all from 500 on

_STALLED = "the server stalls: fewer than {:,} bytes in {:g} s"
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_LINK = re.compile(r"""<a\s[^<>]{0,4096}?href\s*=\s*["']?([^"'<>\s]{1,8192})""", re.IGNORECASE)

_lock = threading.Lock()
_answered: set[tuple[int, str]] = set()  # (process, server)
# Those that get one try a call, and when they had their last: of fifty videos on a server that is
# gone, the first waits for it.
_given_up: dict[tuple[int, str], float] = {}

T = TypeVar("T")


class _Passing(Exception):
    """What may be over when it is tried again.

    Attributes:
        number: of the OSError that it becomes.
        reason: the same in words.
        lasted_seconds: since the server sent anything.
        retry_seconds: how long the server asks to be left alone; None if it does not say.
        progressed: whether bytes came that need not be sent again.
    """

    def __init__(
        self,
        reason: str,
        number: int = errno.EIO,
        *,
        lasted_seconds: float = 0.0,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.number = reason, number
        self.lasted_seconds, self.retry_seconds = lasted_seconds, retry_seconds
        self.progressed = False


class Session(requests.Session):
    """Follows no redirect by itself, and reads no redirect's body, which may be endless."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Asked by requests, which reads the body where it finds a target."""

    def find_redirect(self, response: requests.Response) -> str | None:
        """Where an answer sends its reader."""
        return super().get_redirect_target(response)


# --- what other modules call ----------------------------------------------------------------------


def exists(url: str) -> bool:
    """Whether the server has such a file or folder."""

    def ask() -> bool:
        with Session() as session, _get(url, session, 0, 1):
            return True

    try:
        return _patiently(url, ask)
    except FileNotFoundError:
        return False


def size(url: str) -> int:
    """Size of a file in bytes."""

    def ask() -> int | None:
        with Session() as session, _get(url, session, 0, 1) as response:
            return _total_of(response)

    total = _patiently(url, ask)
    if total is None:
        raise _error(errno.EIO, "the server does not say how large it is; download it", url)
    return total


def find_state(url: str) -> tuple[int | None, str | None]:
    """Size in bytes and ETag of a file, where the server says; (None, None) of an absent one."""

    def ask() -> tuple[int | None, str | None]:
        with Session() as session, _get(url, session, 0, 1) as response:
            return _total_of(response), response.headers.get("ETag")

    try:
        return _patiently(url, ask)
    except FileNotFoundError:
        return None, None


def is_dir(url: str) -> bool:
    """Whether the server shows a page with links to what is in a folder."""
    try:
        page, final = _read_index(url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return urlsplit(final).path.endswith("/") or bool(_find_links(page, final))


def list_folder(url: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what a folder's page links to, as web servers write it.

    Names stay percent-encoded, so that folder/name is a URL again.

    Raises:
        NotADirectoryError: no page of HTML.
    """
    return _find_links(*_read_index(url))


def _read_index(url: str) -> tuple[str, str]:
    """A folder's page, and where it came from after all redirects."""

    def ask() -> tuple[str, str]:
        with Session() as session, _get(url, session) as response:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind not in ("text/html", "application/xhtml+xml"):
                raise _error(errno.ENOTDIR, "not a folder: the server shows no list of it", url)
            page = bytearray()
            for chunk in read_chunks(response, decode=True):
                page += chunk
                if len(page) > MAX_LISTING_BYTES:
                    reason = f"its list of files has more than {MAX_LISTING_BYTES >> 20} MiB"
                    raise _error(errno.EFBIG, reason, url)
            return page.decode("utf-8", "replace"), response.url

    return _patiently(url, ask)


def _find_links(page: str, final: str) -> list[tuple[str, bool]]:
    base = urlsplit(final)
    folder = f"{base.path.rstrip('/')}/"
    found: dict[str, bool] = {}
    for link in _LINK.findall(page):
        try:
            target = urlsplit(urljoin(base._replace(path=folder).geturl(), html.unescape(link)))
        except ValueError:  # no URL
            continue
        name = target.path.removeprefix(folder)
        inside = target.hostname == base.hostname and target.path.startswith(folder)
        if inside and name.rstrip("/") not in ("", ".", "..") and "/" not in name.rstrip("/"):
            found[name.rstrip("/")] = name.endswith("/")
    return list(found.items())


def read_range(url: str, start: int, length: int) -> bytes:
    """Bytes ``start`` to ``start + length``; fewer where the file ends."""
    with Session() as session:
        return _fetch(url, session, start, start + length)


def open_read(url: str) -> IO[bytes]:
    """Open for reading and seeking; of a server without byte ranges a copy (`keep_copy`)."""
    session = Session()
    try:
        return _patiently(url, lambda: _open(url, session))
    except BaseException:
        session.close()
        raise


def get(url: str, session: Session, headers: dict[str, str]) -> requests.Response:
    """One GET, whose body is still to be read; of redirects no body is read, which may be endless.

    Raises:
        requests.RequestException: no answer, or a loop of redirects.
    """
    for _ in range(MAX_REDIRECTS + 1):
        response = session.get(
            url,
            headers={"Accept-Encoding": "identity", **headers},
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_SECONDS, STALL_SECONDS),
        )
        target = session.find_redirect(response)
        if target is None:
            return response
        response.close()
        try:
            url = _with_login(urljoin(url, target), url)
        except ValueError:
            raise requests.exceptions.InvalidURL from None
    raise requests.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")


def read_chunks(response: requests.Response, *, decode: bool = False) -> Iterator[bytes]:
    """A body as it comes, however little at a time, decompressed if wanted.

    Raises:
        TimeoutError: the server stalls.
        urllib3.exceptions.HTTPError: the connection broke off.
    """
    waited, arrived = 0.0, 0
    while True:
        began = time.monotonic()
        chunk = response.raw.read1(CHUNK_BYTES, decode_content=decode)
        waited, arrived = waited + time.monotonic() - began, arrived + len(chunk)
        if not chunk:
            return
        if waited > STALL_SECONDS:
            if arrived < STALL_BYTES:
                raise TimeoutError(_STALLED.format(STALL_BYTES, STALL_SECONDS))
            waited, arrived = 0.0, 0
        yield chunk


def _with_login(target: str, before: str) -> str:
    """The target of a redirect, with the user name and password where the server is the same."""
    old, new = urlsplit(before), urlsplit(target)
    _, mark, server = old.netloc.rpartition("@")
    if mark and (old.scheme, server) == (new.scheme, new.netloc):
        return new._replace(netloc=old.netloc).geturl()
    return target


def _server_of(url: str) -> tuple[int, str]:
    """This process, and the URL's host and port."""
    return os.getpid(), re.split("[/?#]", url, maxsplit=3)[2].rpartition("@")[2].lower()


# --- patience -------------------------------------------------------------------------------------


def _patiently(url: str, attempt: Callable[[], T]) -> T:
    """What the attempt returns; while it fails with what may pass, it is made again."""
    server = _server_of(url)
    began: float | None = None
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            result = attempt()
        except _Passing as failure:
            now = time.monotonic()
            if failure.progressed:
                began, wait = None, FIRST_WAIT_SECONDS
            began = now - failure.lasted_seconds if began is None else began
            with _lock:
                known, gone = server in _answered, _given_up.get(server)
            hopeless = gone is not None and now - gone < PATIENCE_SECONDS
            patience = min(PATIENCE_SECONDS, PATIENCE_SECONDS if known else ANSWER_SECONDS)
            left = 0.0 if hopeless else began + patience - now
            if left <= 0 or (failure.retry_seconds or 0) > left:
                with _lock:
                    _given_up[server] = now
                raise _give_up(failure, now - began, url, known=known) from None
            pause = min(wait * random.uniform(0.5, 1), left)  # workers come back one by one
            time.sleep(max(pause, failure.retry_seconds or 0))
            wait = min(2 * wait, LAST_WAIT_SECONDS)
        else:
            with _lock:
                _given_up.pop(server, None)
            return result


def _give_up(failure: _Passing, seconds: float, url: str, *, known: bool) -> OSError:
    notes = [f"tried for {seconds:.0f} s"] if seconds >= 1 else []
    if failure.retry_seconds is not None:
        notes.append(f"the server asks to wait {failure.retry_seconds:.0f} s")
    note = f" ({', '.join(notes)})" if notes else ""
    remedy = "run it again when the server answers"
    if not known:
        remedy = f"check host and port, or {remedy}"
    return _error(failure.number, f"{failure.reason}{note}; {remedy}", url)


def _error(number: int, reason: str, url: str) -> OSError:
    return OSError(number, hide_secrets(reason), hide_secrets(url))


@contextmanager
def _plain_failures(url: str) -> Iterator[None]:
    """What requests and urllib3 raise, as `_Passing` or an OSError of one line."""
    try:
        yield
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
        loop = isinstance(error, requests.TooManyRedirects)
        reason = f"a loop of redirects ({error})" if loop else "redirects to no http(s) address"
        raise _error(errno.EIO, reason, url) from None
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        urllib3.exceptions.LocationValueError,
        UnicodeError,
    ):
        raise _error(errno.EINVAL, "not a URL", url) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        network = (ConnectionError, TimeoutError, requests.RequestException)
        if isinstance(error, OSError) and not isinstance(error, network):
            raise  # ours, or the disk's
        raise _explain(error, url) from None


def _explain(error: BaseException, url: str) -> Exception:
    """The cause of an error, which is wrapped several layers deep."""
    cause, causes = error, [error]
    while len(causes) < 16:
        inner = [getattr(cause, "reason", None), cause.__cause__, *cause.args, cause.__context__]
        found = [e for e in inner if isinstance(e, BaseException) and e not in causes]
        if not found:
            break
        cause = found[0]
        causes.append(cause)
    if any(type(e).__name__ == "SSLCertVerificationError" for e in causes):
        return _error(errno.EIO, "its certificate is not valid (HTTPS)", url)
    # First: urllib3's error of a refused connection is a ConnectTimeoutError, too.
    system = next((e for e in reversed(causes) if isinstance(e, OSError) and e.strerror), None)
    if system is not None and system.strerror:
        reason = system.strerror[0].lower() + system.strerror[1:]
        return _Passing(reason, errno.EIO)
    slow = (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)
    if any(isinstance(e, slow) for e in causes):
        return _Passing("no connection", errno.ETIMEDOUT, lasted_seconds=CONNECT_SECONDS)
    late = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
    if any(isinstance(e, late) for e in causes):
        reason = _STALLED.format(STALL_BYTES, STALL_SECONDS)
        return _Passing(reason, errno.ETIMEDOUT, lasted_seconds=STALL_SECONDS)
    return _Passing("the connection broke off", errno.ECONNRESET)


# --- one request ----------------------------------------------------------------------------------


@contextmanager
def _get(
    url: str, session: Session, start: int | None = None, stop: int = 0
) -> Iterator[requests.Response]:
    """An answer 200, 206 or (no such range) 416, whose body is still to be read.

    Args:
        url: with password and all.
        session: connections.
        start: first byte that is wanted; None for all of it without a word of ranges.
        stop: the byte after the last one.
    """
    headers = {} if start is None else {"Range": f"bytes={start}-{stop - 1}"}
    with _plain_failures(url), get(url, session, headers) as response:
        with _lock:
            _answered.add(_server_of(url))
        status = response.status_code
        if status not in (200, 206, 416):
            raise _refusal(response, url)
        yield response


def _refusal(response: requests.Response, url: str) -> Exception:
    status = response.status_code
    try:
        named = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        named = f"HTTP {status}"
    if status in ABSENT:
        return _error(errno.ENOENT, f"no such file ({named})", url)
    if status in PASSING or status >= 500:
        return _Passing(named, retry_seconds=_retry_after(response))
    if status in (401, 403):
        remedy = "the server wants a user name and password, or the URL's signature is out of date"
        return _error(errno.EACCES, f"{named}; {remedy}", url)
    return _error(errno.EIO, named, url)


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to be left alone."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _take(response: requests.Response, most: int) -> bytes:
    """The beginning of a body, whatever its length is said to be."""
    data = bytearray()
    for chunk in read_chunks(response):
        data += chunk
        if len(data) >= most:
            break
    return bytes(data[:most])


def _length_of(response: requests.Response) -> int | None:
    """Bytes of the body that a server announces; None where it does not, or has compressed it."""
    text = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    return int(text) if plain and text.isdecimal() and len(text) < 19 else None


def _range_of(response: requests.Response) -> tuple[int, int, int] | None:
    """First byte, the one after the last, and the file's size; None for any other answer."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if response.status_code == 200 or match is None:
        return None
    total = int(match[3])
    if match[1] is None:
        return total, total, total
    return int(match[1]), int(match[2]) + 1, total


def _total_of(response: requests.Response) -> int | None:
    """Size of the whole file in bytes."""
    if (found := _range_of(response)) is not None:
        return found[2]
    return _length_of(response) if response.status_code == 200 else None


def _fetch(url: str, session: Session, start: int, stop: int, *, total: int | None = None) -> bytes:
    """Some bytes of a file, going on where a connection breaks off; fewer where the file ends.

    Args:
        url: with password and all.
        session: connections.
        start: first byte.
        stop: the byte after the last one.
        total: size of the file when it was opened, which must be the same; None for any.
    """
    data = bytearray()

    def attempt() -> None:
        before = len(data)
        try:
            while (at := start + len(data)) < stop and _fetch_some(at):
                pass
        except _Passing as failure:
            failure.progressed = len(data) - before >= STALL_BYTES
            raise

    def _fetch_some(at: int) -> bool:
        """Whether there may be more."""
        with _get(url, session, at, stop) as response:
            if response.status_code == 200:
                skip, end = at, _length_of(response)
            else:
                found = _range_of(response)
                if found is None or (found[0] != at and found[0] != found[2]):
                    raise _error(errno.EIO, "the server sends another range than asked for", url)
                skip, end = 0, found[2]
            if total is not None and end not in (total, None):
                raise _error(errno.EIO, "the file has changed while it was read", url)
            if response.status_code == 416:
                return False
            before = len(data)
            for chunk in read_chunks(response, decode=response.status_code == 200):
                skipped = min(skip, len(chunk))
                skip -= skipped
                data.extend(chunk[skipped : skipped + stop - start - len(data)])
                if start + len(data) >= stop:
                    return False
            if end is None:
                return False
            if start + len(data) < min(stop, end) and len(data) - before < STALL_BYTES:
                raise _Passing("the connection broke off", errno.ECONNRESET)
            return start + len(data) < end

    _patiently(url, attempt)
    return bytes(data)


# --- open files -----------------------------------------------------------------------------------


def _open(url: str, session: Session) -> IO[bytes]:
    with _get(url, session, 0, BLOCK_BYTES) as response:
        found = _range_of(response)
        if response.status_code == 200:
            return _copy(url, session, response)
        if found is not None:
            first = min(BLOCK_BYTES, found[2])
            block = b"" if not first else None
            if first and found[:2] == (0, first):
                block = _take(response, first)
            if block is not None and len(block) == first:
                return cast(IO[bytes], _WebFile(url, session, found[2], block))
    with _get(url, session) as response:  # ranges that say nothing of the whole
        if response.status_code != 200:
            raise _error(errno.EIO, "the server sends a part where all was asked for", url)
        return _copy(url, session, response)


def _copy(url: str, session: Session, response: requests.Response) -> IO[bytes]:
    total = _length_of(response)
    copy = keep_copy(read_chunks(response, decode=True), total=total, where=hide_secrets(url))
    if total is not None and copy.seek(0, os.SEEK_END) != total:
        copy.close()
        raise _Passing("the connection broke off", errno.ECONNRESET)
    copy.seek(0)
    session.close()
    return copy


class _WebFile(io.RawIOBase):
    """A file on a server with byte ranges; a few blocks of it are in memory."""

    def __init__(self, url: str, session: Session, total: int, block: bytes) -> None:
        self._url, self._session, self._size = url, session, total
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict({0: block})  # the last used last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._session.close()
        super().close()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        left = max(self._size - start, 0)
        stop = start + (left if size is None or size < 0 else min(size, left))
        if stop - start > BLOCK_BYTES:
            data = self._fetch(start, stop)
        else:
            numbers = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES) if stop > start else 0)
            joined = b"".join(map(self._block, numbers))
            skip = start % BLOCK_BYTES
            data = joined[skip : skip + stop - start]
        self._position = start + len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            block = self._fetch(start, min(start + BLOCK_BYTES, self._size))
            if len(self._blocks) == BLOCKS:
                self._blocks.popitem(last=False)
            self._blocks[number] = block
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, start: int, stop: int) -> bytes:
        data = _fetch(self._url, self._session, start, stop, total=self._size)
        if len(data) != stop - start:
            raise _error(errno.EIO, "the file has changed while it was read", self._url)
        return data
