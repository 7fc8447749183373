"""What lies in an output folder, as Python users want it: a table, the features of a slide, its map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathovit.errors import NoSlidesError, SettingsError
from pathovit.files import open_text, slide_stem
from pathovit.manifest import Names
from pathovit.outputs.features import SlideFeatures
from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.records import SlideRecord
from pathovit.outputs.store import FeatureStore
from pathovit.show.heatmap import Heatmap
from pathovit.show.ome_tiff import read_ome_tiff

if TYPE_CHECKING:
    from pandas import DataFrame


TEXTS = (
    "slide_id",
    "file",
    "patient",
    "verdict",
    "answer",
    "trial",
    "mpp_source",
    "model",
    "code",
    "reason",
)  # columns of predictions.csv


def load_results(out: Path | str) -> DataFrame:
    """predictions.csv as a table: one row a slide, failed ones with their reason.

    `file` has the names of slide files as far as this computer's user may know them, although the results themselves speak of ids.

    Raises
    ------
    NoSlidesError : there are no results in the folder

    Examples
    --------
    >>> pathovit.load_results(out)[["file", "answer", "verdict"]]
            file  answer verdict
    0    one.svs  tumour      ok
    """
    import pandas as pd

    folder = OutFolder(Path(out))
    if not folder.predictions.is_file():
        raise NoSlidesError(f"{out}: there is no predictions.csv in it. Make one with: pathovit run SLIDES --out {out}")
    with open_text(folder.predictions) as file:
        found = pd.read_csv(
            file, dtype=dict.fromkeys(TEXTS, "object"), keep_default_na=False, na_values=[""]
        )  # patient 007, class NA
    texts = [name for name in TEXTS if name in found]
    found[texts] = found[texts].fillna("")
    known = [folder.name_of(str(row.file)) or folder.name_of(str(row.slide_id)) for row in found.itertuples()]
    found["file"] = [name or given for name, given in zip(known, found["file"], strict=True)]
    return found


def load_features(path: Path | str, slide: str | None = None) -> SlideFeatures:
    """Stored features of a slide.

    Parameters
    ----------
    path : an output folder, or the folder of a slide in it, or the features.zarr there
    slide : of an output folder: slide_id, file name, or file name without its ending; None where it holds one slide only

    Raises
    ------
    NoSlidesError : there is no such slide
    StoreError : its features are damaged

    Examples
    --------
    >>> features = pathovit.load_features(out, "one")
    >>> features.features.shape, features.xy.shape
    ((95, 256), (95, 2))
    """
    out, folder, record = _slide_at(Path(path).absolute(), slide)
    return FeatureStore(folder, out.called(record) if record else Path(folder.slide_id)).read()


def load_heatmap(path: Path | str, slide: str | None = None) -> Heatmap:
    """The map of a slide as it was drawn last; the same arguments as `load_features`.

    Raises
    ------
    NoSlidesError : there is no such slide, or it has no answer
    StoreError : it is damaged

    Examples
    --------
    >>> heatmap = pathovit.load_heatmap(out, "one")
    >>> heatmap.names
    ('score: tumour', 'attention', 'novelty')
    """
    out, folder, record = _slide_at(Path(path).absolute(), slide)
    if not (folder.path / "heatmap.ome.tiff").is_file():
        raise NoSlidesError(f"{folder.path}: there is no map of it. Draw one with: pathovit heatmap SLIDE --out {out.path}")
    names, layers = read_ome_tiff(folder.path / "heatmap.ome.tiff")
    answer = record.prediction if record else None
    return Heatmap.from_layers(load_features(folder.path), names, layers, answer.headline if answer and answer.strange else "")


def _slide_at(path: Path, slide: str | None) -> tuple[OutFolder, SlideFolder, SlideRecord | None]:
    """The output folder, the folder of the slide in it, and its record, if there is one."""
    if path.name == "features.zarr":
        path = path.parent
    if (path / "features.zarr").is_dir():
        folder = SlideFolder(path)
        return OutFolder(path.parent.parent), folder, folder.record()
    out = OutFolder(path)
    if slide and (known := out.slide(slide)).path.parent == out.path / "slides" and (record := known.record()):  # it is an id
        return out, known, record
    records = [(folder, folder.record()) for folder in out.slides()]
    if not records:
        raise NoSlidesError(f"{path}: there is no slide in it. Make some with: pathovit embed SLIDES --out {path}")
    names = [(folder, record, str(out.called(record)) if record else folder.slide_id) for folder, record in records]
    called = {out.slide(known).path: others for known, others in out.called_as().items()}
    fitting = {at.name for at in Names(called).find(slide)[0]} if slide else set()
    wanted = [one for one in names if slide is None or one[0].slide_id in fitting | {slide}]
    if len(wanted) == 1:
        return out, wanted[0][0], wanted[0][1]
    there = ", ".join(name for _, _, name in names[:5]) + (" ..." if len(names) > 5 else "")
    if slide is None:
        raise SettingsError(
            f"{path}: it holds {len(names)} slides ({there}). Say which: load_features({str(path)!r}, {names[0][2]!r})"
        )
    if wanted:
        raise SettingsError(
            f"{path}: {len(wanted)} slides are called {slide!r}. Use the id of one: {', '.join(one[0].slide_id for one in wanted)}"
        )
    for outcome in out.outcomes():
        file = out.name_of(outcome.file) or outcome.file
        if slide in (file, slide_stem(file)):
            raise NoSlidesError(f"{path}: {file} failed: {outcome.reason}")
    raise NoSlidesError(f"{path}: there is no slide {slide!r} in it, but {there}")
