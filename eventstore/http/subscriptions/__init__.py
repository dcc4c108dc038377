"""Subscriptions: durable cursors that wake workers when streams have something new.

PROTOCOL.md, sections 6 and 7. A wake is a signed request to a webhook, or an event in a stream that
workers read (pull-wake); who is woken has a lease, says how far it is, and is fenced off by the
next generation once it was too slow.
"""

from eventstore.http.subscriptions.api import Subscriptions, concerns

__all__ = ["Subscriptions", "concerns"]
