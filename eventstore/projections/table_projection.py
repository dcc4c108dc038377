"""TableProjection: a read model in SQL tables, kept exactly once in step with the log."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import Any, ClassVar, Self

from sqlalchemy import Connection, MetaData, Sequence, Table
from sqlalchemy.schema import sort_tables

from eventstore.aggregate import Aggregate
from eventstore.errors import DefinitionError, EventStoreError
from eventstore.handlers import Handlers
from eventstore.projections.buffer import WriteBuffer
from eventstore.projections.changes import ChangeStream, Recorder
from eventstore.projections.declared import checked_categories, checked_version, claim, owner_of

#: The longest name of a table: PostgreSQL cuts off what is longer.
_LONGEST = 63


class TableProjection:
    """Tables that the events of the log add up to.

        class Balances(TableProjection):
            version = 1
            accounts = Table(
                "balances",
                TableProjection.metadata,
                Column("account", String, primary_key=True),
                Column("balance", Integer, nullable=False),
            )

            @on(AccountOpened)
            def _opened(self, event: AccountOpened, record: RecordedEvent) -> None:
                self.insert(self.accounts, account=record.aggregate_id, balance=0)

            @on(MoneyDeposited)
            def _deposited(self, event: MoneyDeposited, record: RecordedEvent) -> None:
                self.add(self.accounts, record.aggregate_id, balance=event.amount)

    The tables belong to the projection: it makes them, and nothing else writes to them. What the
    handlers write, and the position in the log up to which they ran, are committed together:
    each event has its effect exactly once, whatever crashes. Handlers take events in the order of
    the log (with `shards`, of each stream), many in one transaction.

    Handlers write by `insert`, `put`, `add`, `update` and `delete`, which are buffered and merged
    by row, and read by `get`; or through `db`, a SQLAlchemy connection, where each statement costs
    a hundred times as much. They must not commit, and must not keep anything on `self`.

    Class options: `name` is the name of its checkpoint (the class's own by default); `categories`
    leaves out the events of all others; `shards` splits the log by stream, so that as many
    workers share it. Raise `version` when handlers or tables change, and rebuild.

    `changes="projections/balances"` tells each change of a row in that stream of the log, in the
    transaction that makes it, as a JSON message of the State Protocol: `type` is the table's name,
    `key` the primary key as text (the JSON list of its parts if it has several), `value` the row
    as JSON; of `headers`, `operation` is insert, update or delete, `txid` the position, and
    `timestamp` the time, of the last event that went into the transaction. A row that a
    transaction changes often is told once. Changes are told one transaction at a time, so workers
    of several shards, and appends in step, queue for the stream. Handlers may then change rows by
    `insert`, `put`, `add`, `update` and `delete` only: InvalidArgumentError.

    Raises DefinitionError, when the class is made, for what cannot work.
    """

    #: For the declaration of its tables.
    metadata: ClassVar[MetaData] = MetaData()
    #: Raised with each change of handlers or tables; the read model is then rebuilt.
    version: ClassVar[int] = 1

    __follower__: ClassVar[str]
    __handlers__: ClassVar[Handlers]
    __tables__: ClassVar[tuple[Table, ...]] = ()
    __categories__: ClassVar[tuple[str, ...] | None] = None
    __shards__: ClassVar[int] = 1
    __changes__: ClassVar[ChangeStream | None] = None

    _connection: Connection | None = None
    _buffer: WriteBuffer

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        categories: Iterable[type[Aggregate] | str] | None = None,
        shards: int | None = None,
        changes: str | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.__follower__ = claim("follower", cls.__name__ if name is None else name, cls)
        checked_version(cls, cls.version)
        if categories is not None:
            cls.__categories__ = checked_categories(cls, categories)
        if shards is not None:
            if type(shards) is not int or shards < 1:
                raise DefinitionError(
                    owner_of(cls), f"shards={shards!r} must be a whole number from 1"
                )
            cls.__shards__ = shards
        cls.__handlers__ = Handlers(cls, may_take_record=True, may_have_effects=True)
        own = [value for value in vars(cls).values() if isinstance(value, Table)]
        for table in own:
            _check_table(cls, table)
        cls.__tables__ = (*cls.__tables__, *_released(own))
        # Not inherited: two followers with one stream would contradict each other.
        cls.__changes__ = None if changes is None else ChangeStream(cls, changes, cls.__tables__)

    # --- what handlers use ---------------------------------------------------------------------

    @property
    def db(self) -> Connection:
        """The connection of the transaction in which handlers run. What is buffered goes first."""
        if self._connection is None:
            raise EventStoreError(
                f"{type(self).__name__} is used outside a handler: it has a connection only while "
                "events are handled; read its tables through store.connect()"
            )
        return self._buffer.lend()

    def insert(self, table: Table, /, **values: Any) -> None:
        """Insert a row; IntegrityError, at the latest at the commit, where its key is taken."""
        self._buffer.insert(table, values)

    def put(self, table: Table, /, **values: Any) -> None:
        """Insert a row, or set these columns of the row that has this primary key."""
        self._buffer.put(table, values)

    def add(self, table: Table, key: Any, /, **amounts: float) -> None:
        """Add to columns of the row with this primary key (a tuple if it has several columns).

        RowNotFoundError, at the latest at the commit, where there is none.
        """
        self._buffer.add(table, key, amounts)

    def update(self, table: Table, key: Any, /, **values: Any) -> None:
        """Set columns of the row with this primary key. RowNotFoundError as for `add`."""
        self._buffer.update(table, key, values)

    def delete(self, table: Table, key: Any, /) -> None:
        """Delete the row with this primary key, if it is there."""
        self._buffer.delete(table, key)

    def get(self, table: Table, key: Any, /) -> dict[str, Any] | None:
        """The row with this primary key as the handlers so far have left it; None if none is."""
        return self._buffer.get(table, key)

    # --- what runs the handlers ----------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, connection: Connection, recorder: Recorder | None = None) -> Generator[Self]:
        """Let handlers write on a connection; at the end of the block what is buffered is flushed.

        After an error nothing is: the transaction, or its savepoint, is to be rolled back.
        """
        self._connection = connection
        if recorder is None:
            self._buffer = WriteBuffer(connection, self.__tables__)
        else:
            self._buffer = recorder.buffer(connection)
        try:
            yield self
            if self._buffer.pending:
                self._buffer.flush()
        finally:
            self._connection = None
            if recorder is not None:
                recorder.rest()


def _check_table(cls: type[TableProjection], table: Table) -> None:
    owner = owner_of(cls)
    if table.metadata is not TableProjection.metadata:
        raise DefinitionError(
            owner,
            "its tables are declared with TableProjection.metadata",
            member=table.name,
        )
    if table.schema is not None:
        raise DefinitionError(
            owner,
            "a projection's table has no schema of its own: it is made in the first one of the "
            "connection's search_path",
            member=table.name,
        )
    if any(isinstance(column.default, Sequence) for column in table.columns):
        raise DefinitionError(
            owner,
            "a sequence of its own would be shared with tables that are rebuilt: use Identity()",
            member=table.name,
        )
    if len(table.name) > _LONGEST:
        raise DefinitionError(
            owner, f"the name has more than {_LONGEST} characters", member=table.name
        )
    claim("table", table.name, cls)


def _released(tables: list[Table]) -> list[Table]:
    """The tables in the order of their foreign keys, no longer in the common metadata.

    There a name can be taken only once, and a class that is made again (a notebook's cell) would
    find its own taken. Foreign keys are resolved first, since they look there.
    """
    for table in tables:
        for key in table.foreign_keys:
            _ = key.column
    ordered = sort_tables(tables)
    for table in tables:
        TableProjection.metadata.remove(table)
    return list(ordered)
