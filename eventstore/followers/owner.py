"""Owners of leases: names by which a process can tell that another one has died.

A lease ends by itself. But where its owner ran on this machine and is gone, nobody has to wait.
"""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache
from pathlib import Path


def new_owner() -> str:
    """A name for a worker in this process, like no other: `host:pid:start@place:token`."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_started(pid)}@{_place()}:{secrets.token_hex(4)}"


def has_died(owner: str) -> bool:
    """Whether the process of an owner is certainly gone; False where that cannot be known."""
    process, _, rest = owner.partition("@")
    _, _, number = process.rpartition(":")[0].rpartition(":")
    started = process.rpartition(":")[2]
    if not number.isdigit() or not started or rest.partition(":")[0] != _place():
        return False
    return _started(int(number)) != started


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; "" where there is none, or no /proc."""
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more


@cache
def _place() -> str:
    """This boot of this machine, and this namespace of process ids (two containers have two)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:13]}-{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return "nowhere"
