"""One transaction of many commands: each is answered by itself, all are committed together.

What the commands concern is read and locked at the start; then each is decided upon in order, on
what those before it have left; what has changed is written at the end. Forks and deletions, which
work on the log itself, have what came before them written first.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventstore.errors import StreamDeletedError, WrongExpectedVersionError
from eventstore.http.commands import Append, Command, Create, Delete, Source, Touch
from eventstore.http.deciding import Repeated, decide
from eventstore.http.messages import BYTES, JSON, batch, events_of, media_type, messages_of
from eventstore.http.offsets import offset
from eventstore.http.problems import Problem
from eventstore.http.responses import Answer
from eventstore.log.base import NO_STREAM, Bounds, Log, NewEvent, Write
from eventstore.log.resources import ERASED, KEPT, PRESENT, Producer, Resource, Resources
from eventstore.log.work import Work

_SECOND = 1_000_000


class Interfered(Exception):
    """Another writer was quicker at something that was decided upon: do it all again."""


class _Stream:
    """What a transaction knows of one path, and what it will write."""

    __slots__ = ("events", "is_changed", "is_new", "resource", "version")

    def __init__(self, resource: Resource, version: int) -> None:
        self.resource = resource
        #: That of the log stream, with the events that are still to be written.
        self.version = version
        self.events: list[NewEvent] = []
        self.is_new = False
        self.is_changed = False

    @property
    def offset(self) -> str:
        return offset(self.resource.incarnation, self.version)

    @property
    def media(self) -> str:
        return media_type(self.resource.content_type)

    def add(self, events: Sequence[NewEvent]) -> None:
        self.events += events
        self.version += len(events)

    def become(self, resource: Resource) -> None:
        if resource != self.resource:
            self.resource = resource
            self.is_changed = True

    def touch(self, now: int) -> None:
        """Start the time to live anew."""
        if self.resource.ttl is not None:
            self.become(self.resource._replace(due_at=now + self.resource.ttl * _SECOND))


class Unit:
    """The commands of one transaction."""

    def __init__(
        self, log: Log, resources: Resources, work: Work, now: int, *, firm: bool = False
    ) -> None:
        """With `firm`, the application waits that appends to one of the streams meanwhile.

        Without, it costs a statement less, and its appends can interfere.
        """
        self._log = log
        self._firm = firm
        self._resources = resources
        self._work = work
        self._now = now
        self._streams: dict[str, _Stream] = {}
        self._looked_up: set[str] = set()
        self._producers: dict[tuple[str, str], Producer] = {}
        self._new_producers: dict[tuple[str, str], Producer] = {}
        #: The log streams that have changed, with their versions.
        self.moved: dict[str, int] = {}

    def run(self, commands: Sequence[Command]) -> list[Answer | Problem]:
        """What becomes of each. Raises Interfered, LogError."""
        self._look_up({command.path for command in commands})
        keys = {
            (command.path, command.producer.id)
            for command in commands
            if isinstance(command, Append) and command.producer is not None
        }
        if keys:
            self._producers = self._resources.producers(self._work, keys)
        answers = [self._answer(command) for command in commands]
        self._flush()
        if self.moved:
            self._work.has_news = True  # the end of a stream is news too
        return answers

    def _answer(self, command: Command) -> Answer | Problem:
        try:
            if isinstance(command, Append):
                return self._append(command)
            if isinstance(command, Create):
                return self._create(command)
            if isinstance(command, Delete):
                return self._delete(command)
            if isinstance(command, Touch):
                self._present(command.path).touch(self._now)
            else:
                self._stream(command.path)  # which erases it, if its time is over
            return Answer(204)
        except Problem as problem:
            return problem

    # --- what is there -------------------------------------------------------------------------

    def _look_up(self, paths: set[str]) -> None:
        self._looked_up |= paths
        found = self._resources.lock(self._work, paths)
        held: dict[str, int] = {}
        if self._firm:
            held = self._resources.hold(self._work, [each.stream for each, _ in found.values()])
        for path, (resource, version) in found.items():
            self._streams[path] = _Stream(resource, held.get(resource.stream, version))

    def _stream(self, path: str) -> _Stream | None:
        """What is known of a path, when what is over has been erased; None for nothing."""
        if path not in self._looked_up:
            self._look_up({path})
        stream = self._streams.get(path)
        if stream is not None and stream.resource.is_over(self._now):
            self._erase(stream)
        return stream

    def _present(self, path: str) -> _Stream:
        """The stream of a path. Raises Problem: 404, 405 for the application's, 410."""
        stream = self._stream(path)
        if stream is None:
            if self._version_of_application(path):
                raise not_writable(path)
            raise not_found(path)
        if stream.resource.gone == KEPT:
            raise gone(path)
        if stream.resource.gone == ERASED:
            raise not_found(path)
        return stream

    def _version_of_application(self, path: str) -> int:
        """The version of the stream of that name that the application has written; 0 for none."""
        head = self._log.stream(path, connection=self._work)
        return 0 if head is None or head.deleted else head.version

    def _adopt(self, path: str) -> _Stream:
        """Take a stream that the application writes for one that is written over HTTP as well."""
        stream = self._stream(path)
        if stream is None:
            version = self._version_of_application(path)
            if not version:
                raise not_found(path)
            stream = _Stream(of_application(path)._replace(created_at=self._now), version)
            stream.is_new = stream.is_changed = True
            self._streams[path] = stream
        return stream

    # --- appending -----------------------------------------------------------------------------

    def _append(self, command: Append) -> Answer:
        if command.adopts:
            self._adopt(command.path)
        stream = self._present(command.path)
        known = None
        if command.producer is not None:
            known = self._producers.get((command.path, command.producer.id))
        decision = decide(command, stream.resource, stream.version, known, stream.media)
        if isinstance(decision, Repeated):
            stream.touch(self._now)
            return Answer(204, _placed(stream) | _produced(decision.epoch, decision.seq))
        stream.add(command.events)
        stream.become(decision.resource)
        stream.touch(self._now)
        if decision.resource.closed:
            self.moved[stream.resource.stream] = stream.version
        producer = decision.producer
        if producer is None:
            return Answer(204, _placed(stream))
        key = (command.path, producer.producer)
        self._producers[key] = self._new_producers[key] = producer
        headers = _placed(stream) | _produced(producer.epoch, producer.seq)
        return Answer(200 if command.events else 204, headers)

    # --- creating ------------------------------------------------------------------------------

    def _create(self, command: Create) -> Answer:
        stream = self._stream(command.path)
        if stream is not None and stream.resource.gone == KEPT:
            raise Problem(409, "the stream was deleted, and its path is free when its forks are")
        if stream is not None and stream.resource.gone == PRESENT:
            if not _matches(command, stream):
                raise Problem(409, f"{command.path!r} exists with another configuration")
            stream.touch(self._now)
            return Answer(200, _described(stream))
        if stream is None and self._version_of_application(command.path):
            if not command.adopts:
                raise not_writable(command.path)
            return Answer(200, _described(self._adopt(command.path)))
        incarnation = 0 if stream is None else stream.resource.incarnation + 1
        known = stream is not None
        if command.source is None:
            lifetime = command.ttl, command.expires_at
            stream = self._begin(command, incarnation, command.content_type or BYTES, lifetime)
            stream.add(command.events)
        else:
            stream = self._fork(command, command.source, incarnation)
        stream.is_new = not known
        stream.is_changed = True
        self._streams[command.path] = stream
        return Answer(201, _described(stream))

    def _begin(
        self,
        command: Create,
        incarnation: int,
        content_type: str,
        lifetime: tuple[int | None, int | None],
    ) -> _Stream:
        """A stream without messages yet; `lifetime` is its time to live, and its fixed end."""
        ttl, expires_at = lifetime
        resource = Resource(
            command.path,
            self._name(command.path, incarnation),
            incarnation,
            content_type,
            ttl=ttl,
            expires_at=expires_at,
            due_at=expires_at if ttl is None else self._now + ttl * _SECOND,
            closed=command.closed,
            created_at=self._now,
        )
        return _Stream(resource, 0)

    def _name(self, path: str, incarnation: int) -> str:
        """A log stream that never was: the path itself, if it is made for the first time."""
        # A backslash, since no path may have one: that stream has no second URL.
        name = f"{path}\\{incarnation + 1}" if incarnation else path
        while self._log.stream(name, connection=self._work) is not None:
            incarnation += 1
            name = f"{path}\\{incarnation + 1}"
        return name

    def _fork(self, command: Create, source: Source, incarnation: int) -> _Stream:
        self._flush()
        origin = self._origin(source.path)
        asked = command.content_type
        if asked is not None and media_type(asked) != origin.media:
            raise Problem(409, f"the source has the content type {origin.resource.content_type}")
        version, part = self._divergence(source, origin)
        lifetime = command.ttl, command.expires_at
        if lifetime == (None, None):
            lifetime = origin.resource.ttl, origin.resource.expires_at
        content_type = asked or origin.resource.content_type
        stream = self._begin(command, incarnation, content_type, lifetime)
        stream.resource = stream.resource._replace(
            forked_from=source.path,
            fork_version=origin.version if source.offset is None else source.offset[1],
            fork_sub=source.sub,
        )
        own = events_of(command.body, origin.media)
        if version:
            names = origin.resource.stream, version, stream.resource.stream
            self._log.fork(*names, connection=self._work)
            stream.version = version
        stream.add(part)
        stream.add(own)
        return stream

    def _origin(self, path: str) -> _Stream:
        """The stream that is to be forked: of the application, too. Raises Problem: 404, 409."""
        origin = self._stream(path)
        if origin is None:
            origin = _Stream(of_application(path), self._version_of_application(path))
            if not origin.version:
                raise not_found(path)
        if origin.resource.gone == KEPT:
            raise Problem(409, f"the source {path!r} was deleted")
        if origin.resource.gone == ERASED:
            raise not_found(path)
        return origin

    def _divergence(self, source: Source, origin: _Stream) -> tuple[int, Sequence[NewEvent]]:
        """How many events a fork inherits whole, and the part of another one."""
        if source.offset is None:
            if source.sub:
                raise Problem(400, "Stream-Fork-Sub-Offset needs Stream-Fork-Offset")
            return origin.version, ()
        incarnation, version = source.offset
        strange = version > 0 and incarnation != origin.resource.incarnation
        if strange or version > origin.version:
            raise Problem(400, "Stream-Fork-Offset is not an offset of the source")
        name, left = origin.resource.stream, source.sub
        while left:
            rows = self._log.read(name, version, Bounds(), limit=1, connection=self._work)
            if not rows:
                raise Problem(400, "Stream-Fork-Sub-Offset is past the end of the source")
            if origin.media != JSON:
                if left > len(rows[0].data):
                    raise Problem(400, "Stream-Fork-Sub-Offset is past the next boundary")
                return version, events_of(rows[0].data[:left], origin.media)
            stored = self._log.event_type(rows[0].type, self._work)
            messages = messages_of(rows[0].data, stored)
            if left < len(messages):
                return version, batch(messages[:left])
            left -= len(messages)
            version += 1
        return version, ()

    # --- the end of streams --------------------------------------------------------------------

    def _delete(self, command: Delete) -> Answer:
        self._erase(self._present(command.path))
        return Answer(204)

    def _erase(self, stream: _Stream) -> None:
        """Erase a stream's messages; its path stays taken while there are forks of it."""
        self._flush()
        path = stream.resource.path
        kept = self._resources.has_forks(self._work, path)
        if stream.version:
            self._log.delete(stream.resource.stream, connection=self._work)
        self._resources.forget_producers(self._work, path)
        for key in [key for key in self._producers if key[0] == path]:
            del self._producers[key]
        stream.become(stream.resource._replace(gone=KEPT if kept else ERASED, due_at=None))
        self.moved[stream.resource.stream] = stream.version + 1
        if not kept:
            self._release(stream.resource.forked_from)

    def _release(self, source: str | None) -> None:
        """One fork less: a source that was only kept for it goes as well, and so on."""
        self._flush()
        while source is not None:
            stream = self._stream(source)
            if stream is None or stream.resource.gone != KEPT:
                return
            if self._resources.has_forks(self._work, source):
                return
            stream.become(stream.resource._replace(gone=ERASED))
            self._flush()
            source = stream.resource.forked_from

    # --- writing -------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what has changed."""
        new = [s.resource for s in self._streams.values() if s.is_new]
        if new and not self._resources.add(self._work, new):
            raise Interfered
        changed = [s.resource for s in self._streams.values() if s.is_changed and not s.is_new]
        if changed:
            self._resources.put(self._work, changed)
        writes = []
        for stream in self._streams.values():
            stream.is_new = stream.is_changed = False
            if stream.events:
                before = stream.version - len(stream.events)
                name = stream.resource.stream
                writes.append(Write(name, stream.events, before or NO_STREAM))
                self.moved[name] = stream.version
                stream.events = []
        if writes:
            try:
                self._log.append(writes, connection=self._work)
            except (WrongExpectedVersionError, StreamDeletedError) as error:
                # The application writes to the same stream.
                raise Interfered from error
        if self._new_producers:
            changed_producers = list(self._new_producers.values())
            self._new_producers = {}
            self._resources.put_producers(self._work, changed_producers)


