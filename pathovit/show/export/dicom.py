"""Map and answer as DICOM objects that belong to the slide they were made of: a segmentation, and a structured report. The one door to highdicom.

Viewers lay a segmentation over the level whose pixels it shares (slim#280, slim#321), so the map is written on those of the coarsest level:
8 bits, 0 where nothing is known, which no score is. Places of the report are millimetres of the slide. Both objects name the patient, as
the slide does: an archive finds them by that.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import pathovit
from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError, SlideOpenError
from pathovit.files import put_whole
from pathovit.show.export.slides import ExportedSlide, lacks_map
from pathovit.show.heatmap import SCORE
from pathovit.slides.identity import slide_files
from pathovit.text import counted

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

MOST_PIXELS = 16_000_000  # of a segmentation; of a slide that has no coarser level, pixels are put together
SCHEME = "99PATHOVIT"  # of what no dictionary has a code for
NEEDED = (
    *("StudyInstanceUID", "FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence"),
    *("SharedFunctionalGroupsSequence", "ContainerIdentifier", "SpecimenDescriptionSequence"),
)


def cannot_be_dicom(slide: ExportedSlide) -> str:
    """Why nothing can be written of a slide; empty if it can."""
    if slide.record.description.vendor != "dicom":
        return "no DICOM slide, to which such objects belong (wsidicomizer makes one of others)"
    return lacks_map(slide) or (
        "" if slide.file else "not where a run found it: `pathovit run SLIDE --out OUT` notes its new place"
    )


def write_dicom(folder: Path, slide: ExportedSlide) -> None:
    """`NAME.seg.dcm`: a fractional segment for every class, and one for unread tissue; `NAME.sr.dcm`: the answer and the regions of the map.

    Raises
    ------
    SettingsError : highdicom is not installed
    SlideOpenError : the slide does not say what such objects need
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise SettingsError(f'--to dicom: highdicom cannot be imported ({error}). pip install "pathovit[dicom]"') from error

    assert slide.file
    try:
        source = _Source.of(slide.file)
        made = {"seg": _segmentation(slide, source), "sr": _report(slide, source)}
    except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:  # highdicom's, of attributes that it looks for
        raise SlideOpenError(slide.file, f"its DICOM attributes do not do for an object beside it ({error})") from error
    for kind, one in made.items():
        with put_whole(folder / f"{slide.name}.{kind}.dcm") as place:
            one.save_as(place)


@dataclass(frozen=True)
class _Source:
    """The pictures of a DICOM slide, without their pixels."""

    finest: Dataset
    coarsest: Dataset

    @classmethod
    def of(cls, file: Path) -> _Source:
        import pydicom

        found = [pydicom.dcmread(path, stop_before_pixels=True) for path in slide_files(file)]
        levels = sorted((level for level in found if "VOLUME" in level.get("ImageType", ())), key=_width)
        if not levels or any(missing := [name for name in NEEDED if not _says(levels[0], name)]):
            said = (
                f"it does not say {', '.join(missing)}"
                if levels
                else "none of its files is a picture of the tissue (ImageType VOLUME)"
            )
            raise SlideOpenError(file, f"{said}, which DICOM objects beside it need")
        return cls(levels[-1], levels[0])

    @cached_property
    def millimetres(self) -> hd.spatial.ImageToReferenceTransformer:
        """From level-0 pixels to the coordinates of the slide."""
        from highdicom.spatial import ImageToReferenceTransformer

        return ImageToReferenceTransformer.for_image(self.finest, for_total_pixel_matrix=True)


def _says(level: Dataset, name: str) -> bool:
    """Whether an attribute is there, and a sequence holds something."""
    found = level.get(name)
    return bool(found) and (not hasattr(found[0], "elements") or len(found[0]) > 0)


def _width(level: Dataset) -> int:
    return int(level.TotalPixelMatrixColumns)


