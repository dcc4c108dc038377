"""`make page`: an order in two tabs of a real browser, live and in its past."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nodejs import Node
from serving import serving

PAGE = Path(__file__).parents[2] / "examples" / "order_page.py"


def test_the_page_in_a_browser(
    node: Node, chromium: str, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_URL", sqlite_url)
    with serving([sys.executable, str(PAGE), "--port", "0"]) as server:
        profile = tmp_path / "profile"
        env = {"SERVER": server, "CHROMIUM": chromium, "PROFILE": str(profile)}
        told = node.vitest("page", env=env, folder=tmp_path)
    failed = {title: str(outcome) for title, outcome in told.items() if outcome.status != "passed"}
    assert not failed
    assert len(told) == 4
