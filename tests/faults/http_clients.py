"""Clients of the protocol: each a process of many tasks, which works until it is told to end.

They speak plain HTTP, to any server by any way, and know nothing of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
from campaign import Broken
from clients import Stop
from http_wire import (
    Batch,
    Followed,
    Forked,
    Report,
    body_of,
    media_of,
    messages_in,
    version_of,
)

#: Seconds after which who has no answer, or no news, has waited in vain.
PATIENCE: Final = 45.0
#: Less, for readers at the end of a round: one that asks anew by itself must not hide that nobody
#: has told it.
TOLD: Final = 20.0
WRITERS, READERS = 3, 8


class Way(NamedTuple):
    """To a server: at once, or through a proxy's socket."""

    port: int
    socket: Path | None = None


class Spot(NamedTuple):
    """Where a client works."""

    ways: Sequence[Way]
    streams: Sequence[str]
    #: The file that it reports to, and the one that tells readers how far they have to get.
    report: Path
    ends: Path
    seed: str


class Wire:
    """Requests, each by a way of its own."""

    def __init__(self, ways: Sequence[Way], chance: random.Random, report: Report) -> None:
        self._chance = chance
        self._report = report
        self._clients = [self._client(way) for way in ways]

    @staticmethod
    def _client(way: Way) -> httpx.AsyncClient:
        socket = None if way.socket is None else str(way.socket)
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, verify=False),
            base_url=f"http://127.0.0.1:{way.port}/v1/stream/",
            timeout=PATIENCE,
        )

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def any(self) -> httpx.AsyncClient:
        return self._chance.choice(self._clients)

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        may_be_away: bool = False,
        **headers: str,
    ) -> httpx.Response | None:
        """The answer to one attempt; None if there is none.

        Nor is one that the database was away, unless that is wanted.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            answer = await self.any().request(method, target, content=body or None, headers=named)
        except httpx.TransportError:
            self._report.count("answer lost")
            return None
        if answer.status_code == 503:
            self._report.count("answered 503")
            return answer if may_be_away else None
        if answer.status_code >= 500:
            raise Broken(f"{method} {target} was answered {answer.status_code}: {answer.text}")
        return answer

    async def insist(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> tuple[httpx.Response, int]:
        """The answer, at last, and how many attempts it took."""
        attempts, until = 1, time.monotonic() + PATIENCE
        while (answer := await self.ask(method, target, body, **headers)) is None:
            if time.monotonic() > until:
                raise Broken(f"{method} {target} is not answered")
            await self.pause()
            attempts += 1
        return answer, attempts

    async def pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.005, 0.05))


def _check(answer: httpx.Response, *expected: int) -> None:
    if answer.status_code not in expected:
        asked = f"{answer.request.method} {answer.request.url} {dict(answer.request.headers)}"
        raise Broken(f"{asked} was answered {answer.status_code}: {answer.text[:500]}")


# --- writers -------------------------------------------------------------------------------------


class Writer:
    """Creates, appends, closes, forks and deletes."""

    def __init__(self, wire: Wire, spot: Spot, stop: Stop, report: Report, name: str) -> None:
        self._wire = wire
        self._spot = spot
        self._stop = stop
        self._report = report
        self._name = name
        self._chance = random.Random(f"{spot.seed} {name}")
        self._ops = 0
        self._open = list(spot.streams)
        #: Of each stream, what this producer sends next: epoch and sequence number.
        self._next: dict[str, tuple[int, int]] = {}
        #: Versions at which something of ours ended.
        self._seen: dict[str, list[int]] = {}
        self._lives = 0
        self._forks = 0

    async def work(self) -> None:
        for stream in self._open:
            await self._create(stream)
        acts: dict[Callable[[], Coroutine[Any, Any, None]], int] = {
            self._plain: 30,
            self._produce: 40,
            self._begin_anew: 5,
            self._close: 2,
            self._fork: 4,
            self._live_and_die: 4,
        }
        while not self._stop.asked.is_set():
            (act,) = self._chance.choices(list(acts), list(acts.values()))
            await act()

    async def _create(self, stream: str) -> None:
        answer, _ = await self._wire.insist("PUT", stream, content_type=media_of(stream))
        # Others make it at the same time, and it may be closed already.
        if answer.status_code != 409:
            _check(answer, 200, 201)

    def _batch(self, stream: str, *, produced: bool, closes: bool = False) -> Batch:
        self._ops += 1
        batch = Batch(stream, f"{self._name}-{self._ops}", self._chance.choice((1, 1, 3)))
        batch.closes = closes
        if produced:
            epoch, seq = self._next.get(stream, (0, 0))
            self._next[stream] = (epoch, seq + 1)
            batch.producer = (self._name, epoch, seq)
        self._report.batches.append(batch)
        return batch

    async def _plain(self) -> None:
        batch = self._batch(self._chance.choice(self._open), produced=False)
        await self._send_once(batch)

    async def _send_once(self, batch: Batch) -> None:
        batch.sent = 1
        answer = await self._wire.ask(
            "POST", batch.stream, body_of(batch), may_be_away=True, **self._headers(batch)
        )
        if answer is None:
            return
        if answer.status_code != 503:
            self._told(batch, answer)
        elif "nothing was written" in answer.text:
            batch.outcome = "refused"

    async def _produce(self) -> None:
        """Several at once, each until it is answered: in the order of their numbers, then."""
        stream = self._chance.choice(self._open)
        batches = [
            self._batch(stream, produced=True) for _ in range(self._chance.choice((1, 1, 4)))
        ]
        sending = [self._send(batch) for batch in batches]
        if self._chance.random() < 0.2:
            sending.append(self._send(batches[0]))  # twice at the same time
        await asyncio.gather(*sending)

    async def _send(self, batch: Batch) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            answer, attempts = await self._wire.insist(
                "POST", batch.stream, body_of(batch), **self._headers(batch)
            )
            batch.sent += attempts
            if "producer-expected-seq" not in answer.headers:
                break
            if time.monotonic() > until:
                raise Broken(f"{batch} is never due: {dict(answer.headers)}")
            await self._wire.pause()
        self._told(batch, answer)
        if batch.outcome == "acknowledged" and self._chance.random() < 0.1:
            again, _ = await self._wire.insist(
                "POST", batch.stream, body_of(batch), **self._headers(batch)
            )
            _check(again, 204, 409)  # repeated, or meanwhile closed

    def _headers(self, batch: Batch) -> dict[str, str]:
        headers = {"content_type": media_of(batch.stream)}
        if batch.closes:
            headers["stream_closed"] = "true"
        if batch.producer is not None:
            id, epoch, seq = batch.producer
            headers |= {
                "producer_id": id,
                "producer_epoch": str(epoch),
                "producer_seq": str(seq),
            }
        return headers

    def _told(self, batch: Batch, answer: httpx.Response) -> None:
        if answer.status_code == 409 and answer.headers.get("stream-closed") == "true":
            # Of one that was sent before, the answer to that may be lost.
            if batch.outcome != "acknowledged":
                batch.outcome = "refused" if batch.sent == 1 else "unknown"
            if batch.stream in self._open:
                self._open.remove(batch.stream)
            return
        _check(answer, 200, 204)
        batch.outcome = "acknowledged"
        if batch.closes and answer.headers.get("stream-closed") != "true":
            raise Broken(f"{batch} has closed the stream, and is not told so")
        version = version_of(answer.headers["stream-next-offset"])
        if batch.producer is None or answer.status_code == 200:
            if batch.version is not None:
                raise Broken(f"{batch} is told twice to be new")
            batch.version = version
            self._seen.setdefault(batch.stream, []).append(version)

    async def _begin_anew(self) -> None:
        """As one who has crashed: with the next epoch, which shuts out who he was before."""
        stream = self._chance.choice(self._open)
        epoch, seq = self._next.get(stream, (0, 0))
        if not seq:
            return
        self._next[stream] = (epoch + 1, 0)
        await self._send(self._batch(stream, produced=True))
        late = Batch(stream, f"{self._name}-late-{self._ops}", 1, (self._name, epoch, seq))
        answer, _ = await self._wire.insist("POST", stream, body_of(late), **self._headers(late))
        _check(answer, 403, 409)
        if answer.status_code == 409 and "stream-closed" not in answer.headers:
            raise Broken(f"{late} of an older epoch was not shut out: {answer.text}")
        self._report.count("producer of an older epoch shut out")

    async def _close(self) -> None:
        """With a last message. The last stream stays open."""
        if len(self._open) == 1:
            return
        stream = self._chance.choice(self._open[:-1])
        batch = self._batch(stream, produced=self._chance.random() < 0.5, closes=True)
        await (self._send_once(batch) if batch.producer is None else self._send(batch))
        if batch.outcome == "acknowledged":
            if stream in self._open:
                self._open.remove(stream)
            self._report.count("stream closed with a last message")

    async def _fork(self) -> None:
        if not self._seen:
            return
        source = self._chance.choice(list(self._seen))
        version = self._chance.choice(self._seen[source])
        self._forks += 1
        stream = f"{source}/fork-{self._name}-{self._forks}"
        answer, attempts = await self._wire.insist(
            "PUT",
            stream,
            stream_forked_from=f"/v1/stream/{source}",
            stream_fork_offset=f"{0:016d}_{version:016d}",
        )
        _check(answer, 201, *([200] if attempts > 1 else []))
        self._report.forks.append(Forked(stream, source, version))
        self._report.count("fork made")
        for _ in range(2):
            await self._send(self._batch(stream, produced=True))

    async def _live_and_die(self) -> None:
        """A stream of one's own, from its making to its end; then the path is made anew."""
        wire, stream = self._wire, f"{self._spot.streams[0]}/own-{self._name}"
        self._lives += 1
        media = media_of(stream)
        answer, attempts = await wire.insist("PUT", stream, content_type=media)
        _check(answer, 201, *([200] if attempts > 1 else []))
        due = []
        for seq in range(self._chance.randint(1, 3)):
            op = f"{self._name}-life-{self._lives}-{seq}"
            batch = Batch(stream, op, 2, (self._name, 0, seq))
            answer, attempts = await wire.insist(
                "POST", stream, body_of(batch), **self._headers(batch)
            )
            _check(answer, 200, *([204] if attempts > 1 else []))
            due += [f"{op}/{n}" for n in range(2)]
        answer, _ = await wire.insist("GET", stream)
        _check(answer, 200)
        if messages_in(stream, answer.content) != due:
            raise Broken(f"{stream} has {answer.text[:1000]}, and {due} was appended")
        place = answer.headers["stream-next-offset"]
        answer, attempts = await wire.insist("DELETE", stream)
        _check(answer, 204, *([404] if attempts > 1 else []))
        answer, _ = await wire.insist("GET", stream)
        _check(answer, 404)
        answer, attempts = await wire.insist("PUT", stream, content_type=media)
        _check(answer, 201, *([200] if attempts > 1 else []))
        answer, _ = await wire.insist("GET", f"{stream}?offset={place}")
        _check(answer, 410)
        answer, _ = await wire.insist("GET", stream)
        _check(answer, 200)
        if messages_in(stream, answer.content):
            raise Broken(f"{stream} was made anew, and has {answer.text[:1000]}")
        answer, attempts = await wire.insist("DELETE", stream)
        _check(answer, 204, *([404] if attempts > 1 else []))
        self._report.count("stream made, written, deleted and made anew")


