"""Regions: what a person drew, read as it was meant, or refused by file and number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import made_features, made_record
from shapely import Polygon

from pathovit.errors import SettingsError
from pathovit.geometry import Box
from pathovit.outputs.features import SlideFeatures, TileVerdict
from pathovit.outputs.folder import OutFolder
from pathovit.show.qupath import MARKED
from pathovit.study.regions import Meaning, Region, find_regions, label_tiles, read_regions, tiles_in

SIDE = 100  # of a tile, level-0 pixels
COLUMNS, ROWS = 8, 6


@pytest.fixture
def slide() -> SlideFeatures:
    """Tiles of 100 pixels in 6 rows of 8."""
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    xy = np.stack([columns.ravel(), rows.ravel()], -1) * SIDE
    return made_features(xy, np.zeros((len(xy), 2), np.float16), grid={"tile": float(SIDE)})


def square(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


def line(*points: tuple[float, float]) -> dict[str, Any]:
    return {"type": "LineString", "coordinates": [list(point) for point in points]}


def feature(name: str | None, geometry: dict[str, Any], **more: Any) -> dict[str, Any]:
    properties = {"objectType": "annotation", **({"classification": {"name": name, "color": [1, 2, 3]}} if name else {})}
    return {"type": "Feature", "geometry": geometry, "properties": properties | more}


def write(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def drawn(folder: Path, *features: dict[str, Any]) -> list[Region]:
    return read_regions(write(folder / "s.geojson", *features), lambda text: None)


def told(slide: SlideFeatures, regions: list[Region]) -> tuple[Meaning, dict[str, set[tuple[int, int]]]]:
    """Tiles (column, row) that may be of each class, of those of which something is known."""
    meaning = Meaning.of({"s": regions})
    labels = label_tiles(slide, regions, meaning, print)
    found = {}
    for place, name in enumerate(meaning.classes):
        tiles = np.flatnonzero(labels.known & labels.allowed[:, place])
        found[name] = {(int(tile) % COLUMNS, int(tile) // COLUMNS) for tile in tiles}
    return meaning, found


def test_a_polygon_labels_what_lies_in_it_by_more_than_half_and_a_line_what_it_crosses(
    slide: SlideFeatures, tmp_path: Path
) -> None:
    regions = drawn(
        tmp_path,
        feature("tumour", square(0, 0, 240, 160)),  # 40 % of the third column, 60 % of the second row
        feature("other tissue", line((450, 350), (750, 350))),
        feature("other tissue", {"type": "Point", "coordinates": [730, 530]}),
    )
    meaning, found = told(slide, regions)
    assert meaning.classes == ("other tissue", "tumour")  # what is asked for comes last
    assert found["tumour"] == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert found["other tissue"] == {(4, 3), (5, 3), (6, 3), (7, 3), (7, 5)}


def test_what_is_smaller_than_a_tile_still_labels_the_tiles_that_it_covers_most(slide: SlideFeatures, tmp_path: Path) -> None:
    thin = square(110, 140, 390, 160)  # a brush of a fifth of a tile, over two tiles and most of two others
    _, found = told(slide, drawn(tmp_path, feature("tumour", thin), feature("other", square(500, 500, 530, 530))))
    assert found == {"tumour": {(1, 1), (2, 1), (3, 1)}, "other": {(5, 5)}}


def test_not_a_class_allows_all_others_and_complete_denies_those_with_a_name(slide: SlideFeatures, tmp_path: Path) -> None:
    regions = drawn(
        tmp_path,
        feature("complete", square(0, 0, 800, 200)),
        feature("tumour", square(0, 0, 200, 100)),
        feature("Stroma", square(300, 0, 400, 100)),
        feature("not Tumour", square(0, 400, 100, 500)),
        feature("Ignore*", square(700, 0, 800, 200)),
        feature("Region*", square(0, 0, 800, 600)),
    )
    meaning, found = told(slide, regions)
    assert meaning.classes == ("other", "Stroma", "tumour")
    assert found["tumour"] == {(0, 0), (1, 0)}
    assert found["Stroma"] == {(3, 0), (0, 4)}
    rest = {(column, row) for column in range(7) for row in range(2)} - {(0, 0), (1, 0), (3, 0)}
    assert found["other"] == rest | {(0, 4)}


def test_with_one_class_not_it_is_the_other_one(slide: SlideFeatures, tmp_path: Path) -> None:
    regions = drawn(tmp_path, feature("tumour", square(0, 0, 100, 100)), feature("not tumour", square(300, 0, 400, 100)))
    assert told(slide, regions) == (Meaning.of({"s": regions}), {"not tumour": {(3, 0)}, "tumour": {(0, 0)}})


def test_regions_side_by_side_divide_a_tile_and_regions_upon_each_other_are_refused(slide: SlideFeatures, tmp_path: Path) -> None:
    beside = drawn(tmp_path, feature("a", square(0, 0, 155, 100)), feature("b", square(155, 0, 300, 100)))
    _, found = told(slide, beside)
    assert found == {"a": {(0, 0), (1, 0)}, "b": {(2, 0)}}
    upon = drawn(tmp_path, feature("a", square(0, 0, 300, 100)), feature("b", square(150, 0, 400, 100)))
    with pytest.raises(SettingsError, match=r"s.geojson, feature 1 \(a\) and s.geojson, feature 2 \(b\) lie upon each other"):
        told(slide, upon)


def test_regions_lie_where_qupath_shows_them_and_unread_tiles_are_not_labelled(tmp_path: Path) -> None:
    xy = np.array([[1000, 500], [1100, 500], [1200, 500]])
    bounds = {"bounds": Box(1000, 500, 300, 100), "has_bounds": True}
    verdict = np.array([0, TileVerdict.UNREADABLE, 0], np.uint8)
    slide = made_features(xy, np.zeros((3, 2), np.float16), verdict, grid={"tile": float(SIDE), "origin": (1000, 500)}, **bounds)
    regions = drawn(tmp_path, feature("tumour", square(0, 0, 200, 100)), feature("other", square(200, 0, 300, 100)))
    labels = label_tiles(slide, regions, Meaning.of({"s": regions}), print)
    assert labels.known.tolist() == [True, False, True]


def test_a_region_off_the_tissue_is_refused_by_name(slide: SlideFeatures, tmp_path: Path) -> None:
    regions = drawn(tmp_path, feature("a", square(0, 0, 100, 100)), feature("b", square(5000, 5000, 6000, 6000)))
    with pytest.raises(SettingsError, match=r"s.geojson, feature 2 \(b\): it lies on no tile of s-1"):
        told(slide, regions)


def test_one_of_many_regions_off_the_tissue_is_left_out_and_said(slide: SlideFeatures, tmp_path: Path) -> None:
    on = [feature("a", square(x, 0, x + 100, 100)) for x in (0, 100)] + [feature("b", square(200, 0, 300, 100))]
    away = feature("b", square(5000, 5000, 6000, 6000))
    regions, said = drawn(tmp_path, *on * 4, away), list[str]()
    found = label_tiles(slide, regions, Meaning.of({"s": regions}), said.append)
    assert found.known.sum() == 3
    assert said == ["s.geojson, feature 13 (b): it lies on no tile of s-1 and is left out"]
    with pytest.raises(SettingsError, match="lies on no tile of s-1, nor do 1 of 13 others"):
        label_tiles(slide, [*regions, regions[-1]], Meaning.of({"s": regions}), said.append)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tumour"], "The regions show one class, 'tumour'"),
        (["Tumor", "tumor"], "one class"),
        (["Ignore*"], "no class"),
        (["tumour", "not stroma"], "'not stroma' is drawn, and 'stroma' is not"),
    ],
)
def test_too_few_classes_are_refused(names: list[str], said: str, tmp_path: Path) -> None:
    regions = drawn(tmp_path, *(feature(name, square(0, 0, 100, 100)) for name in names))
    with pytest.raises(SettingsError, match=said):
        Meaning.of({"s": regions})


def test_not_a_class_that_a_table_does_not_name_says_nothing_of_the_others() -> None:
    def region(name: str) -> Region:
        return Region(name, Polygon([(0, 0), (9, 0), (9, 9)]), "a", 1)

    drawn = {"s": [region(name) for name in ("tumour", "not tumour", "not normal", "not necrosis", "stroma")]}
    meaning = Meaning.for_target(drawn, ["tumour"], "normal", lambda text: None)
    assert meaning.classes == ("", "tumour")
    assert meaning.allowed["tumour"] == (False, True)
    assert meaning.allowed["not tumour"] == (True, False)
    assert meaning.allowed["not normal"] == (False, True)
    assert meaning.allowed["not necrosis"] == (True, True), "it may be either"
    assert meaning.allowed["stroma"] == (True, False)


def test_the_class_that_is_asked_for_can_be_named(tmp_path: Path) -> None:
    regions = {"s": drawn(tmp_path, *(feature(name, square(0, 0, 100, 100)) for name in ("gland", "stroma", "Tumor")))}
    assert Meaning.of(regions).classes == ("gland", "stroma", "Tumor")
    assert Meaning.of(regions, "GLAND").classes == ("stroma", "Tumor", "gland")
    with pytest.raises(SettingsError, match="'fat' is not a class of the regions: gland, stroma, Tumor"):
        Meaning.of(regions, "fat")


def test_what_a_model_drew_and_what_has_no_class_teaches_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(
        tmp_path / "s.geojson",
        feature("tumour", square(0, 0, 100, 100), measurements={"Mean score": 0.9, "Highest score": 0.9, "Area mm^2": 1.0}),
        *(feature(name, square(0, 0, 100, 100)) for name in MARKED),
        feature(None, square(0, 0, 100, 100)),
        feature(None, square(0, 0, 100, 100), objectType="tile"),
        feature("tumour", square(0, 0, 100, 100)),
    )
    assert [region.number for region in read_regions(path, said.append)] == [7]
    assert said == ["s.geojson: 1 regions without a class are left out", "s.geojson: 4 regions that a model drew are left out"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not GeoJSON"),
        ("[]", "no region with a class"),
        ('{"type": "FeatureCollection", "features": [7]}', "feature 1: not a GeoJSON feature"),
        (
            '{"features": [{"properties": {"classification": {"name": "a"}}, "geometry": {"type": "Polygon", "coordinates": []}}]}',
            r"feature 1 \(a\): its geometry is empty",
        ),
    ],
)
def test_what_is_no_region_is_refused_by_file_and_number(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.geojson").write_text(text)
    with pytest.raises(SettingsError, match=rf"s\.geojson.*{said}"):
        read_regions(tmp_path / "s.geojson", lambda text: None)


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
  <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="tumour" Color="#64FE2E"><Coordinates>
    <Coordinate Order="0" X="{0}" Y="{1}"/><Coordinate Order="1" X="{2}" Y="{1}"/><Coordinate Order="2" X="{2}" Y="{3}"/><Coordinate Order="3" X="{0}" Y="{3}"/>
  </Coordinates></Annotation>
  <Annotation Name="Annotation 1" Type="Dot" PartOfGroup="other" Color="#000000"><Coordinates><Coordinate Order="0" X="{4}" Y="{5}"/></Coordinates></Annotation>
  <Annotation Name="Annotation 2" Type="Polygon" PartOfGroup="None" Color="#000000"><Coordinates>
    <Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="9" Y="0"/><Coordinate Order="2" X="9" Y="9"/>
  </Coordinates></Annotation>
</Annotations><AnnotationGroups><Group Name="tumour" PartOfGroup="None" Color="#64FE2E"/></AnnotationGroups></ASAP_Annotations>"""


