"""Draw docs/pictures/report.png: the page of a real run, as a browser shows it.

    python docs/report_picture.py                # trains on drawn scenes first, half a minute
    python docs/report_picture.py --run RUN      # of a run that is there

It needs fastrnn's extra ``eval`` for CIDEr, Pillow, and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from fastrnn.report import write_report

OUT = Path(__file__).parent / "pictures" / "report.png"
WIDTH, HEIGHT = 1180, 2190
"""In pixels of the page: down to the best captions."""
SHOWN_WIDTH = 885
COLORS = 160
MOST_BYTES = 200_000


def train(run: Path) -> None:
    """Train on drawn scenes as ``fastrnn train`` does by default."""
    command = [sys.executable, "-m", "fastrnn", "train", "--out", run.name]
    subprocess.run(command, cwd=run.parent, check=True)


def photograph(page: Path, picture: Path) -> None:
    """Write what a browser shows of a page to a PNG file."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("chromium is not installed")
    # In a window that is as wide as on paper, and light, whatever the desktop.
    options = [
        "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
        f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", page.resolve().as_uri(),
    ]  # fmt: skip
    subprocess.run([program, *options], check=True, capture_output=True)


def shrink(picture: Path, out: Path) -> int:
    """Write a picture smaller and with few colors; return its size in bytes."""
    with Image.open(picture) as taken:
        size = SHOWN_WIDTH, round(taken.height * SHOWN_WIDTH / taken.width)
        small = taken.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    few = small.quantize(COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(out, optimize=True)
    return out.stat().st_size


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", type=Path, help="a run of fastrnn train on drawn scenes")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = arguments.run
        if run is None:
            run = Path(place, "scenes")
            train(run)
        page = write_report(run, Path(place, "report.html"))
        taken = Path(place, "report.png")
        photograph(page, taken)
        arguments.out.parent.mkdir(exist_ok=True)
        size = shrink(taken, arguments.out)
    if size > MOST_BYTES:
        sys.exit(f"{arguments.out}: {size:,} bytes; expected at most {MOST_BYTES:,}")
    print(f"{arguments.out}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
