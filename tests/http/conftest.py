"""Node and its packages, and servers, for the tests here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The modules beside the tests here are theirs alone.
sys.path.insert(0, str(Path(__file__).parent))

from nodejs import PACKAGES, Node


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the packages of `node/package.json`, which the first run installs."""
    node = Node.find()
    node.install(PACKAGES)
    return node
