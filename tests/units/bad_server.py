"""A local HTTP server that behaves like Harvard Dataverse at its worst, for test_download.py."""

import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 4096  # bytes written at a time


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request for a file's bytes.

    kind: "status" (answer `status` with `headers`), "cut" (close the connection after the share
    `at` of the file), "stall" (send that, then nothing), "wrong" (flip the bytes), "expired"
    (redirect to a link that is no longer valid).
    """

    kind: str
    at: float = 1.0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One line of the server's log; `sent` counts the bytes of the body that went out."""

    path: str
    range: str | None
    status: int = 0
    sent: int = 0


class BadServer(ThreadingHTTPServer):
    """Redirects to signed links that work once, byte ranges, and faults on demand.

    files: contents by number; a table is a .tab unless ?format=original is asked for.
    faults: by number: what goes wrong with the first, second … request for the bytes.
    ranges: honour Range; log: all requests in their order.
    """

    daemon_threads = True

    def __init__(self, files: dict[int, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), BadHandler)
        self.files, self.ranges = files, True
        self.faults: dict[int, list[Fault]] = defaultdict(list)
        self.log: list[Request] = []
        self.tokens: set[str] = set()
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find_requests(self, number: int) -> list[Request]:
        return [request for request in self.log if request.path.startswith(f"/signed/{number}")]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Stay silent where the client went away."""


class BadHandler(BaseHTTPRequestHandler):
    server: BadServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.entry = Request(self.path, self.headers.get("Range"))
        self.server.log.append(self.entry)
        found = re.fullmatch(r"/(api/access/datafile|signed)/(\d+)\?*(.*)", self.path)
        number = int(found[2]) if found else 0
        if self.headers.get("User-Agent", "python-requests").startswith("python-requests"):
            self.answer(403, b"no scripts here")
        elif number not in self.server.files:
            self.answer(404, b"nothing here")
        elif found[1] != "signed":
            self.redirect(number, found[3])
        elif self.path not in self.server.tokens:
            self.answer(403, b"Request has expired")
        else:
            self.server.tokens.remove(self.path)
            self.send_file(number)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, number: int, query: str) -> None:
        link = f"/signed/{number}?signature=secret{len(self.server.log)}&{query}"
        faults = self.server.faults[number]
        if faults and faults[0].kind == "expired":
            faults.pop(0)
        else:
            self.server.tokens.add(link)
        self.answer(303, b"", {"Location": self.server.url + link})

    def send_file(self, number: int) -> None:
        data, faults = self.server.files[number], self.server.faults[number]
        fault = faults.pop(0) if faults else Fault("none")
        if fault.kind == "status":
            return self.answer(fault.status, b"busy", fault.headers)
        if fault.kind == "wrong":
            data = bytes(byte ^ 255 for byte in data)
        if not data.startswith(b"PK") and "format=original" not in self.path:
            data = data.replace(b",", b"\t")
        asked = re.fullmatch(r"bytes=(\d+)-", self.entry.range or "")
        start = int(asked[1]) if asked and self.server.ranges else 0
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self.entry.status = 206 if start else 200
        self.send_response(self.entry.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = int(len(data) * fault.at)
        for position in range(start, end, PIECE):
            self.wfile.write(data[position : min(position + PIECE, end)])
            self.entry.sent = min(position + PIECE, end) - start
        if fault.kind == "stall":
            self.server.released.wait(30)
        if end < len(data):
            self.close_connection = True
        return None
