"""`python -m lightning_root`."""

from lightning_root.cli import main

if __name__ == "__main__":
    main()
