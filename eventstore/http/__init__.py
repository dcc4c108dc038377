"""The streams of a store over HTTP, by the Durable Streams protocol.

The specification is PROTOCOL.md of the public repository durable-streams/durable-streams; comments
name its sections.
"""

from eventstore.http.access import Authorize, Operation, allow_all
from eventstore.http.app import DurableStreams
from eventstore.http.limits import Limits
from eventstore.http.problems import Problem
from eventstore.http.requests import Request

__all__ = [
    "Authorize",
    "DurableStreams",
    "Limits",
    "Operation",
    "Problem",
    "Request",
    "allow_all",
]
