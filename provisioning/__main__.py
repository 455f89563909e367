"""`python -m provisioning`, in a checkout: `fedfms kits`."""

import sys

from fedfms.cli import main

if __name__ == "__main__":
    sys.exit(main(["kits", *sys.argv[1:]]))
