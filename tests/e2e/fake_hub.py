"""As much of Hugging Face's hub as reading the files of one repository takes: `owner/repository`, from memory."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

API = "/api/models/owner/repository"
RESOLVE = "/owner/repository/resolve/"
COMMIT = "a" * 40


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[str]:
    """Serve these files, which may change meanwhile; gives the URL for HF_ENDPOINT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            if path.startswith(f"{API}/tree/"):
                directory = path.removeprefix(f"{API}/tree/").partition("/")[2]
                self._reply(200, list_entries(files, directory, query.get("recursive") == ["true"]))
            elif path.startswith(API):
                self._reply(200, {"id": "owner/repository", "sha": COMMIT, "private": False, "siblings": []})
            elif path.startswith(RESOLVE):
                content = files.get(path.removeprefix(RESOLVE).partition("/")[2])
                if content is None:
                    self._reply(404, {})
                else:
                    self._send(200, content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})
            else:
                self._reply(404, {})

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def _reply(self, status: int, value: Any) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def list_entries(files: dict[str, bytes], directory: str, is_recursive: bool) -> list[dict[str, Any]]:
    """What the hub says of a directory."""
    prefix = f"{directory}/" if directory else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            if depth == 1 or is_recursive:
                parent = prefix + "/".join(parts[:depth])
                entries[parent] = {"type": "directory", "oid": "d" * 40, "size": 0, "path": parent}
        if is_recursive or len(parts) == 1:
            entries[path] = {"type": "file", "oid": digest(content), "size": len(content), "path": path}
    return list(entries.values())


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
