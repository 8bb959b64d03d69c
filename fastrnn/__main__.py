"""The command line as a module: ``python -m fastrnn``."""

import sys

from fastrnn_command import main

if __name__ == "__main__":
    sys.exit(main())
