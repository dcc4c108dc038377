"""A receiver of webhooks: a real server on loopback, which answers as it is told."""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

PATIENCE = 30.0


class Notification(NamedTuple):
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def wake(self) -> tuple[str, int]:
        return self.json["subscription_id"], self.json["generation"]

    @property
    def paths(self) -> list[str]:
        return [stream["path"] for stream in self.json["streams"]]


#: What a receiver answers to a notification: a status and a body.
Answering = Callable[[Notification], tuple[int, Any]]


def done(_: Notification) -> tuple[int, Any]:
    return 200, {"done": True}


def accepted(_: Notification) -> tuple[int, Any]:
    return 202, {}


def broken(_: Notification) -> tuple[int, Any]:
    return 500, {"done": True}


class Receiver:
    """A context manager. `answer` may be changed at any time."""

    def __init__(self, answer: Answering = done, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.came: queue.SimpleQueue[Notification] = queue.SimpleQueue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                notification = Notification(body, headers)
                status, content = receiver.answer(notification)
                receiver.came.put(notification)
                data = json.dumps(content).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", str(content))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is written of it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def next(self) -> Notification:
        """The next notification, or that of long ago which nobody has asked for."""
        return self.came.get(timeout=PATIENCE)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
