"""Settings of the documentation: ``sphinx-build -W -n -b html docs build/docs/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fastrnn

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "extensions"))

project = "fastrnn"
author = "The fastrnn developers"
copyright = author
version = release = fastrnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "command_line",
    "references",
]
exclude_patterns = ["extensions", "_templates", "figures"]
templates_path = ["_templates"]
default_role = "py:obj" # see extensions/references.py
nitpicky = True
root_doc = "index"
myst_heading_anchors = 2

# -- API: one page a module, of the docstrings of the names in its __all__

autosummary_generate = True
autosummary_generate_overwrite = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
autodoc_default_options = {"members": True}
numpydoc_show_class_members = False  # autodoc shows them
numpydoc_validation_checks = {
    "GL01", "GL03", "GL05", "GL06", "GL07", "GL08", "GL10",
    "SS01", "SS02", "SS03", "SS04", "SS05", "SS06",
    "PR01", "PR02", "PR03", "PR04", "PR07", "PR10",
    "RT01", "RT03", "RT04", "YD01", "SA02", "SA03",
}  # fmt: skip

# -- examples

doctest_global_setup = """
import numpy as np
np.set_printoptions(legacy=False)
"""
doctest_test_doctest_blocks = "default"

# -- pages

html_theme = "pydata_sphinx_theme"
html_title = "fastrnn"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
repository = os.environ.get("GITHUB_REPOSITORY", "")
"""OWNER/NAME where the pages are published from; without it, they do not link to the sources."""
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
if repository:
    html_theme_options["github_url"] = f"https://github.com/{repository}"
