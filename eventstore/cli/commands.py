"""What each command does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator

from eventstore import EventStore, EventStoreError, InvalidArgumentError, TableProjection, schema
from eventstore.cli.output import (
    complain,
    log_to_stderr,
    one_line,
    show_finding,
    show_parked,
    show_progress,
    show_status,
    show_walk,
)
from eventstore.cli.targets import find, import_module
from eventstore.cli.workers import Workers
from eventstore.log.opening import open_engine
from eventstore.log.tables import REVISION
from eventstore.verification import Anchor, Finding
from eventstore.verification import seal as extend_chain
from eventstore.verification import verify as findings_of


def migrate(options: argparse.Namespace) -> int:
    """Create the tables or bring them up to date; or only look."""
    if options.check:
        engine, close = open_engine(options.url)
        try:
            schema.check(engine)
        finally:
            close()
    else:
        schema.migrate(options.url)
    print(f"the tables are at revision {REVISION}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Work until told to stop, in this process or in several."""
    url = _url(options)
    followers = [find(target) for target in options.targets]
    log_to_stderr()
    if options.workers > 1:
        return Workers(options.workers, options.targets, url, options.lease).run()
    with EventStore(url) as store:
        store.run(*followers, lease=options.lease)
    return 0


def catch_up(options: argparse.Namespace) -> int:
    """Bring each follower up to date."""
    followers = [find(target) for target in options.targets]
    with EventStore(_url(options)) as store:
        for follower in followers:
            position = store.catch_up(follower)
            print(f"{follower.__follower__} is up to date at position {position:,}", flush=True)
    return 0


def rebuild(options: argparse.Namespace) -> int:
    """Build a projection's tables anew, and show how far that is."""
    projection = _projection(options.target)
    with EventStore(_url(options)) as store:
        name = projection.__follower__
        with show_progress(f"rebuilding {name}") as progress:
            done = store.rebuild(projection, verify=options.verify, progress=progress)
        print(f"{name} is rebuilt up to position {done.position:,}: {done.events:,} events")
    return 0


def accept(options: argparse.Namespace) -> int:
    """Take a projection's code for that which has built its tables."""
    projection = _projection(options.target)
    with EventStore(_url(options)) as store:
        store.accept(projection)
    print(f"{projection.__follower__} is accepted as it is")
    return 0


def status(options: argparse.Namespace) -> int:
    """Show how all followers are doing."""
    with EventStore(_url(options), migrate=False) as store:
        rows = store.status()
    if options.json:
        lags = [{"lag": row.lag.total_seconds()} for row in rows]
        print(json.dumps([dataclasses.asdict(r) | lag for r, lag in zip(rows, lags, strict=True)]))
    else:
        show_status(rows)
    return 0


def parked(options: argparse.Namespace) -> int:
    """Show what a follower has set aside, or do something about it."""
    with EventStore(_url(options), migrate=False) as store:
        if options.retry:
            count = store.retry(options.name, options.stream)
            print(f"{count:,} events will be tried again, by the worker or by the next catch-up")
        elif options.discard is not None:
            _discard(store, options.name, options.discard, options.stream)
        else:
            show_parked(store.parked(options.name, options.stream))
    return 0


#: The exit statuses of `eventstore verify`, beside 0.
_FINDINGS = 1
_NOT_RUN = 2


def verify(options: argparse.Namespace) -> int:
    """Look at everything; tell what is found as it is found."""
    errors = notes = 0
    try:
        for finding in _findings(options):
            errors += finding.is_error
            notes += not finding.is_error
            if options.json:
                print(json.dumps(dataclasses.asdict(finding)), flush=True)
            else:
                show_finding(finding)
    except EventStoreError as error:
        complain(error)
        return _NOT_RUN
    if not options.json:
        print(f"{errors:,} findings, {notes:,} notes" if errors or notes else "all is well")
    return _FINDINGS if errors else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    # Also what was meant to be one: a password in it is not to be shown as an unknown target.
    urls = [word for word in options.words if "/" in word or "@" in word]
    if len(urls) > 1:
        raise EventStoreError("give one URL")
    for module in options.modules:
        import_module(module, module)
    projections = [_projection(word) for word in options.words if word not in urls]
    anchors = [Anchor.parse(text) for text in options.anchors]
    url = urls[0] if urls else _url(options)
    with EventStore(url, migrate=False) as store, show_walk(quiet=options.json) as progress:
        yield from findings_of(
            store,
            projections=projections,
            anchors=anchors,
            repair=options.repair,
            progress=progress,
        )


def seal(options: argparse.Namespace) -> int:
    """Extend the chain, once or again and again; print each new anchor."""
    told = None
    with EventStore(_url(options), migrate=False) as store:
        while True:
            anchor = extend_chain(store)
            if anchor is not None and anchor != told:
                print(anchor, flush=True)
                told = anchor
            if options.every is None:
                return 0
            time.sleep(options.every)


def _discard(store: EventStore, name: str, position: int, stream: str | None) -> None:
    found = [row for row in store.parked(name, stream) if row.position == position]
    if not found or not store.discard(name, position):
        raise InvalidArgumentError("discard", position, f"{name!r} has no such event parked")
    print(
        f"the event at position {position:,} is given up; what stands behind it in "
        f"{one_line(found[0].stream)} will be tried again"
    )


def _url(options: argparse.Namespace) -> str:
    if not options.url:
        raise EventStoreError("say which database: --url URL, or the variable EVENTSTORE_URL")
    url: str = options.url
    return url


def _projection(target: str) -> type[TableProjection]:
    found = find(target)
    if not (isinstance(found, type) and issubclass(found, TableProjection)):
        raise InvalidArgumentError("target", target, "only a TableProjection has tables")
    return found
