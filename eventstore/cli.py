"""The command `eventstore`: a thin skin over public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from eventstore import schema
from eventstore.errors import EventStoreError
from eventstore.log.opening import open_engine
from eventstore.log.tables import REVISION


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, or 1 after an error that it has told."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except EventStoreError as error:
        print(f"eventstore: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eventstore", description="Event sourcing for Python.")
    parser.add_argument("--version", action="version", version=version("eventstore"))
    commands = parser.add_subparsers(required=True, metavar="command")
    migrate = commands.add_parser("migrate", help="create the tables, or bring them up to date")
    migrate.add_argument("url", help="sqlite:///file.db or postgresql://user@host/database")
    migrate.add_argument("--check", action="store_true", help="only say whether there is need")
    migrate.set_defaults(run=_migrate)
    return parser


def _migrate(options: argparse.Namespace) -> int:
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