def _segmentation(slide: ExportedSlide, source: _Source) -> hd.seg.Segmentation:
    import highdicom as hd

    level, classes = source.coarsest, {name: layer for name, layer in slide.drawn.items() if SCORE in name}
    width, height = _width(level), int(level.TotalPixelMatrixRows)
    together = int(np.ceil((width * height / MOST_PIXELS) ** 0.5))
    columns, rows = (max(1, side // together) for side in (width, height))
    spacing, finest = (one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] for one in (level, source.finest))
    down, across = (
        _cells(slide, axis, count, together * float(spacing.PixelSpacing[1 - axis] / finest.PixelSpacing[1 - axis]))
        for axis, count in ((1, rows), (0, columns))
    )
    *scores, unread = (
        np.pad(layer, 1, constant_values=np.nan)[np.ix_(down + 1, across + 1)]
        for layer in (*classes.values(), slide.drawn["unread"])
    )
    known = [np.where(np.isfinite(one), np.maximum(one, 1 / 255), 0) for one in scores]
    names = [name.replace(SCORE, "") for name in classes]
    told = hd.AlgorithmIdentificationSequence("pathovit", _concept("slide transformer"), pathovit.__version__)
    segments = [
        hd.seg.SegmentDescription(number, label[:64], _concept("tile score"), _concept(label), "AUTOMATIC", told)
        for number, label in enumerate((*names, "tissue that could not be read"), 1)
    ]
    return hd.seg.Segmentation(
        [level],
        np.stack([*known, unread > 0], -1)[None].astype(np.float32),
        "FRACTIONAL",
        segments,
        series_number=100,
        pixel_measures=hd.PixelMeasuresSequence([float(side) * together for side in spacing.PixelSpacing], spacing.SliceThickness)
        if together > 1
        else None,
        tile_pixel_array=True,
        content_description=slide.record.prediction.headline[:64] if slide.record.prediction else None,
        content_label="PATHOVIT",
        series_description=f"pathovit map: {RESEARCH_USE}"[:64],
        **_identity(slide, "seg"),
    )


def _cells(slide: ExportedSlide, axis: int, count: int, scale: float) -> NDArray[np.int64]:
    """(count,) the cell of the map under the centre of each pixel, `scale` level-0 pixels wide; -1 outside of it."""
    grid = slide.features.grid
    cells = np.floor(((np.arange(count) + 0.5) * scale - grid.origin[axis]) / grid.stride_l0[axis]).astype(np.int64)
    length = next(iter(slide.drawn.values())).shape[1 - axis]
    return np.where((cells >= 0) & (cells < length), cells, -1)


def _report(slide: ExportedSlide, source: _Source) -> hd.sr.Comprehensive3DSR:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    answer = slide.record.prediction
    assert answer
    told = hd.sr.AlgorithmIdentification("pathovit", pathovit.__version__, [f"model {answer.model}"])
    numbers = {**answer.columns, "novelty": answer.novelty}
    groups = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            hd.sr.TrackingIdentifier(_uid(slide, "answer"), "slide-level answer"),
            algorithm_id=told,
            measurements=[
                hd.sr.Measurement(_concept(name), float(value), codes.UCUM.NoUnits)
                for name, value in numbers.items()
                if value is not None
            ],
            qualitative_evaluations=[hd.sr.QualitativeEvaluation(_concept("answer"), _concept(answer.headline))],
        )
    ]
    for number, region in enumerate(slide.regions):
        outline, holes = np.asarray(region.shape.exterior.coords), len(region.shape.interiors)
        called = f"{region.name} {number + 1}"
        if holes:  # a polygon of DICOM has one line; what is measured is without them
            called += f", and {counted(holes, 'hole')} in it that the outline does not show"
        groups.append(
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                hd.sr.TrackingIdentifier(_uid(slide, f"region {number}"), called),
                hd.sr.ImageRegion3D("POLYGON", source.millimetres(outline), source.finest.FrameOfReferenceUID),
                finding_type=_concept(region.name),
                algorithm_id=told,
                measurements=[
                    hd.sr.Measurement(
                        _concept(name), value, codes.UCUM.SquareMillimeter if "mm^2" in name else codes.UCUM.NoUnits
                    )
                    for name, value in region.measured.items()
                ],
            )
        )
    device = hd.sr.DeviceObserverIdentifyingAttributes(_uid(slide, "device"), "pathovit", "pathovit", "pathovit")
    context = hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device),
        subject_context=hd.sr.SubjectContext.from_image(source.finest),
    )
    content = hd.sr.MeasurementReport(context, hd.sr.CodedConcept("108257001", "SCT", "Anatomic pathology procedure"), groups)
    content[0].ContentSequence.append(
        hd.sr.TextContentItem(codes.DCM.Comment, RESEARCH_USE, hd.sr.RelationshipTypeValues.CONTAINS)
    )
    return hd.sr.Comprehensive3DSR(
        [source.finest],
        content[0],
        series_number=101,
        series_description=f"pathovit answer: {RESEARCH_USE}"[:64],
        **_identity(slide, "sr"),
    )


def _identity(slide: ExportedSlide, kind: str) -> Mapping[str, Any]:
    """Numbers of an object, and who made it. The same content has the same numbers, whenever it is written."""
    return {
        "series_instance_uid": _uid(slide, f"{kind} series"),
        "sop_instance_uid": _uid(slide, f"{kind}"),
        "instance_number": 1,
        "manufacturer": "pathovit",
        "manufacturer_model_name": "pathovit",
        "software_versions": pathovit.__version__,
        "device_serial_number": "none",
    }


def _uid(slide: ExportedSlide, kind: str) -> str:
    """The same for the same map and answer."""
    products = f"{slide.record.sha256} {sorted(slide.record.products.items())} {kind}"
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(products.encode()).hexdigest()).int}"


def _concept(meaning: str) -> hd.sr.CodedConcept:
    """A word that no dictionary has a code for."""
    from highdicom.sr import CodedConcept

    return CodedConcept(meaning[:64], SCHEME, meaning[:64])
