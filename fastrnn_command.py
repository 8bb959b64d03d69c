"""The command ``fastrnn``: it imports the package, and runs the command line of `fastrnn.cli`.

It is no part of the package, because an import that fails or is interrupted is told in one line,
as any other error of the command line.
"""

from __future__ import annotations

import sys
import traceback


def main() -> int:
    """Run the command line; return its exit status, see `fastrnn.cli.main`."""
    try:
        from fastrnn.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("fastrnn: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        print(f"fastrnn: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
