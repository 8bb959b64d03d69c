"""Pages of one file each, made from templates."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Mapping


def read_part(name: str) -> str:
    """Return a file of this package that pages are made of."""
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


def fill_template(name: str, title: str, about: str, script: str, values: Mapping[str, str]) -> str:
    """Return a page that loads nothing else.

    Parameters
    ----------
    name : str
        The template; ``head.html`` stands before it.
    title, about : str
        The title, and a line below it, as text.
    script : str
        The script of the page, which the template embeds; empty if it has none.
    values : mapping of str to str
        The rest of what the template names, as HTML.

    Returns
    -------
    str
        With question marks for lone surrogates, which file names and settings can contain and
        UTF-8 cannot encode.
    """
    style = read_part("page.css")
    # The browser loads and runs nothing but the parts that are embedded here.
    policy = f"default-src 'none'; img-src data:; style-src {_csp_source(style)}; "
    if script:
        policy += f"script-src {_csp_source(script)}; "
    policy += "base-uri 'none'; form-action 'none'"
    known = {
        "policy": html.escape(policy, quote=False), "title": html.escape(title),
        "about": html.escape(about), "style": style, "script": script, **values,
    }  # fmt: skip
    template = read_part("head.html") + read_part(name)
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: known[match[1]], template)
    return page.encode("utf-8", "replace").decode("utf-8")


def _csp_source(text: str) -> str:
    """Return the source expression of an inline style or script for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"
