"""heatmap.geojson: what QuPath reads lies where it was planted, and keeps its rules."""

import gzip
import json
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_maps import CASES, COLUMNS, ROWS, corner_of, planted
from shapely import get_num_coordinates
from shapely.geometry import mapping, shape

from pathovit.errors import StoreError
from pathovit.outputs.features import SlideFeatures, TileVerdict
from pathovit.show import qupath
from pathovit.show.qupath import dissolve, read_annotations, tile_squares, write_geojson


def export(folder: Path, slide: SlideFeatures, scores: np.ndarray, max_tiles: int = 20_000) -> int:
    regions = dissolve(slide, np.nan_to_num(scores, nan=-1.0) >= 0.5, "tumour", scores)
    write_geojson(
        folder, slide, scores, {"Attention": scores}, "tumour", regions=regions, marked={"Unread": slide.unread},
        max_tiles=max_tiles,
    )  # fmt: skip
    return len(regions)


@pytest.mark.parametrize("case", CASES)
def test_geojson_landmarks_lie_within_one_level0_pixel_of_qupaths_view(case: str, tmp_path: Path) -> None:
    slide, scores, corners = planted(case)
    regions = export(tmp_path, slide, scores, 20_000)
    assert regions == 9
    bounds = corner_of(slide) if slide.attributes.has_bounds else np.zeros(2)
    features = json.loads((tmp_path / "heatmap.geojson").read_text())["features"]
    hot = [f for f in features if f["properties"]["objectType"] == "annotation"]
    found = np.array([shape(f["geometry"]).bounds[:2] for f in hot]) + bounds
    assert np.abs(found[:, None] - corners[None]).max(-1).min(1).max() <= 1


@pytest.mark.parametrize("mpp", [0.2278, 0.2205, 0.2312, 0.25])
def test_a_solid_hot_area_is_one_region_at_any_pixel_size(mpp: float, tmp_path: Path) -> None:
    """Rounded corners plus a rounded side would leave gaps of a pixel between neighbours."""
    slide, scores, _ = planted("plain")
    side = 96 / mpp
    grid = replace(slide.grid, tile_l0=(side, side), stride_l0=(side, side))
    slide = replace(slide, grid=grid, attributes=replace(slide.attributes, mpp=(mpp, mpp)))
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    slide.xy[:] = np.rint(np.stack([columns.ravel(), rows.ravel()], -1) * side)
    scores[:] = 0.9
    assert export(tmp_path, slide, scores, 20_000) == 1


def test_tiles_are_written_as_shapely_would_with_the_same_identity(tmp_path: Path) -> None:
    """They are written without geometry, for speed; a tile keeps its UUID from one version to the next."""
    slide, scores, _ = planted("bounds")
    write_geojson(tmp_path, slide, scores, {}, "tumour", regions=[], marked={}, max_tiles=10_000)
    tiles = json.loads((tmp_path / "heatmap.geojson").read_text())["features"]
    squares = tile_squares(slide)
    assert len(tiles) == len(squares)
    for tile, square in zip(tiles, squares, strict=True):
        assert tile["id"] == str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide.slide_id} tile None {square.wkt}"))
        assert tile["geometry"] == json.loads(json.dumps(mapping(square)))


def test_geojson_keeps_qupaths_rules(tmp_path: Path) -> None:
    slide, scores, _ = planted("plain")
    slide.verdict[5] = TileVerdict.UNREADABLE
    scores[5] = np.nan
    export(tmp_path, slide, scores, 20_000)
    features = json.loads((tmp_path / "heatmap.geojson").read_text())["features"]
    assert len({f["id"] for f in features}) == len(features)
    for feature in features:
        assert feature["type"] == "Feature"
        assert set(feature) == {"type", "id", "geometry", "properties"}  # objectType at the top is not read by QuPath
        properties = feature["properties"]
        assert properties["objectType"] in ("tile", "annotation")
        assert all(np.isfinite(v) for v in properties["measurements"].values())
        if "classification" in properties:
            assert len(properties["classification"]["color"]) == 3  # a name without a colour fails QuPath's import
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
    assert sum(f["properties"].get("name") == "Unread" for f in features) == 1
    assert sum(f["properties"]["objectType"] == "tile" for f in features) == COLUMNS * ROWS - 1


