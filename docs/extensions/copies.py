"""Copies of what stands elsewhere in the repository, so that it becomes pages of the site.

Sphinx reads only what is below ``docs``. The copies are made at each build, and are not kept.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

MARKDOWN = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "README.md": "index.rst",
}
"""Pages of the site that these files are, by which links between them are rewritten."""


def copy_notebooks(root: Path, docs: Path) -> None:
    """Copy the notebooks, with their outputs."""
    shutil.rmtree(docs / "notebooks", ignore_errors=True)
    (docs / "notebooks").mkdir()
    for path in sorted((root / "examples").glob("*.ipynb")):
        shutil.copy2(path, docs / "notebooks")


def copy_markdown(root: Path, docs: Path, repository: str) -> None:
    """Copy the Markdown files.

    Links to other files of the repository lead to it if its address is known, else they are text.
    """

    def linked(link: re.Match[str]) -> str:
        text, target, place = link[1], link[2], link[3] or ""
        if target in MARKDOWN:
            return f"[{text}]({MARKDOWN[target]}{place})"
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')}{place})"
        if repository:
            return f"[{text}](https://github.com/{repository}/blob/main/{target}{place})"
        return text

    for name, page in MARKDOWN.items():
        if page.endswith(".md"):
            text = (root / name).read_text(encoding="utf-8")
            text = re.sub(r"\[([^\]]+)\]\(([^):#]+)(#[^)]*)?\)", linked, text)
            target = docs / page
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                target.write_text(text, encoding="utf-8")
