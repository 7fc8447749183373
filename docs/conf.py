"""The documentation as a site: `make docs`. Commands, settings and the Python API are written down from the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from written_from_code import as_numpy_has_it, write_commands, write_python, write_records, write_settings  # noqa: E402

import pathovit  # noqa: E402

project, author = "pathovit", "the pathovit developers"
release = version = pathovit.__version__
copyright = "the pathovit developers, Apache-2.0. For research use only."
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build", "notebooks"]
html_theme = "furo"
html_title = "pathovit"
html_theme_options = {"footer_icons": [], "announcement": pathovit.RESEARCH_USE}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # older pages skip a level
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False

(HERE / "reference").mkdir(exist_ok=True)


def setup(app: Any) -> None:
    def on_docstring(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
        lines[:] = as_numpy_has_it(lines)

    app.connect("autodoc-process-docstring", on_docstring, priority=400)  # before napoleon


for write, name in (
    (write_commands, "commands"),
    (write_settings, "settings"),
    (write_records, "records"),
    (write_python, "python"),
):
    (HERE / "reference" / f"{name}.md").write_text(write(), "utf-8")
