"""Sphinx configuration: `make docs` builds the pages and the reference of the public interface."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "stddaq"
author = "the stddaq developers"
release = version = version_of("stddaq").partition("+")[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
nitpicky = False
# Names in docstrings are written between single backquotes.
default_role = "code"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

# Blocks without a language are for a shell.
highlight_language = "bash"

html_theme = "furo"
html_title = f"stddaq {version}"
html_show_copyright = False
html_copy_source = False
# The page of stddaq-rest has it, too.
html_favicon = "../src/stddaq/web/dashboard/icon.svg"
html_show_sphinx = False
