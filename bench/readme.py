"""Write the performance section of the README: ``python -m bench.readme FILE.json``.

The section is between two comments and is made from the output of `bench.peers --json`. Results
with warnings, from a ``--quick`` run or a busy machine, are written only with ``--anyway``.
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
    """Return the README with the section between the comments replaced.

    Raises
    ------
    ValueError
        If the README does not have each of the two comments once, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"README: expected {BEGIN!r} and then {END!r}, once each")
    return f"{before}{BEGIN}\n\n{section.strip()}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("figures", type=Path, help="output file of bench.peers --json")
    default = Path(__file__).resolve().parent.parent / "README.md"
    parser.add_argument("--readme", type=Path, default=default, help="the file to change")
    parser.add_argument(
        "--anyway", action="store_true", help="write results that have warnings, with the warnings"
    )
    options = parser.parse_args(arguments)
    try:
        result = json.loads(options.figures.read_text(encoding="utf-8"))
        if result.get("format") != 1:
            raise ValueError(f"{options.figures}: format is {result.get('format')!r}; expected 1")
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
