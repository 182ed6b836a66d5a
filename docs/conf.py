"""The documentation site: `make docs`. Pages are the Markdown files beside this; docs/api.md is filled from docstrings.

Nothing is fetched when it is built or read: no inventories of other projects, no fonts or scripts of other hosts.
"""

import importlib.metadata
import os
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "abmll"
author = "The abmll authors"
copyright = "The abmll authors, Apache-2.0"
release = version = importlib.metadata.version("abmll")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # a notebook is shown as it was run last
default_role = "code"

html_theme = "furo"
html_title = f"abmll {version}"
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def name_files_of_the_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Links out of docs/ become paths in the repository: the site has no copy of it, and knows no address of it."""
    for link in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        page = link.get("refdoc") or app.env.docname
        path = path_in_repository(str(link.get("reftarget", "")), (DOCS / page).parent)
        if path:
            name, text = nodes.literal(path, path), link.astext()
            link.parent[link.parent.index(link) : link.parent.index(link) + 1] = (
                [name] if path.endswith(text) else [*link.children, nodes.Text(" ("), name, nodes.Text(")")]
            )


def path_in_repository(link: str, folder: Path) -> str | None:
    """What a page's link names, if it is there and lies outside docs/. MyST takes ".md" off the names of pages."""
    for target in ((folder / unquote(link)).resolve(), (folder / f"{unquote(link)}.md").resolve()):
        if target.exists() and target.is_relative_to(ROOT) and not target.is_relative_to(DOCS):
            return target.relative_to(ROOT).as_posix()
    return None


def write_mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Equations as MathML, which browsers show without a script."""
    inline = isinstance(node, nodes.math)
    mathml = tex2mathml(node.astext(), as_block=not inline)
    translator.body.append(mathml if inline else f'<div class="math">{mathml}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("doctree-read", name_files_of_the_repository, priority=100)  # before files to download are copied
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