def test_asap_counts_from_the_corner_of_level_0_and_qupath_from_that_of_the_scanned_part(tmp_path: Path) -> None:
    """The same square of tissue, drawn in both programs on a slide whose scanned part begins at 1,000 and 2,000."""
    x, y, tile = 1000, 2000, 96
    corners = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2) * tile + (x, y)
    slide = made_features(
        corners,
        np.ones((30, 4), np.float16),
        grid={"tile": float(tile), "origin": (x, y)},
        bounds=Box(x, y, 6 * tile, 5 * tile),
        has_bounds=True,
    )
    said: list[str] = []
    asap = ASAP.format(x + tile, y + tile, x + 3 * tile, y + 2 * tile, x + 4.5 * tile, y + 3.5 * tile)
    (tmp_path / "s.xml").write_text(asap)
    write(
        tmp_path / "s.geojson",
        feature("tumour", square(tile, tile, 3 * tile, 2 * tile)),
        feature("other", square(4 * tile, 3 * tile, 5 * tile, 4 * tile)),
    )
    (tmp_path / "s.geojson.gz").write_bytes(gzip.compress((tmp_path / "s.geojson").read_bytes()))
    found = []
    for name in ("s.xml", "s.geojson", "s.geojson.gz"):
        regions = read_regions(tmp_path / name, said.append)
        labels = label_tiles(slide, regions, Meaning.of({"s": regions}), said.append)
        found.append(labels.allowed.tolist())
        assert np.flatnonzero(labels.known).tolist() == [7, 8, 22], name
        assert [tiles.tolist() for tiles in tiles_in(slide, regions)] == [[7, 8], [22]], name
    assert found[0] == found[1] == found[2]
    assert said == ["s.xml: 1 regions without a class are left out"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<ASAP_Annotations>", "not XML of ASAP"),
        ("<annotations/>", "it begins with <annotations>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations/>', "it defines entities"),
        (ASAP.format("left", 0, 9, 9, 1, 1), "annotation 1: its coordinates cannot be read"),
        ("<ASAP_Annotations/>", "no region with a class"),
    ],
)
def test_what_is_no_file_of_asap_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.xml").write_text(text)
    with pytest.raises(SettingsError, match=rf"s\.xml.*{said}"):
        read_regions(tmp_path / "s.xml", lambda text: None)


