"""Every failure of a slide has a code; a file that is no slide is called by its name."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command import pathovit
from made_runs import rows_of
from PIL import Image
from typer.testing import CliRunner

from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.errors import SlideError
from pathovit.outputs.folder import OutFolder
from pathovit.reasons import EXPLAINED, Code
from pathovit.slides.slide import open_slide

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "vendor"
PIXELS = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)


def test_every_code_is_explained_and_documented() -> None:
    assert list(EXPLAINED) == list(Code)
    documented = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE)
    assert documented == [(code.value, known.cause, known.remedy) for code, known in EXPLAINED.items()]
    for code in Code:
        said = CliRunner().invoke(app, ["explain", code])
        assert said.exit_code == 0
        assert EXPLAINED[code].remedy in said.output
    used = set(
        re.findall(
            r"Code\.([A-Z_]+)",
            "".join(path.read_text() for path in (ROOT / "pathovit").rglob("*.py") if path.name != "reasons.py"),
        )
    )
    assert used == {code.name for code in Code}


FOUND = {
    "page.svs": (b"\n<!DOCTYPE html><html><body>log in", Code.NOT_A_SLIDE, "web page"),
    "pointer.svs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", Code.NOT_A_SLIDE, "pointer of git-lfs"),
    "packed.svs": (gzip.compress(b"II*\0" * 100), Code.NOT_A_SLIDE, "gzip"),
    "archive.tif": (b"PK\x03\x04" + bytes(60), Code.NOT_A_SLIDE, "ZIP"),
    "error.ndpi": (b'<?xml version="1.0"?><Error/>', Code.NOT_A_SLIDE, "XML"),
    "paper.tiff": (b"%PDF-1.7 ...", Code.NOT_A_SLIDE, "PDF"),
    "numbers.svs": (b"\x89HDF\r\n\x1a\n" + bytes(50), Code.NOT_A_SLIDE, "HDF5"),
    "answer.svs": (b'{"error": 403}', Code.NOT_A_SLIDE, "JSON"),
    "hole.svs": (bytes(10_000), Code.TRUNCATED, "zero bytes"),
    "empty.svs": (b"", Code.EMPTY, "0 bytes"),
    "text.svs": (b"some words", Code.NOT_A_SLIDE, "OpenSlide cannot open it"),
    "table.csv": (b"slide,label\n", Code.NOT_A_SLIDE, "a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FOUND))
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    content, code, said = FOUND[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=said) as caught:
        open_slide(tmp_path / name, 0.5)
    assert caught.value.code == code


def pictures(folder: Path) -> list[Path]:
    """One of each format that can be written here."""
    made = [folder / name for name in ("tiled.tif", "strips.tif", "big.tif", "a.png", "a.jpg")]
    tifffile.imwrite(made[0], PIXELS, tile=(256, 256), photometric="rgb", compression="jpeg")
    tifffile.imwrite(made[1], PIXELS, rowsperstrip=50, photometric="rgb", compression="zlib")
    tifffile.imwrite(made[2], PIXELS, tile=(256, 256), photometric="rgb", bigtiff=True)
    for path in made[3:]:
        Image.fromarray(PIXELS).save(path)
    return made


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_called_truncated(tmp_path: Path, share: float) -> None:
    given = pictures(tmp_path) + (sorted(SAMPLE.glob("CMU-1-Small-Region.*")) if SAMPLE.is_dir() else [])
    for path in given:
        cut = tmp_path / f"cut-{path.name}"
        content = path.read_bytes()
        cut.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(SlideError) as caught:
            open_slide(cut, 0.5)
        assert caught.value.code == Code.TRUNCATED, f"{path.name}: {caught.value}"


def test_codes_reach_the_table_the_records_and_json(tmp_path: Path) -> None:
    for name, (content, _, _) in FOUND.items():
        (tmp_path / name).write_bytes(content)
    asked = [tmp_path / name for name in FOUND]
    expected = {name: code.value for name, (_, code, _) in FOUND.items()}
    done = pathovit("info", *asked, "--json")
    assert {row["file"]: row["code"] for row in json.loads(done.stdout)} == expected
    given = [path for path in asked if path.name != "text.svs"]  # the others are refused before a worker is started
    del expected["text.svs"]
    done = pathovit("embed", *given, "--out", tmp_path / "out", "--json")
    assert done.returncode == 3
    assert {row["file"]: row["code"] for row in json.loads(done.stdout)["slides"]} == expected
    assert {row["file"]: row["code"] for row in rows_of(tmp_path / "out")} == expected
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {OutFolder(tmp_path / "out").name_of(row["file"]): row["code"] for row in record["outcomes"]} == expected


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the sample slides of vendors")
@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("name", ["dicom_CMU-1-Small-Region", "dicom_camelyon_google", "highdicom_sm"])
def test_a_dicom_file_that_was_cut_off_is_called_truncated(tmp_path: Path, name: str, share: float) -> None:
    largest = max((SAMPLE / name).glob("*.dcm"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    cut = tmp_path / largest.name
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SlideError) as caught:
        open_slide(cut, 0.5)
    assert caught.value.code == Code.TRUNCATED, str(caught.value)
