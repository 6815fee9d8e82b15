"""Sphinx: MyST pages, furo, and the reference from the docstrings. Built with -W: a warning is a failure."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from cli_help import options, shown
from reference import not_shown

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())

project = PYPROJECT["project"]["name"]
author = "the Flask-TaskWorker authors"
copyright = author
version = release = PYPROJECT["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "inherited-members": "BaseException, Exception, OSError, LookupError, str, tuple, object, Mapping, dict, int",
    "show-inheritance": True,
}
autodoc_member_order = "bysource"
add_module_names = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autoclass_content = "class"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# What the button copies: the commands of a shell or of Python, without prompts and output.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True


class CliHelp(SphinxDirective):
    """``{cli-help} COMMAND``: the help of a command; ``{cli-help} GROUP *``: of a group and each of its commands."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        texts = shown(self.arguments[0])
        return [nodes.literal_block(text, text, language="text") for text in texts.values()]


class CliOptions(SphinxDirective):
    """``{cli-options}``: a table of the options that several commands have."""

    def run(self) -> list[nodes.Node]:
        rows = [f"| `{spelling}` | {commands} |" for spelling, commands in options()]
        return self.parse_text_to_nodes("\n".join(["| Option | Commands |", "|---|---|", *rows]))


class GlossaryTerms(SphinxTransform):
    """Each term of the glossary has an anchor and an entry in the index, which the search shows first."""

    default_priority = 500

    def apply(self) -> None:
        if self.env.docname != "glossary":
            return
        for term in self.document.findall(nodes.term):
            words = term.astext()
            anchor = f"term-{nodes.make_id(words)}"
            term["ids"].append(anchor)
            term.insert(0, addnodes.index(entries=[("single", words, anchor, "main", None)]))


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what is public and not in the reference, and of what is in it and is not public."""
    objects = env.domaindata["py"]["objects"]
    for line in not_shown({name for name, found in objects.items() if not found.aliased}):
        logging.getLogger(__name__).warning("the reference and the code differ: %s", line)


def show_plain_types(app: Sphinx, document: nodes.document) -> None:
    """Show an attribute that a descriptor reads, ``Shown[int]``, with the type that users get."""
    for note in document.findall(addnodes.desc_annotation):
        for child in list(note):
            if child.astext() == "Shown":
                start = note.index(child)
                del note[start : start + 2]
                del note[-1]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_transform(GlossaryTerms)
    app.connect("doctree-read", show_plain_types)
    app.connect("env-check-consistency", check_reference)
    app.add_directive("cli-help", CliHelp)
    app.add_directive("cli-options", CliOptions)
