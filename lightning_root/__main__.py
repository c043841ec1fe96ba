"""`python -m lightning_root`."""

import sys

from lightning_root.cli import main

if __name__ == "__main__":
    sys.exit(main())
