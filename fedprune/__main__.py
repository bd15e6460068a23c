"""`python -m fedprune` is the `fedprune` command."""

import sys

from fedprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
