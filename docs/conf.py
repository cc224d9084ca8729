"""Sphinx: MyST pages, the furo theme, the reference from the docstrings. Nothing here needs the network."""

import sys
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from backtest_persist import __version__

project = "backtest-persist"
author = "the backtest-persist contributors"
copyright = author  # the name that Sphinx reads
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "_diagrams"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_typehints = "signature"  # the docstrings describe no single parameters
maximum_signature_line_length = 90
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "context_type, row_type"}

html_theme = "furo"
html_title = f"backtest-persist {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_extra_path = ["llms.txt"]
html_show_sourcelink = False  # the sources themselves are for llms.txt
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def describe_model(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """List the fields of a pydantic model with their plain types, without pydantic's validators."""
    if what != "class" or not issubclass(obj, BaseModel) or "Settings" in obj.__name__:
        return
    hints = get_type_hints(obj)
    lines.append("")
    for field in obj.model_fields:
        lines.append(f":ivar {field}:")
        lines.append(f":vartype {field}: {stringify_annotation(hints[field], 'smart')}")


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Leave the signature of a pydantic model out: its fields are listed."""
    if what == "class" and isinstance(obj, type) and issubclass(obj, BaseModel):
        return "", None
    return None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", describe_model)
    app.connect("autodoc-process-signature", shorten_signature)