def test_files_are_matched_to_slides_by_name(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    for slide_id, file in (("a-1", "a.svs"), ("b-2", "B.svs"), ("c-3", "c.svs"), ("c-4", "c.svs")):
        out.slide(slide_id).path.mkdir(parents=True)
        out.slide(slide_id).write(made_record(slide_id, file), [])
    regions = tmp_path / "regions"
    regions.mkdir()
    (regions / "c-4.xml").write_text(ASAP.format(0, 0, 9, 9, 1, 1))
    for name in ("a.svs.geojson", "b.geojson"):
        write(regions / name, feature("tumour", square(0, 0, 100, 100)))
    said: list[str] = []
    assert set(find_regions([regions], out, said.append)) == {"a-1", "b-2", "c-4"}
    assert said == ["b.geojson is taken for b-2", "c-4.xml: 1 regions without a class are left out"]
    write(regions / "z.geojson", feature("tumour", square(0, 0, 100, 100)))
    assert set(find_regions([regions], out, said.append)) == {"a-1", "b-2", "c-4"}
    assert said[-1].startswith("1 of 4 files of regions are of no slide with features, such as ")
    assert said[-1].endswith("They are left out.")
    with pytest.raises(SettingsError, match="'z' has no features in"):  # beside its folder, but named
        find_regions([regions, regions / "z.geojson"], out, said.append)
    for name in "wxyv":
        write(regions / f"{name}.geojson", feature("tumour", square(0, 0, 100, 100)))
    with pytest.raises(SettingsError, match="5 of 8 files of regions are of no slide with features"):
        find_regions([regions], out, said.append)
    for name, why in (("a-12", r"has no features in .*\(did you mean a"), ("c", "can mean .*c-3 and .*c-4. Give one of them")):
        path = write(tmp_path / f"{name}.geojson", feature("tumour", square(0, 0, 100, 100)))
        with pytest.raises(SettingsError, match=why):
            find_regions([path], out, said.append)
    (lonely := tmp_path / "lonely").mkdir()
    write(lonely / "z.geojson", feature("tumour", square(0, 0, 100, 100)))
    with pytest.raises(SettingsError, match="'z' has no features in"):
        find_regions([lonely], out, said.append)
    with pytest.raises(SettingsError, match="no file of regions"):
        find_regions([tmp_path / "out"], out, said.append)
