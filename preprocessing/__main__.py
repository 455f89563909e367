"""`python -m preprocessing`."""

from __future__ import annotations

import sys

from preprocessing.cli import main

if __name__ == "__main__":
    sys.exit(main())
