"""`python -m merrow` is `merrow`."""

import sys

from merrow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
