"""A proxy that delays and cuts: before a request arrives, or instead of its answer.

python tests/history/proxy.py FOLDER FAULTS SERVER [PORT]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from asyncio import StreamReader, StreamWriter
from collections import Counter
from pathlib import Path

#: How likely each is, for a piece of traffic.
DELAY, CUT = 0.01, 0.003
#: Seconds of a delay, at the most.
LONGEST = 0.05


def name_of_socket(folder: Path) -> Path:
    return folder / ".s.PGSQL.5432"


class Proxy:
    """Stands before a PostgreSQL server, as a socket in a folder. It runs until it is killed."""

    def __init__(self, folder: Path, server: Path | tuple[str, int], done: Path, seed: str) -> None:
        """`server` is the folder of its socket, or a host and a port.

        `done` is a file to which a line is written for each fault.
        """
        self._folder = folder
        self._server = server
        self._done = os.open(done, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._chance = random.Random(seed)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        name_of_socket(self._folder).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._accept, name_of_socket(self._folder))
        async with server:
            await server.serve_forever()

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        # Errors of either side are what this is about.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            from_server, to_server = await self._connect()
            there = asyncio.create_task(self._pass(reader, to_server, "cut before a request"))
            back = asyncio.create_task(self._pass(from_server, writer, "cut before an answer"))
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            for task in (there, back):
                task.cancel()
            for end in (writer, to_server):
                end.transport.abort()
            await asyncio.gather(there, back, return_exceptions=True)
        writer.transport.abort()

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        if isinstance(self._server, Path):
            return await asyncio.open_unix_connection(name_of_socket(self._server))
        return await asyncio.open_connection(*self._server)

    async def _pass(self, reader: StreamReader, writer: StreamWriter, cut: str) -> None:
        while piece := await reader.read(65536):
            if self._chance.random() < DELAY:
                self._note("delay")
                await asyncio.sleep(self._chance.uniform(0, LONGEST))
            if self._chance.random() < CUT:
                self._note(cut)
                return
            writer.write(piece)
            await writer.drain()

    def _note(self, fault: str) -> None:
        os.write(self._done, fault.encode() + b"\n")


def faults_of(done: Path) -> Counter[str]:
    return Counter(done.read_text().splitlines()) if done.exists() else Counter()


if __name__ == "__main__":
    folder, faults, host, *port = sys.argv[1:]
    Proxy(Path(folder), (host, int(port[0])) if port else Path(host), Path(faults), "history").run()
