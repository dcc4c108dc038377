"""The adapter against a model: a dict of lists that knows the protocol, and no database."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from asgi import Client, Response
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventstore import EventStore
from eventstore.http import DurableStreams

#: Few, so that requests meet.
PATHS = ("a/1", "b", "b/c")
JSON, TEXT = "application/json", "text/plain"


@dataclass
class Stream:
    """A stream as the model has it: messages, and the places that the server has told of."""

    media: str
    messages: list[Any] = field(default_factory=list)
    #: By offset: how many messages come before.
    places: dict[str, int] = field(default_factory=dict)
    closed: bool = False
    closer: tuple[str, int, int] | None = None
    seq: str = ""
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    source: str | None = None

    def body(self, start: int = 0) -> Any:
        if self.media == JSON:
            return self.messages[start:]
        return "".join(self.messages[start:])


class Adapter(RuleBasedStateMachine):
    """Requests in any order, each answer compared with the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = EventStore("sqlite://")
        self.app = DurableStreams(self.store, long_poll_timeout=0.01)
        self.client = Client(self.app)
        self.streams: dict[str, Stream] = {}
        #: Deleted ones whose forks are still there, and how many of these each has.
        self.kept: dict[str, Stream] = {}

    def teardown(self) -> None:
        self.runner.run(self.app.aclose())
        self.runner.close()
        self.store.close()

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> Response:
        return self.runner.run(self.client.ask(method, path, body, **headers))

    # --- requests --------------------------------------------------------------------------------

    @rule(
        path=st.sampled_from(PATHS),
        media=st.sampled_from([JSON, TEXT]),
        values=st.lists(st.integers(0, 9), max_size=3),
    )
    def create(self, path: str, media: str, values: list[int]) -> None:
        body = json.dumps(values) if media == JSON else "".join(map(str, values))
        answer = self.ask("PUT", path, body, content_type=media)
        stream = self.streams.get(path)
        if path in self.kept:
            assert answer.status == 409
        elif stream is None:
            assert answer.status == 201
            stream = self.streams[path] = Stream(media)
            stream.messages += values if media == JSON else [body] if body else []
            stream.places[answer.offset] = len(stream.messages)
        else:
            same = stream.media == media and not stream.closed
            assert answer.status == (200 if same else 409)

    @rule(
        path=st.sampled_from(PATHS),
        values=st.lists(st.integers(0, 9), min_size=1, max_size=3),
        closes=st.sampled_from([False, False, False, True]),
        seq=st.none() | st.integers(0, 30).map(str),
    )
    def append(self, path: str, values: list[int], closes: bool, seq: str | None) -> None:
        stream = self.streams.get(path)
        headers = {"stream_closed": "true"} if closes else {}
        if seq is not None:
            headers["stream_seq"] = seq
        answer = self.post(path, values, **headers)
        if stream is None:
            assert answer.status == (410 if path in self.kept else 404)
        elif stream.closed:
            assert answer.status == 409
            assert answer.headers["stream-closed"] == "true"
        elif seq is not None and stream.seq and seq <= stream.seq:
            assert answer.status == 409
        else:
            assert answer.status == 204
            stream.seq = stream.seq if seq is None else seq
            stream.closed = closes
            self.appended(stream, values, answer)

    @rule(
        path=st.sampled_from(PATHS),
        values=st.lists(st.integers(0, 9), min_size=1, max_size=3),
        name=st.sampled_from("pppq"),
        epoch=st.integers(0, 1),
        seq=st.integers(0, 2),
        closes=st.sampled_from([False, False, True]),
    )
    def produce(
        self, path: str, values: list[int], name: str, epoch: int, seq: int, closes: bool
    ) -> None:
        stream = self.streams.get(path)
        headers = {"producer_id": name, "producer_epoch": str(epoch), "producer_seq": str(seq)}
        if closes:
            headers["stream_closed"] = "true"
        answer = self.post(path, values, **headers)
        if stream is None:
            assert answer.status == (410 if path in self.kept else 404)
            return
        known_epoch, last = stream.producers.get(name, (-1, -1))
        if epoch < known_epoch:
            assert answer.status == 403
            assert answer.headers["producer-epoch"] == str(known_epoch)
        elif stream.closed:
            assert answer.status == (204 if stream.closer == (name, epoch, seq) else 409)
        elif epoch > known_epoch >= 0 and seq:
            assert answer.status == 400
        elif seq > (last if epoch == known_epoch else -1) + 1:
            assert answer.status == 409
            assert "producer-expected-seq" in answer.headers
        elif epoch == known_epoch and seq <= last:
            assert answer.status == 204
            assert answer.headers["producer-seq"] == str(last)
        else:
            assert answer.status == 200
            stream.producers[name] = (epoch, seq)
            if closes:
                stream.closed, stream.closer = True, (name, epoch, seq)
            self.appended(stream, values, answer)

    def post(self, path: str, values: list[int], **headers: str) -> Response:
        stream = self.streams.get(path)
        if stream is not None and stream.media == TEXT:
            return self.ask("POST", path, "".join(map(str, values)), content_type=TEXT, **headers)
        body = json.dumps(values if len(values) > 1 else values[0])
        return self.ask("POST", path, body, content_type=JSON, **headers)

    def appended(self, stream: Stream, values: list[int], answer: Response) -> None:
        stream.messages += values if stream.media == JSON else ["".join(map(str, values))]
        assert answer.offset > max(stream.places, default="")
        stream.places[answer.offset] = len(stream.messages)

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: str) -> None:
        stream = self.streams.pop(path, None)
        answer = self.ask("DELETE", path)
        if stream is None:
            assert answer.status == (410 if path in self.kept else 404)
            return
        assert answer.status == 204
        if self.has_forks(path):
            self.kept[path] = stream
            return
        gone: Stream | None = stream
        while gone is not None and gone.source in self.kept and not self.has_forks(gone.source):
            gone = self.kept.pop(gone.source)

    def has_forks(self, path: str) -> bool:
        living = [*self.streams.values(), *self.kept.values()]
        return any(stream.source == path for stream in living)

    @rule(
        path=st.sampled_from(PATHS),
        source=st.sampled_from(PATHS),
        pick=st.integers(0, 1000),
        sub=st.integers(0, 4),
    )
    def fork(self, path: str, source: str, pick: int, sub: int) -> None:
        origin = self.streams.get(source)
        headers = {"stream_forked_from": f"/v1/stream/{source}"}
        if origin is None:
            if path not in self.streams and path not in self.kept:
                status = 409 if source in self.kept else 404
                assert self.ask("PUT", path, **headers).status == status
            return
        if path in self.streams or path in self.kept or path == source:
            return
        place, before = sorted(origin.places.items())[pick % len(origin.places)]
        headers |= {"stream_fork_offset": place, "stream_fork_sub_offset": str(sub)}
        answer = self.ask("PUT", path, **headers)
        inherited = origin.messages[:before]
        rest = origin.messages[before:]
        if origin.media == JSON:
            enough = sub <= len(rest)
            inherited = inherited + rest[:sub]
        else:
            enough = not sub or (bool(rest) and sub <= len(rest[0]))
            inherited = inherited + ([rest[0][:sub]] if sub and rest else [])
        if not enough:
            assert answer.status == 400
            return
        assert answer.status == 201
        fork = self.streams[path] = Stream(origin.media, list(inherited), source=source)
        fork.places[answer.offset] = len(inherited)

    # --- what can be read ------------------------------------------------------------------------

    @invariant()
    def everything_is_read_back(self) -> None:
        for path, stream in self.streams.items():
            answer = self.ask("GET", path)
            assert answer.status == 200
            assert self.read(answer, stream) == stream.body()
            assert ("stream-closed" in answer.headers) is stream.closed
            assert answer.offset == max(stream.places)
        for path in PATHS:
            if path not in self.streams:
                assert self.ask("GET", path).status == (410 if path in self.kept else 404)

    @precondition(lambda self: self.streams)
    @rule(pick=st.integers(0, 1000), live=st.sampled_from(["", "&live=long-poll"]))
    def read_from_any_place(self, pick: int, live: str) -> None:
        known = [
            (path, stream, place)
            for path, stream in self.streams.items()
            for place in sorted(stream.places)
        ]
        path, stream, place = known[pick % len(known)]
        answer = self.ask("GET", f"{path}?offset={place}{live}")
        rest = stream.body(stream.places[place])
        if live and not rest:
            assert answer.status == 204
        else:
            assert answer.status == 200
            assert self.read(answer, stream) == rest
        assert answer.headers["stream-up-to-date"] == "true"

    def read(self, answer: Response, stream: Stream) -> Any:
        return answer.json if stream.media == JSON else answer.body.decode()


def test_the_adapter_does_what_the_model_says() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Adapter, settings=settings(max_examples=20, stateful_step_count=50, deadline=None)
    )
