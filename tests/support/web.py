"""A web server on the loopback that fails as it is told to."""

import http.server
import threading
import time
from urllib.parse import urlsplit

STALL_SECONDS = 5  # longer than any patience in the tests; ended with the server


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that hangs up is what the tests want."""


class WebServer:
    """Serves ``files`` (path -> bytes) while the block lasts.

    Attributes:
        files: path -> bytes, or text that is sent as HTML.
        ranges: whether byte ranges are answered.
        sizes: whether the length is said of what is sent whole.
        failures: path -> what happens at each request before the file is served, the first first: a
            status, (status, headers), or a function of the handler. What is in a tuple happens
            once; what is no tuple, always.
        asked: (path with query, headers) of every request.
    """

    def __init__(self):
        self.files, self.failures, self.asked = {}, {}, []
        self.ranges = self.sizes = True
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Refuse connections from now on."""
        if not self.stopped.is_set():
            self.stopped.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _handler(outer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked.append((self.path, dict(self.headers)))
                path = urlsplit(self.path).path
                failure = outer.failures.get(path)
                if isinstance(failure, list):
                    failure = failure.pop(0) if failure else None
                if failure is not None:
                    outer.fail(self, failure)
                elif path in outer.files:
                    outer.serve(self, outer.files[path])
                else:
                    outer.fail(self, 404)

            def log_message(self, *_):
                pass

        return Handler

    def fail(self, handler, failure):
        if callable(failure):
            failure(handler)
            handler.close_connection = True
            return
        status, headers = failure if isinstance(failure, tuple) else (failure, {})
        handler.send_response(status, "no words of the server's \x1b[31m")
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def serve(self, handler, data):
        html = isinstance(data, str)
        data = data.encode() if html else data
        wanted = handler.headers.get("Range") if self.ranges else None
        status, headers = 200, {}
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            total = len(data)
            data = data[int(first) : int(last) + 1 if last else total]
            status = 206 if data else 416
            span = f"{first}-{int(first) + len(data) - 1}" if data else "*"
            headers["Content-Range"] = f"bytes {span}/{total}"
        handler.send_response(status)
        if html:
            handler.send_header("Content-Type", "text/html; charset=utf-8")
        for name, value in headers.items():
            handler.send_header(name, value)
        if self.sizes or wanted:
            handler.send_header("Content-Length", str(len(data)))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        handler.wfile.write(data)

    # --- failures of the connection ---------------------------------------------------------------

    def hang_up(self, handler):
        """Say nothing at all."""

    def break_off(self, handler):
        """Half of the body that was announced."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        handler.wfile.write(bytes(500_000))

    def stall(self, handler):
        """Take the request, and never answer."""
        self.stopped.wait(STALL_SECONDS)

    def drip(self, handler):
        """A byte now and then."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        end = time.monotonic() + STALL_SECONDS
        while time.monotonic() < end and not self.stopped.wait(0.02):
            handler.wfile.write(b".")
            handler.wfile.flush()

    def never_end(self, handler):
        """Bytes without end, and no word of how many."""
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while not self.stopped.is_set():
            handler.wfile.write(bytes(1 << 16))
