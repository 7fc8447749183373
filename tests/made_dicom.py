"""A DICOM slide that OpenSlide takes, of a real one that it does not: pixels as they are, a place on the glass, a coarser level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

COARSER = 4


def made_dicom(folder: Path, source: Path, number: int, placed: bool = True) -> Path:
    """The file of its finest level; `placed`: it says where on the glass it lies."""
    folder.mkdir(parents=True)
    finest = next(found for path in sorted(source.glob("*.dcm")) if "VOLUME" in (found := dcmread(path)).ImageType)
    for name, role in (("StudyInstanceUID", 1), ("SeriesInstanceUID", 2), ("FrameOfReferenceUID", 3), ("SOPInstanceUID", 4)):
        setattr(finest, name, f"2.25.{number}{role}")
    finest.file_meta.MediaStorageSOPInstanceUID = finest.SOPInstanceUID
    finest.PatientName, finest.PatientID = "Doe^Jane", f"MRN{number}"
    finest.PhotometricInterpretation = "RGB"  # which it says it is not, and is
    frames = finest.pixel_array
    _put(finest, frames)
    measures = finest.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = measures.SpacingBetweenSlices = 0.001  # not 0, which nothing can be turned back through
    if placed:
        corner = Dataset()
        corner.XOffsetInSlideCoordinateSystem, corner.YOffsetInSlideCoordinateSystem = 12.5, 21.25
        finest.TotalPixelMatrixOriginSequence = [corner]
    finest.save_as(folder / "finest.dcm")
    _put_coarser(finest, _side_by_side(frames, finest), folder / "coarser.dcm")
    return folder / "finest.dcm"


def _side_by_side(frames: np.ndarray, level: Dataset) -> np.ndarray:
    """(rows, columns, 3)"""
    rows, columns = int(level.TotalPixelMatrixRows), int(level.TotalPixelMatrixColumns)
    across, down = -(-columns // level.Columns), -(-rows // level.Rows)
    laid = frames.reshape(down, across, level.Rows, level.Columns, 3).swapaxes(1, 2)
    return np.asarray(laid.reshape(down * level.Rows, across * level.Columns, 3)[:rows, :columns])


def _put_coarser(finest: Dataset, pixels: np.ndarray, path: Path) -> None:
    rows, columns = (side // COARSER for side in pixels.shape[:2])
    small = (
        pixels[: rows * COARSER, : columns * COARSER].reshape(rows, COARSER, columns, COARSER, 3).mean((1, 3)).astype(np.uint8)
    )
    finest.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    finest.SOPInstanceUID = finest.file_meta.MediaStorageSOPInstanceUID = f"{finest.SOPInstanceUID}9"
    finest.TotalPixelMatrixRows = finest.Rows = rows
    finest.TotalPixelMatrixColumns = finest.Columns = columns
    finest.NumberOfFrames = 1
    measures = finest.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [float(side) * COARSER for side in measures.PixelSpacing]
    _put(finest, small)
    finest.save_as(path)


def _put(level: Dataset, pixels: np.ndarray) -> None:
    level.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    raw = pixels.tobytes()
    level.PixelData = raw + b"\0" * (len(raw) % 2)
    level["PixelData"].VR, level["PixelData"].is_undefined_length = "OB", False