def test_too_many_tiles_are_dissolved_into_bands(tmp_path: Path) -> None:
    slide, scores, _ = planted("plain")
    export(tmp_path, slide, scores, 100)
    features = json.loads((tmp_path / "heatmap.geojson").read_text())["features"]
    tiles = [f for f in features if f["properties"]["objectType"] == "tile"]
    assert len(tiles) == 10  # one cold band in one piece, nine hot tiles
    measured = [f["properties"]["measurements"] for f in tiles]
    assert all(one["Attention"] == pytest.approx(one["Score: tumour"]) for one in measured), "means of what `export` gives twice"
    assert sum(shape(f["geometry"]).area for f in tiles) == pytest.approx(COLUMNS * ROWS * 192**2)


def test_much_is_compressed_and_what_was_there_before_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, scores, _ = planted("plain")
    export(tmp_path, slide, scores)
    whole = (tmp_path / "heatmap.geojson").read_bytes()
    regions = read_annotations(tmp_path, slide)
    monkeypatch.setattr(qupath, "LARGE_BYTES", len(whole) - 1)
    export(tmp_path, slide, scores)
    assert [path.name for path in tmp_path.iterdir()] == ["heatmap.geojson.gz"]
    packed = (tmp_path / "heatmap.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == whole
    assert [one.name for one in read_annotations(tmp_path, slide)] == [one.name for one in regions] == ["tumour"] * 9
    export(tmp_path, slide, scores)
    assert (tmp_path / "heatmap.geojson.gz").read_bytes() == packed, "the same whenever it is written"
    (tmp_path / "heatmap.geojson.gz").write_bytes(packed[:-40])
    with pytest.raises(StoreError, match="its heatmap.geojson.gz is damaged, or of an older pathovit. Draw it again"):
        read_annotations(tmp_path, slide)


def test_regions_can_be_corrected_and_classes_have_colours_of_their_own(tmp_path: Path) -> None:
    slide, scores, _ = planted("plain")
    hot = np.nan_to_num(scores) >= 0.5
    regions = [area for name, tiles in (("a", hot), ("b", ~hot)) for area in dissolve(slide, tiles, name, scores)]
    of_classes = {"a": [1, 2, 3], "b": [4, 5, 6], "c": [7, 8, 9]}
    write_geojson(tmp_path, slide, scores, {}, "a", regions=regions, marked={}, max_tiles=10, colours=of_classes)
    features = json.loads((tmp_path / "heatmap.geojson").read_text())["features"]
    drawn = [f["properties"] for f in features if f["properties"]["objectType"] == "annotation"]
    assert not any(one["isLocked"] for one in drawn)
    colours = {one["classification"]["name"]: tuple(one["classification"]["color"]) for one in drawn}
    assert colours == {"a": (1, 2, 3), "b": (4, 5, 6)}


def test_outlines_have_no_more_corners_than_qupath_bears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, scores, _ = planted("plain")
    columns, rows = slide.grid.lattice().T
    comb = (rows > 0) | (columns % 2 == 0)
    (exact,) = dissolve(slide, comb, "tumour", scores)
    assert get_num_coordinates(exact.shape) == 2 * COLUMNS + 3, "corners of the comb, and none along its straight edges"
    assert exact.shape.area == pytest.approx(comb.sum() * 192**2)
    monkeypatch.setattr(qupath, "MOST_CORNERS", 20)
    (rough,) = dissolve(slide, comb, "tumour", scores)
    assert get_num_coordinates(rough.shape) <= 20
    assert rough.shape.is_valid
    assert rough.shape.area == pytest.approx(exact.shape.area, rel=0.1)
