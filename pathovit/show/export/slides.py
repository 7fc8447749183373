"""What an export is made of: finished slides, under the names that their files get."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.files import slide_stem
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.store import FeatureStore
from pathovit.show.heatmap import SCORE, values_of_tiles
from pathovit.show.ome_tiff import read_ome_tiff
from pathovit.show.qupath import Annotation, read_annotations

NAMINGS = ("id", "stem")


@dataclass(frozen=True)
class ExportedSlide:
    """A finished slide, and what its files are called."""

    out: OutFolder
    record: SlideRecord
    name: str  # of its files, without the ending
    file: Path | None = None  # of the slide itself, for formats that need it, if it is where a run found it

    @property
    def slide_id(self) -> str:
        return self.record.slide_id

    @cached_property
    def features(self) -> SlideFeatures:
        """Raises StoreError where they are damaged."""
        return FeatureStore(self.out.slide(self.slide_id), self.out.called(self.record)).read()

    @property
    def map(self) -> Path:
        return self.out.slide(self.slide_id).path / "heatmap.ome.tiff"

    @cached_property
    def drawn(self) -> Mapping[str, NDArray[np.float32]]:
        """Layers (rows, columns) of the map as it was drawn, by name; none for a slide without an answer.

        Raises
        ------
        StoreError : the map is damaged
        """
        if not self.map.is_file():
            return {}
        names, layers = read_ome_tiff(self.map)
        if self.is_outside:  # other programs would show them as scores
            names = tuple(f"outside the model, {name}" if name.startswith(SCORE) else name for name in names)
        return dict(zip(names, layers, strict=True))

    @property
    def is_outside(self) -> bool:
        """Whether the model was not made for it, so that its scores mean nothing."""
        return self.record.prediction is not None and self.record.prediction.strange

    @cached_property
    def regions(self) -> list[Annotation]:
        """Every region that heatmap.geojson outlines."""
        return read_annotations(self.out.slide(self.slide_id).path, self.features)

    @cached_property
    def measured(self) -> Mapping[str, NDArray[np.float32]]:
        """(N,) what the map shows of every tile, by layer; where tiles overlap, the mean of the cells under it."""
        return {name: values_of_tiles(self.features, layer) for name, layer in self.drawn.items() if name != "unread"}


def lacks_map(slide: ExportedSlide) -> str:
    """Why nothing can be written of a slide that is to be drawn; empty if it can."""
    return "" if slide.record.prediction and slide.map.is_file() else "no answer, and so no map"


def named(out: OutFolder, records: Sequence[SlideRecord], naming: str) -> list[ExportedSlide]:
    """Slides, and what their files are called: `id`, the slide_id; `stem`, the name of the slide file without its ending.

    Raises
    ------
    SettingsError : a stem is not known, or two slides share one
    """
    if naming not in NAMINGS:
        raise SettingsError(f"--names {naming!r} is unknown. Use {' or '.join(NAMINGS)}.")
    found = [ExportedSlide(out, record, _stem(out, record) if naming == "stem" else record.slide_id) for record in records]
    shared = defaultdict(list)
    for slide in found:
        shared[slide.name.casefold()].append(slide)  # as Windows and macOS tell files apart
    for same in shared.values():
        if len(same) > 1:
            raise SettingsError(
                f"--names stem: {' and '.join(str(out.called(slide.record)) for slide in same)} would be one file, {same[0].name!r}. "
                "Nothing was written. Use --names id."
            )
    return found


def encoder_name(stored: SlideFeatures, known: Mapping[str, str]) -> str:
    """What another program calls the encoder; our own name, fit for a folder, where it has none for it."""
    own = str(stored.recipe.encoder["encoder"])
    return known.get(own, own).replace(":", "_").replace("/", "_")


def _stem(out: OutFolder, record: SlideRecord) -> str:
    file = record.description.file or out.name_of(record.slide_id)
    if not file:
        raise SettingsError(
            f"--names stem: the file of {record.slide_id} is not known here (names.private.json is missing or closed). Use --names id."
        )
    return slide_stem(file)
