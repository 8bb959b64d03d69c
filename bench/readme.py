"""Write the performance section of the README: ``python -m bench.readme FILE.json``.

The section stands between two comments, and is made of what `bench.peers` wrote. Figures that are
not to be quoted, from a ``--quick`` run or a busy machine, are refused but for ``--anyway``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import report

BEGIN = "<!-- performance: written by python -m bench.readme -->"
END = "<!-- performance: end -->"


def replaced(readme: str, section: str) -> str:
    """Return the README with another section between the comments.

    Raises
    ------
    ValueError
        If the comments are not there, once each and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the README must have {BEGIN!r} and then {END!r}, once each")
    return f"{before}{BEGIN}\n\n{section.strip()}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("figures", type=Path, help="what bench.peers --json wrote")
    default = Path(__file__).resolve().parent.parent / "README.md"
    parser.add_argument("--readme", type=Path, default=default, help="the file to change")
    parser.add_argument(
        "--anyway", action="store_true", help="write figures with warnings, and the warnings"
    )
    options = parser.parse_args(arguments)
    try:
        result = json.loads(options.figures.read_text(encoding="utf-8"))
        if result.get("format") != 1:
            raise ValueError(f"{options.figures}: its format is not 1")
        doubts = report.warnings(result)
        if doubts and not options.anyway:
            raise ValueError(f"{options.figures}: {' '.join(doubts)} (--anyway writes it)")
        changed = replaced(options.readme.read_text(encoding="utf-8"), report.markdown(result))
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    report.write_whole(options.readme, changed.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
