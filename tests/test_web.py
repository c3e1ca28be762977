"""http(s): what is absent and what fails; ranges, redirects, folders; passwords."""

import io
import os
import socket

import pytest
from support.web import WebServer

from i3d import files, web
from i3d.errors import StorageError, UsageError, hide_secrets

DATA = os.urandom(5_000_000)


@pytest.fixture
def server():
    with WebServer() as server:
        server.files["/v.bin"] = DATA
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A fraction of what a job has."""
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(web, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(web, "FIRST_WAIT_SECONDS", 0.02)


def read(url):
    with files.open_read(url) as file:
        return file.read()


# --- what a server may answer ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_absent(server, status):
    server.failures["/v.bin"] = status
    url = f"{server.url}/v.bin"
    assert not files.exists(url)
    for call in (read, files.size, lambda u: files.read_range(u, 0, 1), files.list_folder):
        with pytest.raises(FileNotFoundError, match=f"HTTP {status}"):
            call(url)
    assert len(server.asked) == 5  # each once


@pytest.mark.parametrize(
    ("status", "asked"),
    [(400, 1), (401, 1), (403, 1), (418, 1), (408, 2), (429, 2), (500, 2), (503, 2), (599, 2)],
)
def test_whatever_else_fails_is_never_absent(server, status, asked):
    server.failures["/v.bin"] = status
    url = f"{server.url}/v.bin"
    calls = (read, files.exists, files.size, lambda u: files.read_range(u, 0, 1), files.is_dir)
    for call in calls:
        web._given_up.clear()
        server.asked.clear()
        with pytest.raises(OSError, match=f"HTTP {status}") as caught:
            call(url)
        assert not isinstance(caught.value, FileNotFoundError)
        assert "\x1b" not in str(caught.value)
        assert (len(server.asked) > 1) == (asked > 1)
        with pytest.raises(StorageError, match=f"cannot read {url}: HTTP {status}"):
            files.blame_storage(url, caught.value)


def test_refused_connections_unknown_hosts_and_loops_are_failures(server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with pytest.raises(OSError, match=r"connection refused.*check host and port"):
        files.exists(f"http://127.0.0.1:{free}/v.bin")
    with pytest.raises(OSError, match=r"check host and port"):
        files.exists("http://i3d.invalid/v.bin")
    server.failures["/a"] = (302, {"Location": "/b"})
    server.failures["/b"] = (301, {"Location": "/a"})
    with pytest.raises(OSError, match="a loop of redirects"):
        files.exists(f"{server.url}/a")
    assert len(server.asked) == web.MAX_REDIRECTS + 1
    server.failures["/c"] = (302, {"Location": "file:///etc/passwd"})
    with pytest.raises(OSError, match=r"redirects to no http\(s\) address"):
        files.exists(f"{server.url}/c")


def test_a_name_that_is_no_url_is_no_servers_fault():
    for url in ("http://", "http://[x/v.bin", f"http://{'a' * 90}.b/v.bin"):
        with pytest.raises(OSError, match="not a URL") as caught:
            files.exists(url)
        files.blame_storage(url, caught.value)  # raises nothing


@pytest.mark.parametrize("failure", [429, 500, 503, "hang_up", "break_off", "stall", "drip"])
def test_what_passes_is_waited_for(server, failure, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 5)
    monkeypatch.setattr(web, "ANSWER_SECONDS", 5)
    failure = getattr(server, failure) if isinstance(failure, str) else failure
    for call, expected in (
        (read, DATA),
        (files.exists, True),
        (lambda u: files.read_range(u, 3_000_000, 9), DATA[3_000_000:3_000_009]),
    ):
        server.failures["/v.bin"] = [failure, failure]
        if call is files.exists and callable(failure):
            server.failures["/v.bin"] = [server.hang_up]  # it reads no body
        assert call(f"{server.url}/v.bin") == expected


@pytest.mark.parametrize("failure", ["hang_up", "break_off", "stall", "drip"])
def test_a_connection_that_always_fails(server, failure):
    server.failures["/v.bin"] = getattr(server, failure)
    expected = {"stall": "stalls", "drip": "stalls"}.get(failure, "the connection broke off")
    with pytest.raises(OSError, match=f"{expected}.*run it again when the server answers"):
        read(f"{server.url}/v.bin")


def test_retry_after(server, monkeypatch):
    """It is waited for, unless that is longer than the patience."""
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 30)
    waits = []
    monkeypatch.setattr(web.time, "sleep", waits.append)
    server.failures["/v.bin"] = [(503, {"Retry-After": "7"}), (429, {"Retry-After": "11"})]
    assert read(f"{server.url}/v.bin") == DATA
    assert waits == [7, 11]
    server.failures["/v.bin"] = (503, {"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"})
    with pytest.raises(OSError, match=r"HTTP 503 Service Unavailable \(the server asks to"):
        read(f"{server.url}/v.bin")
    assert len(waits) == 2
    web._given_up.clear()
    server.failures["/v.bin"] = [(503, {"Retry-After": "soon"})]
    assert read(f"{server.url}/v.bin") == DATA


def test_a_server_that_was_given_up_gets_one_try_a_call_until_it_answers(server, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 30)
    server.failures["/v.bin"] = (503, {"Retry-After": "3600"})
    with pytest.raises(OSError, match="HTTP 503"):
        read(f"{server.url}/v.bin")
    server.failures["/v.bin"] = 500
    server.asked.clear()
    with pytest.raises(OSError, match="HTTP 500"):
        read(f"{server.url}/v.bin")
    assert len(server.asked) == 1
    server.failures["/v.bin"] = []
    assert read(f"{server.url}/v.bin") == DATA
    server.failures["/v.bin"] = [503]
    assert read(f"{server.url}/v.bin") == DATA


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_reading_is_as_from_a_disk(server, ranges, sizes, tmp_path):
    server.ranges, server.sizes = ranges, sizes
    url = f"{server.url}/v.bin"
    (tmp_path / "v.bin").write_bytes(DATA)
    edge = web.BLOCK_BYTES
    with files.open_read(url) as ours, (tmp_path / "v.bin").open("rb") as theirs:
        assert ours.seekable()
        for offset, whence, size in [
            (0, 0, 10),
            (edge - 5, 0, 10),
            (-3, 1, 3),
            (0, 2, 10),
            (-7, 2, 100),
            (2 * edge, 0, 0),
            (len(DATA) + 9, 0, 5),
            (0, 0, -1),
            (1, 0, edge),
            (17, 0, edge + 1),
        ]:
            assert ours.seek(offset, whence) == theirs.seek(offset, whence)
            assert ours.read(size) == theirs.read(size)
            assert ours.tell() == theirs.tell()
        with pytest.raises((ValueError, OSError)):
            ours.seek(-1)
    for start, length in [(0, 3), (len(DATA) - 2, 9), (len(DATA) + 5, 9), (3_000_000, 1_000_000)]:
        assert files.read_range(url, start, length) == DATA[start : start + length]
    if ranges or sizes:
        assert files.size(url) == len(DATA)
    else:
        with pytest.raises(OSError, match="does not say how large it is"):
            files.size(url)


def test_an_empty_file(server):
    server.files["/empty"] = b""
    for ranges in (True, False):
        server.ranges = ranges
        assert read(f"{server.url}/empty") == b""
        assert files.size(f"{server.url}/empty") == 0
        assert files.exists(f"{server.url}/empty")


def test_what_a_server_sends_too_much_is_left(server):
    """A range without end, and a redirect with a body without end."""

    def flood(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-9/{len(DATA)}")
        handler.end_headers()
        server.never_end(handler)

    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "/v.bin")
        handler.end_headers()
        server.never_end(handler)

    server.failures["/v.bin"] = [flood]
    assert len(files.read_range(f"{server.url}/v.bin", 0, 10)) == 10
    server.failures["/moved"] = redirect
    assert read(f"{server.url}/moved") == DATA


def test_a_file_that_changes_or_another_range_is_an_error(server):
    with files.open_read(f"{server.url}/v.bin") as file:
        server.files["/v.bin"] = DATA[:-1]
        file.seek(web.BLOCK_BYTES)
        with pytest.raises(OSError, match="has changed while it was read"):
            file.read(10)

    def other(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 5-14/1000")
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(bytes(10))

    server.failures["/v.bin"] = other
    with pytest.raises(OSError, match="another range"):
        files.read_range(f"{server.url}/v.bin", 0, 10)


def test_http_is_for_reading(server):
    for call in (lambda u: files.write(u, b""), files.remove, files.remove_folder):
        with pytest.raises(UsageError, match=r"http\(s\) is for reading"):
            call(f"{server.url}/v.bin")
    assert all(path == "/v.bin" for path, _ in server.asked)


# --- copies ---------------------------------------------------------------------------------------


def test_a_stream_without_end_fills_no_disk(server, monkeypatch):
    monkeypatch.setenv("I3D_MAX_COPY_GIB", "0.05")
    server.failures["/live.mp4"] = server.never_end
    with pytest.raises(OSError, match=r"more than 0\.05 GiB.*set I3D_MAX_COPY_GIB"):
        read(f"{server.url}/live.mp4")
    server.ranges = False
    monkeypatch.setenv("I3D_MAX_COPY_GIB", "0.001")
    for sizes in (True, False):
        server.sizes = sizes
        with pytest.raises(OSError, match=r"more than 0\.001 GiB"):
            read(f"{server.url}/v.bin")
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("I3D_MAX_COPY_GIB", wrong)
        with pytest.raises(UsageError, match=f"I3D_MAX_COPY_GIB is '{wrong}'"):
            read(f"{server.url}/v.bin")


def test_a_copy_leaves_room_on_the_disk(server, monkeypatch):
    """Before it is begun, where its size is known, and while it is written."""
    server.ranges = False
    free = [1 << 40]

    class Usage:
        @property
        def free(self):
            return free.pop(0) if len(free) > 1 else free[0]

    monkeypatch.setattr("i3d.copies.shutil.disk_usage", lambda _: Usage())
    assert read(f"{server.url}/v.bin") == DATA
    free[:] = [(1 << 28) + len(DATA) - 1]
    with pytest.raises(OSError, match=r"no room in .*; set TMPDIR to a larger disk"):
        read(f"{server.url}/v.bin")
    server.failures["/live"] = server.never_end
    free[:] = [1 << 40, 1 << 40, 1 << 28]
    with pytest.raises(OSError, match=r"no room in .* for a copy of 32 MiB or more"):
        read(f"{server.url}/live")


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_what_its_page_links_to(server):
    server.failures["/val"] = (301, {"Location": "/val/"})
    server.files["/val/"] = f"""<html><body><a href="../">up</a> <a href="?C=N">sort</a>
        <A class="x" HREF='a%20b.mp4'>a b</A> <a href="{server.url}/val/c&amp;d.mp4">c</a>
        <a href="/val/inner/">inner</a> <a href="/val/inner/deep.mp4">deep</a>
        <a href="http://elsewhere.org/val/e.mp4">e</a> <a href="//[">bad</a> <a href=f.mp4>f</a>"""
    expected = [("a%20b.mp4", False), ("c&d.mp4", False), ("f.mp4", False), ("inner", True)]
    for url in (f"{server.url}/val", f"{server.url}/val/"):
        assert files.list_folder(url) == expected
        assert files.is_dir(url)
    assert files.names_in(f"{server.url}/val") == [name for name, _ in expected]
    assert not files.is_dir(f"{server.url}/v.bin")
    assert not files.is_dir(f"{server.url}/none")
    with pytest.raises(NotADirectoryError, match="the server shows no list of it"):
        files.list_folder(f"{server.url}/v.bin")


def test_a_page_without_end_fills_no_memory(server, monkeypatch):
    monkeypatch.setattr(web, "MAX_LISTING_BYTES", 1 << 20)

    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        server.never_end(handler)

    server.failures["/val/"] = page
    with pytest.raises(OSError, match="its list of files has more than 1 MiB"):
        files.is_dir(f"{server.url}/val/")


# --- passwords ------------------------------------------------------------------------------------


def test_the_password_goes_to_its_server_alone(server):
    with WebServer() as other:
        other.files["/v.bin"] = b"other"
        server.failures["/away"] = (302, {"Location": f"{other.url}/v.bin"})
        server.failures["/here"] = (302, {"Location": "/v.bin"})
        login = server.url.replace("://", "://user:pass@")
        assert read(f"{login}/here") == DATA
        assert all("Authorization" in headers for _, headers in server.asked)
        assert read(f"{login}/away") == b"other"
        assert not any("Authorization" in headers for _, headers in other.asked)


@pytest.mark.parametrize("failure", [403, 404, 503, "hang_up", "loop", "endless"])
def test_no_message_holds_a_password(server, failure, monkeypatch, tmp_path):
    monkeypatch.setenv("I3D_MAX_COPY_GIB", "0.001")
    name = f"/v.mp4?X-Amz-Credential=AKIA0&X-Amz-Signature=5e{'c' * 9}&token=tok&id=7"
    url = f"{server.url.replace('://', '://me:s3cret@')}{name}"
    server.failures["/v.mp4"] = {
        "hang_up": server.hang_up,
        "loop": (302, {"Location": name}),
        "endless": server.never_end,
    }.get(failure, failure)
    from i3d.video import read_video

    with pytest.raises(Exception, match=r"://\*\*\*@127") as caught:
        read_video(url)
    seen = []
    error = caught.value
    while error is not None:  # with --debug the causes are shown, too
        seen += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for secret in ("s3cret", "me:", "AKIA0", "5ecc", "tok&", "token=tok"):
        assert not any(secret in text for text in seen), seen
    assert "id=7" in seen[0]


def test_hide_secrets():
    shown = "see https://***@h.org/x@y.mp4?sig=***&part=2#t, s3://b/k?X-Amz-Security-Token=***"
    hidden = "see https://u:p@ss@h.org/x@y.mp4?sig=a%2Fb&part=2#t, s3://b/k?X-Amz-Security-Token=q"
    assert hide_secrets(hidden) == shown
    assert hide_secrets("no https://h/?sig=a:b=: HTTP 403") == "no https://h/?sig=***: HTTP 403"
    assert hide_secrets("a@b:c ~x?token=1") == "a@b:c ~x?token=1"  # no URL
    assert str(StorageError(hidden)) == shown
    page = 'href="http://h/?a=1&amp;signature=b">'
    assert hide_secrets(page) == 'href="http://h/?a=1&amp;signature=***">'


def test_text_and_archives_are_read_through_it(server):
    """Other libraries take it for a file."""
    server.files["/list.txt"] = b"one\ntwo\n"
    with files.open_read(f"{server.url}/list.txt") as file, io.TextIOWrapper(file) as text:
        assert text.read().split() == ["one", "two"]
