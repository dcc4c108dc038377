"""The modules beside the tests here are also those of the clients that are recorded."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
