"""The page's own sources: every type fits, and what is built is of these sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pathovit.review.server import BUILT

PAGE = Path(__file__).parents[2] / "pathovit" / "review" / "page"


def test_every_type_fits() -> None:
    node = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")
    compiler = PAGE / "node_modules" / "typescript" / "bin" / "tsc"
    if node is None or not compiler.is_file():
        pytest.skip("Node or the page's packages are not here: make page")
    done = subprocess.run([node, str(compiler), "--noEmit"], cwd=PAGE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_served_was_built_of_these_sources() -> None:
    if not (BUILT / "sources.sha256").is_file():
        pytest.skip("the page was not built: the npm registry was out of reach")
    sys.path.insert(0, str(PAGE))
    try:
        from hatch_build import is_fresh
    except ImportError:
        pytest.skip("hatchling is not here")
    finally:
        sys.path.remove(str(PAGE))
    assert is_fresh(PAGE.parents[2]), "make page"


def test_the_page_names_no_other_machine() -> None:
    """Nothing is asked of one (test_page.py watches that); addresses in its text are those of XML and of comments."""
    script = BUILT / "review.js"
    if not script.is_file():
        pytest.skip("the page was not built: the npm registry was out of reach")
    text = script.read_text("utf-8")
    assert "cdn." not in text
    assert "googleapis" not in text
    assert "sourceMappingURL" not in text
