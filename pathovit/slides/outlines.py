"""What people outlined on slides, from a file: GeoJSON as QuPath writes it, packed or not, and XML of ASAP. One reader for all of them.

QuPath counts pixels of level 0 from the corner of the scanned part, to which it crops a slide that states one; ASAP from that of level 0.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from shapely import MultiPoint, Polygon, force_2d, make_valid
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from pathovit.errors import SettingsError
from pathovit.files import open_patiently, read_bytes

SUFFIXES = (".geojson.gz", ".json.gz", ".geojson", ".json", ".xml")
MOST_BYTES = 2 * 2**30  # of a packed file, unpacked
AREAS = ("polygon", "rectangle", "spline")  # types of ASAP


@dataclass(frozen=True)
class Outline:
    """One drawn thing; `number` counts those of its file from 1."""

    name: str  # of its class; empty where it has none
    geometry: BaseGeometry
    number: int
    from_level0: bool = False  # counted from the corner of level 0, and not from that of the scanned part
    kind: str = ""  # annotation, tile ... as QuPath has it
    measured: Mapping[str, Any] = field(default_factory=dict)


def read_outlines(path: Path) -> list[Outline]:
    """All that is drawn in a file, in its order.

    Raises
    ------
    SettingsError : it is none of these files, or one of its features is none; file and feature are named
    """
    try:
        if path.suffix.lower() != ".gz":
            content = read_bytes(path)
        else:
            with open_patiently(path) as raw, gzip.GzipFile(fileobj=raw) as packed:
                content = packed.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path}: {getattr(error, 'strerror', None) or f'damaged ({error}). Copy it again'}.") from error
    return list((_of_asap if path.suffix.lower() == ".xml" else _of_qupath)(path, content))


def areas_of(geometry: BaseGeometry) -> list[Polygon]:
    """The areas of a shape, however deep in it; lines and points, which mending a crossed outline leaves, have none."""
    if isinstance(geometry, Polygon):
        return [] if geometry.is_empty else [geometry]
    return [area for part in getattr(geometry, "geoms", ()) for area in areas_of(part)]


def stem_of(file: Path) -> str:
    """What a file of outlines is named after."""
    for suffix in SUFFIXES:
        if file.name.lower().endswith(suffix):
            return file.name[: -len(suffix)]
    return file.name


def files_in(folder: Path) -> list[Path]:
    """Files of outlines in a folder."""
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."))


def _of_qupath(path: Path, content: bytes) -> Iterator[Outline]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise SettingsError(f"{path}: not GeoJSON ({error}). Export the annotations from QuPath as GeoJSON.") from error
    features = found if isinstance(found, list) else (found.get("features", [found]) or []) if isinstance(found, dict) else []
    for number, feature in enumerate(features, start=1):
        try:
            about = feature.get("properties") or {}
            measured = about.get("measurements")
            name = _class_name(about.get("classification"))
            geometry = make_valid(force_2d(shape(feature["geometry"]))) if name or feature.get("geometry") else Polygon()
            yield Outline(
                name, geometry, number, False, str(about.get("objectType", "")), measured if isinstance(measured, dict) else {},
            )  # fmt: skip
        except Exception as error:  # a shape from outside can be anything; whatever it is, the feature is refused
            raise SettingsError(
                f"{path.name}, feature {number}: not a GeoJSON feature with a geometry ({error!r}). Export it again."
            ) from error


def _class_name(classification: Any) -> str:
    if isinstance(classification, dict):
        classification = classification.get("name") or ": ".join(classification.get("names") or ())
    return str(classification or "").strip()


def _of_asap(path: Path, content: bytes) -> Iterator[Outline]:
    """The class is the group that an annotation is part of."""
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ElementTree.ParseError("it defines entities, which ASAP does not")
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise SettingsError(f"{path}: not XML of ASAP ({error}). Save the annotations again.") from error
    if root.tag != "ASAP_Annotations":
        raise SettingsError(
            f"{path}: not XML of ASAP: it begins with <{root.tag}>. Save annotations in ASAP, or export GeoJSON from QuPath."
        )
    for number, annotation in enumerate(root.iterfind("Annotations/Annotation"), start=1):
        try:
            points = [(float(at.attrib["X"]), float(at.attrib["Y"])) for at in annotation.iterfind("Coordinates/Coordinate")]
            is_area = annotation.attrib.get("Type", "Polygon").lower() in AREAS
            geometry = make_valid(Polygon(points)) if is_area else MultiPoint(points)
        except (KeyError, ValueError) as error:
            raise SettingsError(
                f"{path.name}, annotation {number}: its coordinates cannot be read ({error!r}). Save it again."
            ) from error
        group = annotation.attrib.get("PartOfGroup", "")
        yield Outline("" if group == "None" else group.strip(), geometry, number, True)
