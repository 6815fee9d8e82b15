"""Sphinx: MyST pages, furo, and the reference from the docstrings. Built with -W: a warning is a failure."""

from __future__ import annotations

import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())

project = PYPROJECT["project"]["name"]
author = "the Flask-TaskWorker authors"
copyright = author
version = release = PYPROJECT["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autoclass_content = "class"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"{project} {release}"