# --- readers -------------------------------------------------------------------------------------


class Reader:
    """Follows one stream by all three ways, in turns; whatever happens, it goes on where it was."""

    def __init__(
        self, wire: Wire, spot: Spot, stop: Stop, report: Report, stream: str, name: str
    ) -> None:
        self._wire = wire
        self._stop = stop
        self._ends = spot.ends
        self._report = report
        self._stream = stream
        self._chance = random.Random(f"{spot.seed} {name}")
        self._offset = "-1"
        self._seen = Followed(stream, 0, 0, [], False)

    async def work(self) -> None:
        if self._chance.random() < 0.3:
            await self._begin_at_the_end()
        asked: float | None = None
        while not self._is_done():
            act = self._chance.choice((self._catch_up, self._long_poll, self._listen))
            reading = asyncio.create_task(act())
            while not (await asyncio.wait({reading}, timeout=0.05))[0]:
                if self._is_done():
                    break
                if self._stop.asked.is_set():
                    asked = asked or time.monotonic()
                    if time.monotonic() > asked + TOLD:
                        raise Broken(f"{act.__name__} of {self._stream} hears of nothing")
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                await reading
        self._seen.last = version_of(self._offset)
        self._report.followed.append(self._seen)

    def _is_done(self) -> bool:
        if not self._stop.asked.is_set():
            return False
        offset: str
        closed: bool
        offset, closed = json.loads(self._ends.read_bytes())[self._stream]
        return version_of(self._offset) == version_of(offset) and self._seen.ended >= closed

    async def _begin_at_the_end(self) -> None:
        while not self._stop.asked.is_set():
            answer = await self._wire.ask("GET", f"{self._stream}?offset=now")
            if answer is not None and answer.status_code == 200:
                self._offset = answer.headers["stream-next-offset"]
                self._seen.first = version_of(self._offset)
                return
            await self._wire.pause()

    async def _catch_up(self) -> None:
        if not await self._get(""):
            await self._wire.pause()

    async def _long_poll(self) -> None:
        await self._get("&live=long-poll")

    async def _get(self, live: str) -> bool:
        """Whether there was anything."""
        answer = await self._wire.ask("GET", f"{self._stream}?offset={self._offset}{live}")
        if answer is None or self._is_early(answer):
            await self._wire.pause()
            return False
        _check(answer, 200, 204)
        headers = answer.headers
        messages = messages_in(self._stream, answer.content)
        self._take(messages, headers["stream-next-offset"], "stream-closed" in headers)
        self._report.count("read: " + ("long-poll" if live else "catch-up"))
        return bool(messages)

    def _is_early(self, answer: httpx.Response) -> bool:
        """Whether nobody has made the stream so far."""
        return answer.status_code == 404 and self._offset == "-1"

    async def _listen(self) -> None:
        target = f"{self._stream}?offset={self._offset}&live=sse"
        self._report.count("read: SSE")
        try:
            async with self._wire.any().stream("GET", target) as answer:
                if answer.status_code == 503 or self._is_early(answer):
                    await self._wire.pause()
                    return
                if answer.status_code != 200:
                    await answer.aread()
                    _check(answer, 200)
                data: list[bytes] | None = None
                async for kind, lines in _events(answer):
                    if kind == b"data":
                        if data is not None:
                            raise Broken(f"{target} has data without a control event")
                        data = lines
                        continue
                    control = json.loads(b"\n".join(lines))
                    body = b"\n".join(data or ())
                    closed = control.get("streamClosed", False)
                    messages = messages_in(self._stream, body)
                    self._take(messages, control["streamNextOffset"], closed)
                    data = None
                    if self._chance.random() < 0.02:
                        return  # and come again
        except httpx.TransportError:
            self._report.count("reader cut off")
            await self._wire.pause()

    def _take(self, messages: list[str], offset: str, ended: bool) -> None:
        seen = self._seen
        if seen.ended and (messages or not ended):
            raise Broken(f"{self._stream} goes on after its end, with {messages} at {offset}")
        if offset < self._offset or (messages and offset == self._offset):
            raise Broken(f"{self._stream} is at {offset} after {self._offset}")
        if not messages and version_of(offset) != version_of(self._offset):
            raise Broken(f"{self._stream} goes from {self._offset} to {offset} without a message")
        seen.messages += messages
        seen.ended = ended
        self._offset = offset
        self._report.count("message read", len(messages))


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[bytes, list[bytes]]]:
    """Events of SSE: their kind, and the lines of their data."""
    rest = b""
    async for piece in answer.aiter_bytes():
        rest += piece
        *events, rest = re.split(rb"\n\n|\r\r|\r\n\r\n", rest)
        for event in events:
            kind, lines = b"message", []
            for line in re.split(rb"\r\n|\r|\n", event):
                name, _, value = line.partition(b":")
                if name == b"event":
                    kind = value.strip()
                elif name == b"data":
                    lines.append(value.removeprefix(b" "))
            yield kind, lines


# --- processes -----------------------------------------------------------------------------------


def write(spot: Spot, stop: Stop) -> None:
    _run(spot, lambda wire, report: [
        Writer(wire, spot, stop, report, f"{spot.report.stem}-{n}").work() for n in range(WRITERS)
    ])  # fmt: skip


def read(spot: Spot, stop: Stop) -> None:
    streams = random.Random(spot.seed).sample(spot.streams, len(spot.streams))
    _run(spot, lambda wire, report: [
        Reader(wire, spot, stop, report, streams[n % len(streams)], f"{n}").work()
        for n in range(READERS)
    ])  # fmt: skip


def _run(spot: Spot, tasks: Callable[[Wire, Report], list[Coroutine[Any, Any, None]]]) -> None:
    report = Report([], [], [], {})

    async def main() -> None:
        wire = Wire(spot.ways, random.Random(spot.seed), report)
        async with asyncio.TaskGroup() as group:
            for task in tasks(wire, report):
                group.create_task(task)
        await wire.close()

    asyncio.run(main())
    report.write(spot.report)
