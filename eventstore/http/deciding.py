"""What becomes of an append: decided from what is known of the stream and the producer, purely.

The order of the checks is that of PROTOCOL.md, 5.2 and 5.2.1: the producer's fence, the end of the
stream, the content type, the sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from eventstore.http.commands import Append
from eventstore.http.offsets import offset
from eventstore.http.problems import Problem
from eventstore.http.requests import Producing
from eventstore.log.resources import Producer, Resource


class Accepted(NamedTuple):
    """The append is to be done. `producer` is what is known of its producer afterwards."""

    resource: Resource
    producer: Producer | None


class Repeated(NamedTuple):
    """It was done before: nothing is to be written. `seq` is the highest that was accepted."""

    epoch: int | None
    seq: int | None


def decide(
    command: Append, resource: Resource, version: int, known: Producer | None, media: str
) -> Accepted | Repeated:
    """Decide on an append to a stream that is there, at `version`, of the media type `media`.

    Raises Problem: 400, 403, 409, 412.
    """
    producing = command.producer
    fresh = True
    if producing is not None:
        fresh = _is_fresh(producing, known, closed=resource.closed)
    if resource.closed:
        return _closed(command, resource, version, known)
    if not fresh:
        assert known is not None
        return Repeated(known.epoch, known.seq)
    if command.events and command.media != media:
        raise Problem(409, f"the stream has the content type {resource.content_type}")
    if command.expected is not None and command.expected != version:
        raise Problem(
            412,
            f"the stream is at version {version}, and {command.expected} was expected",
            {"Stream-Version": str(version), **_tail(resource, version)},
        )
    if command.events and command.seq is not None:
        if resource.seq is not None and command.seq <= resource.seq:
            raise Problem(
                409,
                f"Stream-Seq {command.seq.decode('latin-1')!r} does not come after "
                f"{resource.seq.decode('latin-1')!r}, byte by byte",
            )
        resource = resource._replace(seq=command.seq)
    if command.closes:
        resource = resource._replace(closed=True, closed_by=_mark(producing))
    producer = None
    if producing is not None:
        producer = Producer(command.path, producing.id, producing.epoch, producing.seq)
    return Accepted(resource, producer)


def _is_fresh(producing: Producing, known: Producer | None, *, closed: bool) -> bool:
    """Whether a batch was not accepted before. Raises Problem for one that may not come now."""
    epoch, seq = producing.epoch, producing.seq
    if known is not None and epoch < known.epoch:
        raise Problem(
            403,
            f"the producer is at epoch {known.epoch}: another has taken its place",
            {"Producer-Epoch": str(known.epoch)},
        )
    if closed:
        return True  # the end of the stream decides
    if known is not None and epoch > known.epoch and seq:
        raise Problem(400, "a new epoch must start at Producer-Seq 0")
    last = known.seq if known is not None and epoch == known.epoch else -1
    if seq > last + 1:
        raise Problem(
            409,
            f"Producer-Seq {last + 1} has to come before {seq}",
            {"Producer-Expected-Seq": str(last + 1), "Producer-Received-Seq": str(seq)},
        )
    return seq == last + 1


def _closed(command: Append, resource: Resource, version: int, known: Producer | None) -> Repeated:
    """What becomes of an append to a closed stream: only a repetition of the end succeeds."""
    producing = command.producer
    if producing is not None and resource.closed_by == _mark(producing):
        return Repeated(producing.epoch, known.seq if known else producing.seq)
    if producing is None and command.closes and not command.events:
        return Repeated(None, None)
    headers = {"Stream-Closed": "true", **_tail(resource, version)}
    raise Problem(409, "the stream is closed", headers)


def _mark(producing: Producing | None) -> str | None:
    return None if producing is None else msgspec.json.encode(producing).decode()


def _tail(resource: Resource, version: int) -> dict[str, str]:
    return {"Stream-Next-Offset": offset(resource.incarnation, version)}
