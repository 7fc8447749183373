"""The notebooks run from their first cell to their last, and show what they say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
SHOWN = {
    "first_heatmap": ("one vector", "image/png", "research use only"),
    "study_with_labels": ("MODEL_CARD", "image/png", "tumour"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without what it showed"
    done = client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    found = [str(kind) for cell in done.cells for output in cell.get("outputs", []) for kind in _kinds(output)]
    assert not [cell for cell in done.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    text = nbformat.writes(done)
    assert all(word in text for word in SHOWN[path.stem])
    assert found.count("image/png") >= 1
    assert "text/html" in found


def _kinds(output: Any) -> list[str]:
    return list(output.get("data", {}))
