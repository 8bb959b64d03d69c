"""Check the links within built pages: ``python docs/links.py build/docs/html``.

Each link to a file must lead to one, and each ``#fragment`` to an id in it. Links to other sites
are not followed. Links in the Markdown files of the repository are checked in the same way.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent


class Page(HTMLParser):
    """The links and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links and the id of an element."""
        for name, value in attrs:
            if name in ("href", "src") and value is not None and tag != "base":
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.ids.add(value)


def broken_links(site: Path) -> list[str]:
    """Return a line for each link within a site that leads nowhere."""
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.relative_to(site).parts[0] != "_static"  # parts of the theme
    }
    if not pages:
        return [f"{site}: has no pages"]
    found = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: {link} is no file")
            elif fragment and target in pages and fragment not in pages[target].ids:
                found.append(f"{path.relative_to(site)}: {link} has no such place")
    return found


def broken_links_of_markdown(root: Path) -> list[str]:
    """Return a line for each relative link in the Markdown files that leads nowhere."""
    found = []
    for path in sorted([*root.glob("*.md"), *root.glob(".github/**/*.md")]):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if not parts.scheme and parts.path and not (path.parent / unquote(parts.path)).exists():
                found.append(f"{path.name}: {link} is no file")
    return found


def main() -> int:
    """Check the site that is named on the command line; return the exit status."""
    found = broken_links(Path(sys.argv[1]).resolve()) + broken_links_of_markdown(ROOT)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
