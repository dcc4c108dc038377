"""Owners of leases: names by which a process can tell that another one has died.

A lease ends by itself. But where its owner ran on this machine and is gone, nobody has to wait.
Should that ever be a mistake, nothing is broken: the owner has lost its lease, as any that stalls.
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
    start, _ = _process(pid)
    return f"{socket.gethostname()}:{pid}:{start}@{_place()}:{secrets.token_hex(4)}"


def has_died(owner: str) -> bool:
    """Whether the process of an owner is certainly gone; False where that cannot be known."""
    process, _, rest = owner.partition("@")
    place = rest.partition(":")[0]
    host, _, numbers = process.rpartition(":")[0].rpartition(":")
    start = process.rpartition(":")[2]
    if not (numbers.isdigit() and start and place) or place != _place():
        return False
    if host != socket.gethostname():  # a copy of a virtual machine has booted with this one
        return False
    found, works = _process(int(numbers))
    if found:
        return found != start or not works
    return _is_gone(int(numbers))


def _process(pid: int) -> tuple[str, bool]:
    """When a process began, in ticks since the machine did, and whether it can still do anything.

    "" where there is none, where it is hidden, and where there is no /proc.
    """
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19], fields[0] not in "ZX"
    except (OSError, IndexError):
        return "", False


def _is_gone(pid: int) -> bool:
    """Whether there is no such process; one of another user may just be hidden from /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _place() -> str:
    """This boot of this machine, and this namespace of process ids (two containers have two).

    "" where that cannot be known.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:13]}-{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return ""
