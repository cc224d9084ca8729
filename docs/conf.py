"""Sphinx: MyST pages, the furo theme, the reference from the docstrings. Nothing here needs the network."""

import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).with_name("_ext")))

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from backtest_persist import __version__

project = "backtest-persist"
author = "the backtest-persist contributors"
copyright = author  # the name that Sphinx reads
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "domain_tables"]
exclude_patterns = ["_build", "_diagrams", "_ext", "examples"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120  # s

default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
autodoc_typehints = "signature"  # the docstrings describe no single parameters
maximum_signature_line_length = 110
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


def list_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """List the fields of a pydantic model with their plain types, without pydantic's validators."""
    if what == "class" and issubclass(obj, BaseModel):
        hints = get_type_hints(obj)
        types = {
            field: re.sub(r"~[\w.]+\.", "", stringify_annotation(hints[field], "smart")) for field in obj.model_fields
        }
        fields = [f"``{field}`` ({kind})" for field, kind in types.items()]
        lines += ["", f":Fields: {', '.join(fields)}", ""]


def simplify_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Leave out what nobody calls (models list their fields, the container builds services) and validators of types."""
    if what == "class" and (issubclass(obj, BaseModel) or name.endswith("Service")):
        return "", None
    return signature, returned and re.sub(r"~?(?:typing\.)?Annotated\[(dict\[.*?\]), [^\]]*\]", r"\1", returned)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", simplify_signature)
