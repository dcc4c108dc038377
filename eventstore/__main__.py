"""`python -m eventstore` is the command `eventstore`."""

import sys

from eventstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
