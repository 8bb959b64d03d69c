"""Write the figures of the README and of the docs: ``python -m bench.readme FILE.json``.

The README has a small table between two comments; ``docs/figures/performance.md`` has every table,
and ``docs/pictures/peers.png`` the chart. All are made from the output of `bench.peers --json`.
That of ``bench.peers --isa avx2`` is written to ``docs/figures/performance_avx2.md`` alone.
Results with warnings, from a ``--quick`` run or a busy machine, are written only with ``--anyway``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import report

BEGIN = "<!-- performance: written by python -m bench.readme -->"
END = "<!-- performance: end -->"
PAGE = Path("figures") / "performance.md"
"""The tables, in the directory of the docs. Those of an instruction set have its name, too."""
CHART = Path("pictures") / "peers.png"
"""The chart, in the directory of the docs."""


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
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--readme", type=Path, default=root / "README.md", help="the README")
    parser.add_argument("--docs", type=Path, default=root / "docs", help="directory of the docs")
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
        if result.get("isa"):
            page = options.docs / PAGE.with_stem(f"{PAGE.stem}_{result['isa']}")
            page.parent.mkdir(parents=True, exist_ok=True)
            report.write_whole(page, f"{BEGIN}\n\n{report.markdown(result)}\n".encode())
            return 0
        page, chart = options.docs / PAGE, options.docs / CHART
        readme = options.readme.read_text(encoding="utf-8")
        changed = replaced(readme, report.short_markdown(result))
        for path in (page, chart):
            path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    picture = ""
    if report.write_chart(chart, result):
        picture = f"![Times relative to fastrnn](/{CHART.as_posix()})\n\n"
    report.write_whole(page, f"{BEGIN}\n\n{picture}{report.markdown(result)}\n".encode())
    report.write_whole(options.readme, changed.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
