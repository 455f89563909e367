"""`python -m fedfms`: the `fedfms` command."""

import sys

from fedfms.cli import main

if __name__ == "__main__":
    sys.exit(main())
