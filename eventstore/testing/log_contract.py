"""The contract that any backend must meet: `class TestMyLog(LogContract)` with a fixture `log`.

The fixture gives a log that is fresh and empty for each test, and takes concurrent calls from
twenty threads. Its tables, and its closing after the test, are the fixture's affair:

    class TestMyLog(LogContract):
        @pytest.fixture
        def log(self):
            log = MyLog(...)
            yield log
            log.close()
"""

from eventstore.testing.appending import AppendingContract
from eventstore.testing.forking import ForkingContract
from eventstore.testing.keys import IdempotencyContract
from eventstore.testing.racing import RacingContract
from eventstore.testing.reading import ReadingContract
from eventstore.testing.snapshots import SnapshotContract
from eventstore.testing.working import WorkContract


class LogContract(
    AppendingContract,
    ForkingContract,
    IdempotencyContract,
    ReadingContract,
    SnapshotContract,
    WorkContract,
    RacingContract,
):
    """What `eventstore.log.base.Log` promises, as tests."""
