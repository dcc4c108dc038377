"""Verification: whether a log is what it ought to be, and the chain that shows what was altered."""

from eventstore.verification.chain import Anchor, seal
from eventstore.verification.findings import Finding, Walked
from eventstore.verification.verifying import verify

__all__ = ["Anchor", "Finding", "Walked", "seal", "verify"]
