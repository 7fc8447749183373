"""Robustness on a made slide: every way is looked at, the figures are those of the answers, the card keeps them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tifffile
from command import pathovit
from made_paint import paint_strokes
from made_slides import zero_tiles

from pathovit.model.slide_model import load_model
from pathovit.outputs.folder import OutFolder
from pathovit.run.robustness import Moved, summary
from pathovit.slides.alter import FAMILIES, NAMES


def moved(answer: str, before: str = "tumour", change: float = 0.0) -> Moved:
    open_ = ("unsure", "outside", "map")
    flipped = answer != before and answer not in open_ and before not in open_
    return Moved("s", "a", "stain", answer, before, flipped, answer in open_ and before not in open_, change, 1.0, 0.0)


def test_flips_are_counted_among_slides_that_had_an_answer() -> None:
    found = summary(
        [moved("tumour"), moved("normal", change=-0.6), moved("unsure"), moved("tumour", "unsure"), moved("outside", "outside")]
    )
    assert found["answers"] == 3
    assert found["flipped"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["lost"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["change"] == pytest.approx(0.12)
    assert (summary([])["answers"], summary([])["flipped"]) == (0, None)
    number = replace(moved("1.2", "1.3", change=0.1), is_number=True, flipped=False)
    risks = summary([number, replace(number, answer="outside", lost=True)])
    assert (risks["answers"], risks["flipped"], risks["lost"], risks["change"]) == (2, None, 0.5, 0.1)
    maps = summary([moved("map", "map", change=0.1)])  # of a taught model: nothing that could flip
    assert (maps["answers"], maps["flipped"], maps["change"]) == (0, None, 0.1)


def test_a_taught_model_has_maps_alone_and_nothing_that_could_flip(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pathovit("embed", slides[0], "--out", out).returncode == 0
    slide_id = OutFolder(out).slides()[0].path.name
    regions = paint_strokes(out, slide_id, slides[0].with_suffix(".geojson"), tmp_path)
    taught = tmp_path / "taught"
    done = pathovit("teach", out, regions, "--model", taught)
    assert done.returncode == 0, done.stderr
    done = pathovit("robustness", taught, slides[0], "--max-tiles", 40, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    staining = next(line for line in done.stdout.splitlines() if line.startswith("staining"))
    assert staining.split()[1] == "0" and "%" not in staining[:50]  # no answer, no share of answers
    found = json.loads((tmp_path / "r" / "robustness.json").read_text())
    assert not any(one["lost"] or one["flipped"] for one in found["moved"])
    assert found["families"]["stain"]["map_correlation"] > 0.3
    assert "there was no answer that could flip" in (taught / "MODEL_CARD.md").read_text()


def test_the_command_writes_figures_a_picture_and_the_card(slides: list[Path], tmp_path: Path) -> None:
    model = tmp_path / "mine"
    bundled = Path(__file__).parents[2] / "pathovit" / "model" / "bundled" / "reference"
    shutil.copytree(bundled, model)
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"nothing")
    done = pathovit("robustness", model, slides[0], broken, "--max-tiles", 30, "--out", tmp_path / "r")
    assert done.returncode == 3, done.stderr
    assert "broken.svs" in done.stderr
    found = json.loads((tmp_path / "r" / "robustness.json").read_text())
    assert {one["alteration"] for one in found["moved"]} == {*NAMES}
    assert set(found["families"]) == set(FAMILIES)
    assert "Not for use" in found["research_use"]
    assert (tmp_path / "r" / "robustness.png").stat().st_size > 5000
    card = json.loads((model / "model.json").read_text())
    assert card["robustness"]["slides"] == 1
    assert "Robustness (`pathovit robustness`, 1 slide)" in (model / "MODEL_CARD.md").read_text()
    assert load_model(model).sha256 == load_model(bundled).sha256  # it answers as before


def test_tiles_that_cannot_be_read_are_counted(slides: list[Path], tmp_path: Path) -> None:
    hurt = Path(shutil.copy(slides[0], tmp_path / "hurt.svs"))
    with tifffile.TiffFile(hurt) as tiff:
        page = tiff.pages[0]
        across, down = (-(-side // page.tilewidth) for side in (page.imagewidth, page.imagelength))
    zero_tiles(hurt, [row * across + column for row in range(down) for column in range(across // 2)])
    done = pathovit("robustness", "reference", hurt, "--max-tiles", 60, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    unread = json.loads((tmp_path / "r" / "robustness.json").read_text())["unreadable_tiles"]
    assert {"as it is", "5 % finer", "half a tile aside"} <= {way.partition(", ")[2] for way in unread}
    assert all(0 < tiles < 60 for tiles in unread.values())
    assert (
        f"hurt.svs, as it is: {next(tiles for way, tiles in unread.items() if way.endswith('as it is'))} tiles could not be read and are left out"
        in done.stderr
    )


def test_a_folder_that_is_no_model_is_told(slides: list[Path], tmp_path: Path) -> None:
    done = pathovit("robustness", tmp_path / "none", slides[0])
    assert done.returncode != 0
    assert "not a model folder" in done.stderr
