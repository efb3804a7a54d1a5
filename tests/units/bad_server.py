"""A local HTTP server that behaves like Harvard Dataverse at its worst, for test_download.py."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PIECE = 4096  # bytes written at a time


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request for a file's bytes.

    Attributes:
        kind: "status" (answer `status` with `headers`), "cut" (close the connection after the
            share `at` of the file), "stall" (send up to `at`, then nothing until released),
            "wrong" (flip the bytes), "tab" (send the tab-separated copy), "expired" (redirect to
            a signed link that is no longer valid).
    """

    kind: str
    at: float = 1.0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One line of the server's log.

    Attributes:
        path: with its query.
        sent: bytes of the body that went out.
    """

    path: str
    agent: str
    range: str | None
    if_range: str | None
    status: int = 0
    sent: int = 0


@dataclass
class StoredFile:
    """A file on the server; `tabular` ones come as .tab unless ``?format=original`` is asked."""

    file_id: int
    name: str
    data: bytes
    tabular: bool = False
    in_parts: bool = False

    @property
    def etag(self) -> str:
        """As on S3: the md5, except for what was uploaded in parts."""
        return f'"{hashlib.md5(self.data).hexdigest()}{"-2" if self.in_parts else ""}"'

    @property
    def tab(self) -> bytes:
        return self.data.replace(b",", b"\t")


class BadServer(ThreadingHTTPServer):
    """Listing, redirects to signed links that work once, byte ranges, and faults on demand.

    Attributes:
        files: by name.
        faults: by file name: what goes wrong with the first, second … request for its bytes.
        listing: faults of the list of files, in the same way.
        list_files: answer 404 to the list where False.
        ranges: honour Range; `if_range`: honour If-Range; `etags`: send an ETag.
        log: all requests in their order.
    """

    daemon_threads = True

    def __init__(self, files: list[StoredFile]) -> None:
        super().__init__(("127.0.0.1", 0), BadHandler)
        self.files = {file.name: file for file in files}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.listing: list[Fault] = []
        self.list_files = self.ranges = self.if_range = self.etags = True
        self.log: list[Request] = []
        self.tokens: set[str] = set()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find_requests(self, name: str) -> list[Request]:
        """The requests that were answered with bytes of this file, or refused at that stage."""
        return [request for request in self.log if request.path.startswith(f"/signed/{name}")]

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent where the client went away: some tests kill it."""


class BadHandler(BaseHTTPRequestHandler):
    server: BadServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean; `server.log` has it all."""

    def do_GET(self) -> None:
        agent = self.headers.get("User-Agent", "")
        entry = Request(self.path, agent, self.headers.get("Range"), self.headers.get("If-Range"))
        self.entry = entry
        self.server.log.append(entry)
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if not agent or agent.startswith(("Python-urllib", "python-requests")):
            self.answer(403, b"no scripts here")
        elif address.path == "/api/datasets/:persistentId/":
            self.send_listing(query)
        elif address.path.startswith("/api/access/datafile/"):
            self.redirect(int(address.path.rsplit("/", 1)[1]), query)
        elif address.path.startswith("/signed/"):
            name = address.path.removeprefix("/signed/")
            token = query["signature"][0]
            if token not in self.server.tokens:
                self.answer(403, b"Request has expired")
            else:
                self.server.tokens.remove(token)
                self.send_file(self.server.files[name], "tab" in query)
        elif address.path.startswith("/2018/"):  # the challenge's bucket: no redirect, no list
            name = address.path.removeprefix("/2018/")
            self.send_file(self.server.files[name], tab=False)
        else:
            self.answer(404, b"nothing here")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_listing(self, query: dict[str, list[str]]) -> None:
        fault = self.server.listing.pop(0) if self.server.listing else None
        if fault and fault.kind == "status":
            return self.answer(fault.status, b"busy", fault.headers)
        if fault and fault.kind == "wrong":
            return self.answer(200, b"<html>We are down for maintenance</html>")
        if not self.server.list_files or query.get("persistentId") != ["doi:10.7910/DVN/DBW86T"]:
            return self.answer(404, b"no such dataset")
        entries = []
        for file in self.server.files.values():
            entry = {
                "id": file.file_id,
                "filename": file.name,
                "filesize": len(file.data),
                "md5": hashlib.md5(file.data).hexdigest(),
            }
            if file.tabular:
                entry["filename"] = file.name.replace(".csv", ".tab")
                entry["filesize"] = len(file.tab)
                entry["originalFileName"] = file.name
                entry["originalFileSize"] = len(file.data)
            entries.append({"label": entry["filename"], "dataFile": entry})
        body = json.dumps({"status": "OK", "data": {"latestVersion": {"files": entries}}})
        return self.answer(200, body.encode(), {"Content-Type": "application/json"})

    def redirect(self, file_id: int, query: dict[str, list[str]]) -> None:
        file = next((f for f in self.server.files.values() if f.file_id == file_id), None)
        original = query.get("format") == ["original"]
        if file is None or (original and not file.tabular):  # Dataverse: IQSS/dataverse#6408
            return self.answer(404, b"no such file, or no other format of it")
        faults = self.server.faults[file.name]
        token = f"secret{len(self.server.log)}"
        if faults and faults[0].kind == "expired":
            faults.pop(0)
        else:
            self.server.tokens.add(token)
        tab = "&tab=1" if file.tabular and not original else ""
        link = f"{self.server.url}/signed/{file.name}?signature={token}{tab}"
        return self.answer(303, b"", {"Location": link})

    def send_file(self, file: StoredFile, tab: bool) -> None:
        faults = self.server.faults[file.name]
        fault = faults.pop(0) if faults else Fault("none")
        if fault.kind == "status":
            return self.answer(fault.status, b"busy", fault.headers)
        data = file.tab if tab or fault.kind == "tab" else file.data
        if fault.kind == "wrong":
            data = bytes(byte ^ 255 for byte in data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.entry.range or "")
        current = not self.server.if_range or self.entry.if_range in (None, file.etag)
        start = int(asked[1]) if asked and self.server.ranges and current else None
        if start is not None and start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self.entry.status = 200 if start is None else 206
        self.send_response(self.entry.status)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.server.etags:
            self.send_header("ETag", file.etag)
        start = start or 0
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
