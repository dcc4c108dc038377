"""`eventstore serve`: the streams of a database over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventstore import Aggregate, EventStore, EventStoreError
from eventstore.cli.numbers import above_zero, whole
from eventstore.cli.output import log_to_stderr
from eventstore.cli.targets import TargetError, import_module, named

if TYPE_CHECKING:
    from eventstore.http import Authorize, DurableStreams, Limits


_FORM = "module:name"
#: Options that describe what `--app` brings.
_OF_APPLICATION = (
    "token_file",
    "authorize",
    "allow_anyone",
    "origin",
    "public_cache",
    "writable",
    "base_url",
    "long_poll_timeout",
    "migrate",
    "max_body",
    "body_timeout",
    "max_unread",
    "requests_per_second",
    "burst",
    "max_readers",
    "max_readers_per_client",
)


def add_to(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve streams over HTTP, by the Durable Streams protocol",
        description="Without --token-file, --authorize or --allow-anyone only requests of the same "
        "machine are answered.",
    )
    parser.add_argument(
        "url",
        nargs="?",
        default=os.environ.get("EVENTSTORE_URL"),
        help="the database; by default what EVENTSTORE_URL says, which other users cannot see",
    )
    parser.add_argument("--migrate", action="store_true", help="bring its tables up to date first")
    _add_application(parser)
    _add_access(parser)
    _add_limits(parser)
    _add_server(parser)
    parser.set_defaults(run=serve)


def _add_application(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the application")
    group.add_argument(
        "--app",
        metavar="MODULE:NAME",
        help="a DurableStreams, or a function that makes one; then without URL, and with the "
        "options of the server only",
    )
    group.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="the application's aggregates, whose streams are read-only then (repeatable)",
    )
    group.add_argument(
        "--writable",
        metavar="MODULE:CLASS",
        action="append",
        default=[],
        help="an aggregate to whose streams events may be posted (repeatable)",
    )
    group.add_argument("--long-poll-timeout", type=above_zero(), metavar="SECONDS", help="(20)")
    group.add_argument(
        "--base-url", help="what clients have in front of /v1/stream: https://shop.example"
    )
    group.add_argument(
        "--public-cache",
        action="store_true",
        help="with --allow-anyone: shared caches may keep what is read, but for aggregates",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access").add_mutually_exclusive_group()
    group.add_argument(
        "--token-file", metavar="FILE", help="a bearer token a line; 'read' after it limits it"
    )
    group.add_argument("--authorize", metavar="MODULE:FUNCTION", help="says who may do what")
    group.add_argument(
        "--allow-anyone", action="store_true", help="whoever reaches the server may do everything"
    )
    parser.add_argument(
        "--origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="pages of that origin may use the server (repeatable; by default all, as far as "
        "access goes)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits; a client is an address")
    group.add_argument("--max-body", type=whole, metavar="BYTES", help="(16 MiB)")
    group.add_argument("--body-timeout", type=above_zero(), metavar="SECONDS", help="(60)")
    group.add_argument(
        "--max-unread", type=whole, metavar="BYTES", help="that wait for slow readers (256 MiB)"
    )
    group.add_argument(
        "--requests-per-second", type=above_zero(), metavar="N", help="of one client"
    )
    group.add_argument("--burst", type=whole, metavar="N", help="of one that was quiet")
    group.add_argument("--max-readers", type=whole, metavar="N", help="that are live (20000)")
    group.add_argument("--max-readers-per-client", type=whole, metavar="N")


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1)")
    group.add_argument("--port", type=int, default=4437, help="0 is any free one (4437)")
    group.add_argument("--tls-cert", metavar="FILE", help="PEM, with its chain")
    group.add_argument("--tls-key", metavar="FILE", help="PEM")
    group.add_argument(
        "--forwarded-allow-ips",
        metavar="ADDRESSES",
        help="proxies whose X-Forwarded-For and -Proto are believed, or *",
    )
    group.add_argument("--shutdown-timeout", type=whole, default=10, metavar="SECONDS", help="(10)")
    log = group.add_mutually_exclusive_group()
    log.add_argument("--no-access-log", action="store_true")
    log.add_argument("--json-access-log", action="store_true", help="an object a line")


def serve(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    try:
        from eventstore.http import serving
    except ModuleNotFoundError as error:
        raise EventStoreError(
            f"`eventstore serve` needs {error.name}: pip install 'eventstore[http]'"
        ) from error

    log_to_stderr()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        app = application(options, stack)
        serving.serve(
            app,
            serving.Options(
                host=options.host,
                port=options.port,
                tls_cert=options.tls_cert,
                tls_key=options.tls_key,
                forwarded_allow_ips=options.forwarded_allow_ips,
                access_log=_access_log(options),
                shutdown_seconds=options.shutdown_timeout,
            ),
            ready=lambda url: print(f"serving at {url}", flush=True),
        )
    return 0


def _access_log(options: argparse.Namespace) -> Any:
    if options.no_access_log:
        return None
    return "json" if options.json_access_log else "text"


def application(options: argparse.Namespace, stack: contextlib.ExitStack) -> DurableStreams:
    """The application that the options describe; the stack closes its store."""
    for module in options.modules:
        import_module(module, module)
    from eventstore.http import DurableStreams

    if options.app is not None:
        _refuse_beside_app(options)
        app = named(options.app, _FORM)
        if callable(app) and not isinstance(app, DurableStreams):
            app = app()
        if not isinstance(app, DurableStreams):
            raise TargetError(options.app, "it is no DurableStreams, and makes none")
        _check_tables(app.store)
        return app
    if not options.url:
        raise EventStoreError("say which database: its URL, or the variable EVENTSTORE_URL")
    if options.public_cache and not options.allow_anyone:
        raise EventStoreError("--public-cache needs --allow-anyone: caches ask no hook")
    writable = [_aggregate(name) for name in options.writable]
    authorize = _authorize(options)
    store = stack.enter_context(EventStore(options.url, migrate=True if options.migrate else None))
    _check_tables(store)
    return DurableStreams(
        store,
        authorize=authorize,
        writable=writable,
        long_poll_timeout=options.long_poll_timeout or 20.0,
        limits=_limits(options),
        origins=options.origin or ["*"],
        is_public=options.public_cache,
        base_url=options.base_url,
    )


def _refuse_beside_app(options: argparse.Namespace) -> None:
    """Raise EventStoreError for what an application would not be asked about: its access, say."""
    for name in _OF_APPLICATION:
        if getattr(options, name):
            option = name.replace("_", "-")
            raise EventStoreError(f"--app brings its own: leave out --{option}, or give it there")


def _check_tables(store: EventStore) -> None:
    """Raise SchemaError, LogError now, and not at the first request."""
    store.version("readyz")


def _authorize(options: argparse.Namespace) -> Authorize | None:
    from eventstore.http import allow_all
    from eventstore.http.tokens import BearerTokens

    if options.allow_anyone:
        return allow_all
    if options.token_file is not None:
        return BearerTokens(options.token_file)
    if options.authorize is None:
        return None
    found: Callable[..., Any] = named(options.authorize, _FORM)
    if not callable(found):
        raise TargetError(options.authorize, "it is no function")
    return found


def _limits(options: argparse.Namespace) -> Limits:
    from eventstore.http import Limits

    given = {
        "body_bytes": options.max_body,
        "body_seconds": options.body_timeout,
        "unread_bytes": options.max_unread,
        "requests_per_second": options.requests_per_second,
        "burst": options.burst,
        "live_readers": options.max_readers,
        "live_readers_per_client": options.max_readers_per_client,
    }
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _aggregate(target: str) -> type[Aggregate]:
    found = named(target, _FORM)
    if not (isinstance(found, type) and issubclass(found, Aggregate)):
        raise TargetError(target, "it is no Aggregate")
    return found
