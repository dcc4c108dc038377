"""The reference server of Durable Streams 0.3.7 on Node, as a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "durable-streams"


def command(store: Path | None) -> list[str] | None:
    """How to start it: with its file store in a folder, or in memory. None where it is not there.

    Its file store flushes each append to the disk before it answers.
    """
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules/@durable-streams/server").is_dir():
        return None
    return [node, str(FOLDER / "server.mjs"), *([] if store is None else [str(store)])]
