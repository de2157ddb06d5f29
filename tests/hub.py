"""A Hugging Face hub for tests, on this machine's loopback: it serves and takes the files of model repositories.

    with hub(folder) as address:      # folder/owner/name/... are the repositories
        subprocess.run(..., env=environment(address, tmp_path))

The client is the real one, over HTTP.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer_get()

    def do_GET(self) -> None:
        self.answer_get()

    def answer_get(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, verb, *rest = parts[2:] if is_api else parts
        repository = self.root / owner / name
        if not repository.is_dir():
            self.reply(401 if owner == "private" else 404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        elif is_api:
            files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
            entries = [
                {
                    "type": "file",
                    "path": str(path.relative_to(repository)),
                    "size": path.stat().st_size,
                    "oid": etag(path),
                }
                for path in files
            ]
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            info = {"id": f"{owner}/{name}", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self.reply(200, entries if verb == "tree" else info)
        else:
            path = repository.joinpath(*rest[1:])
            self.asked.append("/".join(rest[1:]))
            if path.is_file():
                self.reply(200, path.read_bytes(), {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT})
            else:
                self.reply(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            values = json.loads(body)
            owner = values.get("organization") or "me"
            (self.root / owner / values["name"]).mkdir(parents=True, exist_ok=True)
            self.reply(200, {"url": f"http://{self.headers['Host']}/{owner}/{values['name']}"})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})
        else:  # a commit: a line of JSON for each file
            owner, name = path.split("/")[3:5]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.root / owner / name / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            address = f"http://{self.headers['Host']}/{owner}/{name}/commit/{COMMIT}"
            self.reply(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def hub(root: Path, asked: list[str] | None = None) -> Iterator[str]:
    """The address of a hub with the repositories in `root`; the names of files that are asked for go to `asked`."""
    handler = type("Handler", (Handler,), {"root": root, "asked": [] if asked is None else asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(address: str, home: Path, **more: str) -> dict[str, str]:
    """For a process whose hub is at `address` and whose cache is `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    ours = dict(HF_ENDPOINT=address, HF_HOME=str(home), HF_TOKEN="hf_test", HF_HUB_DISABLE_XET="1")
    return clean | ours | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | more
