"""Files: the slide as Aperio writes it, and the outlines of its tumour beside it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import approximate_polygon, find_contours, points_in_poly

from .fields import Fields
from .paint import JPEG_QUALITY, Scene, encode_jpeg, encode_level, make_scene, small_picture
from .spec import TILE_PX, SampleSpec, downsamples

SPECK_NODES = 2.0  # outlines of less than this area, in nodes, are left out


APERIO = "Aperio Image Library v12.0.15 \r\n"


def describe_level(spec: SampleSpec, downsample: int) -> str:
    """ImageDescription of a level, in the words of an Aperio scanner."""
    width, height = spec.size
    power = f"|AppMag = {round(10 / spec.mpp)}|StripeWidth = 2040|ScanScope ID = MADE|Filename = {spec.name}"
    power += f"|MPP = {spec.mpp:.4f}|Left = 25.0|Top = 20.0"
    if downsample == 1:
        return f"{APERIO}{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q={JPEG_QUALITY}{power}"
    smaller = f"{width // downsample}x{height // downsample}"
    return f"{APERIO}{width}x{height} [0,0 {width}x{height}] (256x256) -> {smaller} JPEG/RGB Q={JPEG_QUALITY}{power}"


def draw_label(spec: SampleSpec) -> Image.Image:
    picture = Image.new("RGB", (400, 440), (250, 250, 247))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((12, 12, 387, 427), outline=(30, 30, 30), width=3)
    pen.text((36, 60), spec.name.replace("-", " ").upper(), fill=(20, 20, 20), font=ImageFont.load_default(46))
    pen.text((36, 150), "MADE TISSUE\nNO PATIENT", fill=(20, 20, 20), font=ImageFont.load_default(34))
    return picture


def draw_macro(spec: SampleSpec, slide: Image.Image) -> Image.Image:
    """The glass slide as the overview camera sees it: the label at the left, the tissue at the right."""
    picture = Image.new("RGB", (1200, 440), (226, 226, 224))
    picture.paste(draw_label(spec).resize((364, 400)), (20, 20))
    tissue = slide.copy()
    tissue.thumbnail((720, 380))
    picture.paste(tissue, (440 + (720 - tissue.width) // 2, (440 - tissue.height) // 2))
    return picture


def write_picture(out: tifffile.TiffWriter, picture: Image.Image, description: str, subfiletype: int) -> None:
    """Add a picture as one JPEG strip, as thumbnail, label and macro are kept."""
    pixels = np.asarray(picture)
    out.write(
        iter([encode_jpeg(pixels)]), shape=pixels.shape, dtype=np.uint8, rowsperstrip=pixels.shape[0],
        photometric="ycbcr", compression="jpeg", subsampling=(2, 2), subfiletype=subfiletype,
        description=description, metadata=None, software=False,
    )  # fmt: skip


def write_level(out: tifffile.TiffWriter, scene: Scene, downsample: int, pool: ThreadPoolExecutor) -> None:
    width, height = (length // downsample for length in scene.spec.size)
    out.write(
        encode_level(scene, downsample, pool), shape=(height, width, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
        photometric="ycbcr", compression="jpeg", subsampling=(2, 2),
        description=describe_level(scene.spec, downsample), metadata=None, software=False,
    )  # fmt: skip


def write_slide(path: Path, scene: Scene) -> None:
    """Write the pages in Aperio's order: level 0, thumbnail, the other levels, label, macro."""
    spec, picture = scene.spec, small_picture(scene)
    thumbnail = picture.copy()
    thumbnail.thumbnail((1024, 768))
    first, *others = downsamples(spec)
    bigtiff = spec.size[0] * spec.size[1] > 4e9  # at under a byte a pixel, smaller slides stay below 4 GB
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as out, ThreadPoolExecutor(2) as pool:
        write_level(out, scene, first, pool)
        size = f"{thumbnail.width}x{thumbnail.height}"
        write_picture(out, thumbnail, f"{APERIO}{spec.size[0]}x{spec.size[1]} -> {size} - ", 0)
        for downsample in others:
            write_level(out, scene, downsample, pool)
        label = draw_label(spec)
        macro = draw_macro(spec, picture)
        write_picture(out, label, f"{APERIO}label {label.width}x{label.height}", 1)
        write_picture(out, macro, f"{APERIO}macro {macro.width}x{macro.height}", 9)


def tumour_rings(fields: Fields) -> list[npt.NDArray[np.float64]]:
    """Closed rings (N, 2) xy in level-0 pixels around the tumour and around the holes in it."""
    inside = np.pad(np.minimum(fields.maps["tumour"], fields.maps["tissue"]), 1, constant_values=-250)
    rings = [approximate_polygon(ring[:, ::-1] - 1, 0.2) for ring in find_contours(inside, 0.0)]
    return [ring * fields.step_px for ring in rings if abs(ring_area(ring)) > SPECK_NODES]


def ring_area(ring: npt.NDArray[np.float64]) -> float:
    """Area of a closed ring; positive around tumour, negative around a hole, as find_contours winds them."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def tumour_features(fields: Fields) -> list[dict[str, object]]:
    """GeoJSON features in QuPath's form, one polygon per separate tumour area."""
    rings = sorted(tumour_rings(fields), key=ring_area)
    polygons = [[ring] for ring in rings if ring_area(ring) > 0]
    for hole in (ring for ring in rings if ring_area(ring) < 0):
        home = next((polygon for polygon in polygons if points_in_poly(hole[:1], polygon[0])[0]), None)
        if home is not None:  # its ring may have been too small to keep
            home.append(hole)
    properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    return [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [np.round(ring, 1).tolist() for ring in polygon]},
            "properties": properties,
        }
        for polygon in reversed(polygons)  # the largest first
    ]


def make_slide(folder: Path, spec: SampleSpec) -> Path:
    """Write NAME.svs and, beside it, the outlines of its tumour in NAME.geojson; return the slide's path."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = make_scene(spec)
    path = folder / f"{spec.name}.svs"
    outlines = {"type": "FeatureCollection", "features": tumour_features(scene.fields)}
    path.with_suffix(".geojson").write_text(json.dumps(outlines) + "\n")
    write_slide(path, scene)
    return path
