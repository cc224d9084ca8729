"""The pages of the documentation, with what `DOMAINS` generates in them."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ("DOCS", "expanded")

DOCS = Path(__file__).parents[2] / "docs"


def _load_extension() -> Any:
    spec = spec_from_file_location("domain_tables", DOCS / "_ext" / "domain_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_EXTENSION = _load_extension()


def expanded(name: str) -> str:
    """Return the Markdown of a page, as readers of its source see it."""
    return str(_EXTENSION.expand((DOCS / name).read_text()))