def of_application(path: str) -> Resource:
    """What is known of a stream that the application itself writes."""
    return Resource(path, path, 0, JSON)


def not_found(path: str) -> Problem:
    """There is no such stream."""
    return Problem(404, f"there is no stream {path!r}")


def gone(path: str) -> Problem:
    """There was one, and its path is taken while there are forks of it."""
    return Problem(410, f"the stream {path!r} was deleted")


def not_writable(path: str) -> Problem:
    """The stream is the application's."""
    return Problem(
        405,
        f"{path!r} is a stream of the application, which is read-only over HTTP",
        {"Allow": "GET, HEAD, OPTIONS"},
    )


def _matches(command: Create, stream: _Stream) -> bool:
    """Whether a stream is what a PUT asks for (sections 4.2 and 5.1)."""
    resource, source = stream.resource, command.source
    asked = command.content_type
    if asked is None and source is None:
        asked = BYTES
    if asked is not None and media_type(asked) != stream.media:
        return False
    if command.closed != resource.closed:
        return False
    if source is None:
        return (command.ttl, command.expires_at) == (resource.ttl, resource.expires_at)
    if resource.forked_from != source.path or resource.fork_sub != source.sub:
        return False
    if source.offset is not None and source.offset[1] != resource.fork_version:
        return False
    inherits = command.ttl is None and command.expires_at is None
    return inherits or (command.ttl, command.expires_at) == (resource.ttl, resource.expires_at)


def _described(stream: _Stream) -> dict[str, str]:
    return {"Content-Type": stream.resource.content_type, **_placed(stream)}


def _placed(stream: _Stream) -> dict[str, str]:
    headers = {"Stream-Next-Offset": stream.offset}
    if stream.resource.closed:
        headers["Stream-Closed"] = "true"
    return headers


def _produced(epoch: int | None, seq: int | None) -> dict[str, str]:
    return {} if epoch is None else {"Producer-Epoch": str(epoch), "Producer-Seq": str(seq)}
