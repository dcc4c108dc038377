"""Serves a database's streams until it is stopped: `served.py URL --long-poll-timeout SECONDS`."""

import sys

import uvicorn

from eventstore import EventStore
from eventstore.http import DurableStreams

with EventStore(sys.argv[1]) as store:
    app = DurableStreams(store, long_poll_timeout=float(sys.argv[3]))
    uvicorn.run(app, port=0, access_log=False, timeout_graceful_shutdown=1)
