"""`python -m preprocessing`, in a checkout: `fedfms prepare`."""

import sys

from fedfms.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
