"""For tests, yours and this library's. Needs pytest, and is not imported by `eventstore` itself."""

from eventstore.testing.log_contract import LogContract

__all__ = ["LogContract"]
