"""The command `eventstore`: a thin skin over public functions."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version

from eventstore.cli import commands, serving
from eventstore.cli.numbers import above_zero, whole
from eventstore.cli.output import complain
from eventstore.errors import EventStoreError

#: As a shell has it for a command that Ctrl-C has ended.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, or 1 after an error that it has told."""
    options = command_line(arguments)
    try:
        status: int = options.run(options)
    except EventStoreError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def command_line(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line says; `.run` does it. Ends the program if it says nothing of sense."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eventstore", description="Event sourcing for Python.")
    parser.add_argument("--version", action="version", version=version("eventstore"))
    subparsers = parser.add_subparsers(required=True, metavar="command")

    migrate = subparsers.add_parser("migrate", help="create the tables, or bring them up to date")
    migrate.add_argument("url", help="sqlite:///file.db or postgresql://user@host/database")
    migrate.add_argument("--check", action="store_true", help="only say whether there is need")
    migrate.set_defaults(run=commands.migrate)

    database = argparse.ArgumentParser(add_help=False)
    database.add_argument(
        "--url",
        default=os.environ.get("EVENTSTORE_URL"),
        help="the database; by default what EVENTSTORE_URL says, which other users cannot see",
    )

    run = subparsers.add_parser(
        "run", parents=[database], help="keep projections and event handlers up to date"
    )
    _add_targets(run)
    run.add_argument("--workers", type=whole, default=1, help="how many processes (1)")
    run.add_argument(
        "--lease",
        type=above_zero("seconds"),
        default=10.0,
        help="seconds within which a worker that has died or stalls is replaced (10)",
    )
    run.set_defaults(run=commands.run)

    catch_up = subparsers.add_parser(
        "catch-up", parents=[database], help="bring projections up to date once"
    )
    _add_targets(catch_up)
    catch_up.set_defaults(run=commands.catch_up)

    rebuild = subparsers.add_parser(
        "rebuild", parents=[database], help="build a projection's tables anew, and swap them"
    )
    _add_target(rebuild)
    rebuild.add_argument(
        "--verify", action="store_true", help="only swap them if no row differs from the living"
    )
    rebuild.set_defaults(run=commands.rebuild)

    accept = subparsers.add_parser(
        "accept", parents=[database], help="say that a change of code makes no difference to a row"
    )
    _add_target(accept)
    accept.set_defaults(run=commands.accept)

    status = subparsers.add_parser(
        "status", parents=[database], help="how projections and event handlers are doing"
    )
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=commands.status)

    parked = subparsers.add_parser(
        "parked", parents=[database], help="events that a projection or handler has set aside"
    )
    parked.add_argument("name", help="the follower's name, as `eventstore status` shows it")
    parked.add_argument("--stream", help="only this stream's")
    what = parked.add_mutually_exclusive_group()
    what.add_argument("--retry", action="store_true", help="have them tried again")
    what.add_argument("--discard", type=int, metavar="POSITION", help="give one up for ever")
    parked.set_defaults(run=commands.parked)

    verify = subparsers.add_parser(
        "verify",
        parents=[database],
        help="look whether a log and what follows it are as they should be",
        description="Exit status: 0 if all is well, 1 after findings, 2 if it could not be looked.",
    )
    verify.add_argument(
        "words",
        metavar="URL | TARGET",
        nargs="*",
        help="the database, and projections (module:Name) to be compared with a rebuild",
    )
    verify.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="the application's events and aggregates, so that they are looked at as well",
    )
    verify.add_argument(
        "--anchor",
        dest="anchors",
        metavar="ANCHOR",
        action="append",
        default=[],
        help="what `eventstore seal` has printed once: the log has to have that very past still",
    )
    verify.add_argument("--json", action="store_true", help="for programs: an object a line")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="delete snapshots and folds that are wrong, compute heads anew; never an event",
    )
    verify.set_defaults(run=commands.verify)

    seal = subparsers.add_parser(
        "seal",
        parents=[database],
        help="extend the chain of hashes to the end of the log, and print its anchor",
        description="Keep the anchor where nobody can reach it who may write to the database.",
    )
    seal.add_argument(
        "--every", type=above_zero("seconds"), metavar="SECONDS", help="again and again"
    )
    seal.set_defaults(run=commands.seal)

    serving.add_to(subparsers)
    return parser


_TARGET = "module:Name of a projection or an event handler, or of a function that makes one"


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=_TARGET)


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", metavar="TARGET", nargs="+", help=_TARGET)
