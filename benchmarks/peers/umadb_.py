"""UmaDB 0.7, a server in Rust with a file of its own, through its client for Python.

A stream is a tag, and an append is on the condition that no event with that tag has come since the
last one that was read. Durable by default; the server's options stay as they are.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
import raw
import umadb
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn

_encode: Final = msgspec.json.Encoder().encode
_STEPS: Final = {
    cls.__name__: (msgspec.json.Decoder(cls).decode, raw._APPLY[cls])
    for cls in (AccountOpened, MoneyDeposited, MoneyWithdrawn)
}


class Account(raw.Account):
    """An account that remembers the position of its last event instead of its version."""

    __slots__ = ("query", "tag")

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.tag = [f"account:{id}"]
        self.query = umadb.Query([umadb.QueryItem(tags=self.tag)])


class Peer:
    """What the benchmarks ask of it, in one process."""

    name = "UmaDB"

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = umadb.Client(url)

    def new(self) -> Account:
        return Account(uuid4().hex)

    def save(self, account: Account) -> None:
        events = [
            umadb.Event(type(event).__name__, _encode(event), account.tag, uuid4())
            for event in account.new
        ]
        condition = umadb.AppendCondition(account.query, account.version or None)
        account.version = self._client.append(events, condition)
        account.new.clear()

    def load(self, id: str) -> Account:
        account = Account(id)
        events, _ = self._client.read(account.query).collect_with_head()
        for found in events:
            decode, apply = _STEPS[found.event.event_type]
            apply(account, decode(found.event.data))
        account.version = events[-1].position
        return account

    def fill(self, accounts: int, length: int) -> list[str]:
        """So many accounts of so many events; their ids."""
        made = [self.new() for _ in range(accounts)]
        for account in made:
            account.open()
            for _ in range(1, length):
                account.deposit(1)
            self.save(account)
        return [account.id for account in made]

    def close(self) -> None:
        self._client.close()


class Served(Peer):
    """The same with a server, which ends with it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        program = shutil.which("umadb") or str(Path(sys.executable).with_name("umadb"))
        self._server = subprocess.Popen(
            [program, "--listen", address, "--db-path", str(folder / "uma.db")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            super().__init__(_answering(f"http://{address}"))
        except BaseException:
            self._server.kill()
            raise

    def close(self) -> None:
        super().close()
        self._server.terminate()
        try:
            self._server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def _answering(url: str) -> str:
    """The URL, once the server answers."""
    for _ in range(200):
        try:
            client: Any = umadb.Client(url)
            client.head()
            return url
        except Exception:  # it is not there yet
            time.sleep(0.05)
    raise TimeoutError("UmaDB's server does not answer")
