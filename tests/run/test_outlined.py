"""--tissue: tissue where a person outlined it, in the place of that which is found."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import folder_of
from shapely import box
from typer.testing import CliRunner

import pathovit
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.errors import NoTissueError, SettingsError
from pathovit.slides.outlines import Outline, read_outlines
from pathovit.slides.tissue import find_tissue, outlined_tissue

LEFT, TOP, RIGHT, BOTTOM = 600, 500, 2000, 1700


def write_outline(path: Path, *areas: tuple[str, tuple[int, int, int, int]]) -> Path:
    features = []
    for name, (left, top, right, bottom) in areas:
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        about: dict[str, Any] = {"classification": {"name": name}} if name else {}
        features.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": about})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_tiles_lie_where_tissue_was_outlined_and_the_record_says_so(slides: list[Path], tmp_path: Path) -> None:
    out, outline = tmp_path / "out", write_outline(tmp_path / "outlines" / "one.geojson", ("", (LEFT, TOP, RIGHT, BOTTOM)))
    done = call("embed", *slides[:2], "--out", out, "--tissue", tmp_path / "outlines")
    assert done.exit_code == 0, done.output
    assert "1 of 2 slides have their tissue outlined; that of the others is looked for" in done.stderr
    stored = pathovit.load_features(out, "one")
    corners, tile = stored.xy, np.asarray(stored.tile_l0)
    inside = np.minimum(corners + tile, (RIGHT, BOTTOM)) - np.maximum(corners, (LEFT, TOP))
    share = inside.clip(0).prod(1) / tile.prod()
    assert share.min() >= 0.25 - 0.06
    assert len(corners) > 40
    assert np.abs(stored.coverage - share).max() < 0.13, "pixels of the mask are a twelfth of a tile wide"
    record = pathovit.OutFolder(out).slide(stored.slide_id).record()
    assert record
    assert "its tissue is what a person outlined (--tissue)" in record.reason
    assert record.survey.tissue_mm2 == pytest.approx((RIGHT - LEFT) * (BOTTOM - TOP) * 0.25e-6, rel=0.02)
    assert "outlines" in stored.recipe.tiles | stored.recipe.values["tissue"]
    other = pathovit.load_features(out, "two")
    assert stored.shaping() == other.shaping(), "outlined and found tissue can be learned from together"
    again = call("embed", *slides[:2], "--out", out, "--tissue", tmp_path / "outlines", "--json")
    assert all(slide["skipped"] for slide in json.loads(again.stdout)["slides"])
    without = call("embed", slides[0], "--out", out)
    assert without.exit_code == 3
    assert "tissue.outlines" in without.stderr
    write_outline(outline, ("", (LEFT, TOP, RIGHT + 100, BOTTOM)))
    changed = call("embed", slides[0], "--out", out, "--tissue", outline)
    assert changed.exit_code == 3
    assert "tissue.outlines" in changed.stderr


def test_what_is_called_ignore_is_cut_out_and_holes_stay_holes(slides: list[Path], tmp_path: Path) -> None:
    path = write_outline(
        tmp_path / "one.geojson",
        ("ignore", (1000, 800, 1400, 1200)),
        ("Region*", (600, 500, 700, 600)),
        ("tissue", (LEFT, TOP, RIGHT, BOTTOM)),
    )
    with pathovit.open_slide(slides[0]) as slide:
        mask = outlined_tissue(slide, read_outlines(path))
        assert mask.tissue.shape == find_tissue(slide).tissue.shape
        assert mask.area_mm2 == pytest.approx(((RIGHT - LEFT) * (BOTTOM - TOP) - 400 * 400 - 100 * 100) * 0.25e-6, rel=0.02)
        assert not mask.tissue[round(1000 / 16), round(1200 / 16)]
        moved = [Outline(one.name, one.geometry, one.number, True) for one in read_outlines(path)]
        assert np.array_equal(outlined_tissue(slide, moved).tissue, mask.tissue), (
            "this slide states no bounds: both frames are one"
        )
        shell, hole = box(LEFT, TOP, RIGHT, BOTTOM), box(1000, 800, 1400, 1200)
        with_hole = outlined_tissue(slide, [Outline("", shell.difference(hole), 1)])
        assert with_hole.area_mm2 == pytest.approx(((RIGHT - LEFT) * (BOTTOM - TOP) - 400 * 400) * 0.25e-6, rel=0.02)
        away = write_outline(tmp_path / "away.geojson", ("tissue", (9000, 9000, 9500, 9500)))
        with pytest.raises(NoTissueError, match="its outlines have no area on it"):
            outlined_tissue(slide, read_outlines(away))


def test_shapes_as_they_come_are_filled_or_refused_by_name(slides: list[Path], tmp_path: Path) -> None:
    spike = [[600, 500], [2000, 500], [2000, 1700], [600, 1700], [600, 500], [300, 500], [600, 500]]
    crossed = [[2100, 500], [2300, 700], [2300, 500], [2100, 700], [2100, 500]]
    high = [[x, y, 7.0] for x, y in ([100, 100], [200, 100], [200, 200], [100, 200], [100, 100])]
    both = {"type": "MultiPolygon", "coordinates": [[spike], [crossed]]}
    features = [
        {"type": "Feature", "properties": {}, "geometry": geometry}
        for geometry in (both, {"type": "Polygon", "coordinates": [high]}, None, {"type": "Polygon", "coordinates": []})
    ]
    path = tmp_path / "one.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pathovit.open_slide(slides[0]) as slide:
        mask = outlined_tissue(slide, read_outlines(path))
    assert mask.area_mm2 == pytest.approx((1400 * 1200 + 200 * 200 / 2 + 100 * 100) * 0.25e-6, rel=0.02)
    path.write_text('{"type": "FeatureCollection", "features": null}')
    assert read_outlines(path) == []
    packed = tmp_path / "one.geojson.gz"
    packed.write_bytes(gzip.compress(json.dumps(features).encode())[:60] + b"torn" * 9)
    with pytest.raises(SettingsError, match="one.geojson.gz"):
        read_outlines(packed)


def test_what_was_outlined_is_drawn_and_mended_only_with_its_outlines(slides: list[Path], tmp_path: Path) -> None:
    out, outline = tmp_path / "out", write_outline(tmp_path / "one.geojson", ("", (LEFT, TOP, RIGHT, BOTTOM)))
    assert call("run", slides[0], "--out", out, "--tissue", outline).exit_code == 0
    refused = call("heatmap", slides[0], "--out", out, "--hot-score", 0.9)
    assert refused.exit_code == 3
    assert "Give the same --tissue as before" in refused.stderr
    drawn = call("heatmap", slides[0], "--out", out, "--hot-score", 0.9, "--tissue", outline)
    assert drawn.exit_code == 0, drawn.output
    before = pathovit.load_features(out, "one")
    (folder_of(out, "one") / "overview.png").unlink()
    call("verify", out, "--repair")
    assert (folder_of(out, "one") / "overview.png").is_file(), "pictures are drawn from what is stored"
    shutil.rmtree(folder_of(out, "one") / "features.zarr" / "xy")
    said = call("verify", out, "--repair")
    assert "its tissue is what a person outlined. Mend it with: pathovit run SLIDE --tissue OUTLINES" in said.stderr
    assert call("run", slides[0], "--out", out, "--tissue", outline).exit_code == 0
    assert np.array_equal(pathovit.load_features(out, "one").xy, before.xy)


def test_outlines_of_no_slide_are_refused(slides: list[Path], tmp_path: Path) -> None:
    write_outline(tmp_path / "outlines" / "other.geojson", ("", (0, 0, 9, 9)))
    with pytest.raises(SettingsError, match=r"no file in it \(GeoJSON, or XML of ASAP\) is named after one of the slides"):
        pathovit.run_folder(slides[0], tmp_path / "out", tissue=tmp_path / "outlines", progress=False)
    with pytest.raises(SettingsError, match="there is no such file or folder"):
        pathovit.run_folder(slides[0], tmp_path / "out", tissue=tmp_path / "none", progress=False)
    for name in ("one.geojson", "one.xml"):
        write_outline(tmp_path / "twice" / name, ("", (0, 0, 9, 9)))
    with pytest.raises(SettingsError, match="cannot be told apart"):
        pathovit.run_folder(slides[0], tmp_path / "out", tissue=tmp_path / "twice", progress=False)


def test_a_slide_in_which_no_tissue_is_found_can_be_outlined(tmp_path: Path, maker: Any) -> None:
    slide = maker.make_slide(tmp_path / "slides", maker.SampleSpec(name="S", seed=3, size=(3000, 2600), tumour_fraction=0.0))
    outline = write_outline(tmp_path / "S.geojson", ("", (200, 200, 1200, 1000)))
    result = pathovit.run_folder(slide, tmp_path / "out", tissue=outline, settings={"embed": {"max_tiles": 9}}, progress=False)
    assert result.exit_code == 0
    assert (folder_of(tmp_path / "out", "S") / "overview.png").is_file()
