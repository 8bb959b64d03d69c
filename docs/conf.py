"""Settings of the documentation: ``sphinx-build -W -n -b html docs build/docs/html``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fastrnn

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "extensions"))
from copies import copy_markdown, copy_notebooks  # noqa: E402

repository = os.environ.get("GITHUB_REPOSITORY", "")
"""OWNER/NAME where the pages are published from; without it, they do not link to the sources."""
copy_notebooks(DOCS.parent, DOCS)
copy_markdown(DOCS.parent, DOCS, repository)

project = "fastrnn"
author = "The fastrnn developers"
copyright = author
version = release = fastrnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "command_line",
    "references",
]
exclude_patterns = ["extensions", "_templates", "figures"]
templates_path = ["_templates"]
default_role = "py:obj"  # see extensions/references.py
nitpicky = True
root_doc = "index"
myst_heading_anchors = 2
myst_enable_extensions = ["dollarmath", "amsmath"]
nb_execution_mode = "off"  # they are run by examples/run.py, and have their outputs

# -- API: one page a module, of the docstrings of the names in its __all__

autosummary_generate = True
autosummary_generate_overwrite = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more
autodoc_default_options = {"members": True}
numpydoc_show_class_members = False  # autodoc shows them

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
html_sidebars = {
    name: []  # these pages have none below them
    for name in (
        "index",
        *(path.stem for path in DOCS.glob("*.[rm][sd]*") if path.stem != "notebooks"),
    )
}
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
if repository:
    html_theme_options["github_url"] = f"https://github.com/{repository}"
