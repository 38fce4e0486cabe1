"""A Hugging Face Hub on loopback that serves files for download."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The commit of all files; clients name a folder of their cache after it.
COMMIT = "c" * 40


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve files by path, ignoring queries; yield the address and the list of all requested paths so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

        def _send(self, body: bool) -> None:
            requests.append(self.path)
            content = files.get(self.path.partition("?")[0])
            self.send_response(404 if content is None else 200)
            content = b"" if content is None else content
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
