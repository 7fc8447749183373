"""Options that several commands share, and how they become settings and jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathovit.errors import NoSlidesError, SettingsError, SlideError
from pathovit.manifest import existing_slide, read_manifest, rows_of_slides
from pathovit.settings import Settings, load_settings
from pathovit.text import plain

if TYPE_CHECKING:
    from pathovit.features import SlideFeatures

Slides = Annotated[list[Path], typer.Argument(help="Slide files, or folders of them.", show_default=False)]
MaybeSlides = Annotated[list[Path] | None, typer.Argument(help="Slide files, or folders of them.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
SettingsFile = Annotated[Path | None, typer.Option("--settings", help="TOML file; options given here win over it.")]
Mpp = Annotated[float | None, typer.Option("--mpp", help="Micrometres per level-0 pixel, instead of what the files say.")]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest", help="CSV with columns slide, mpp, patient, label; slides by name, or by path from the CSV's folder."
    ),
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Encoder by name (see `pathovit encoders`), or any timm name.")
]
Weights = Annotated[str | None, typer.Option("--weights", help="Weights for the encoder, a .safetensors file.")]
TilePx = Annotated[int | None, typer.Option("--tile-px", help="Tile side in pixels.  [default: the encoder's own]")]
TileMpp = Annotated[float | None, typer.Option("--tile-mpp", help="Resolution of tiles.  [default: the encoder's own]")]
MinCoverage = Annotated[
    float | None, typer.Option("--min-coverage", help="Share of a tile that must be tissue.  [default: 0.25]")
]
MaxUpsampling = Annotated[
    float | None, typer.Option("--max-upsampling", help="Accept slides coarser than the tiles by this factor.  [default: 1.1]")
]
MaxTiles = Annotated[int | None, typer.Option("--max-tiles", help="At most so many tiles per slide, spread evenly: for trials.")]
ErrorRate = Annotated[
    float | None,
    typer.Option("--error-rate", help="Share of answers that may be wrong; else the answer is unsure.  [default: 0.1]"),
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto, fp32 or bf16; int8 with --engine openvino.  [default: auto]")
]
Engine = Annotated[str | None, typer.Option("--engine", help="torch, or openvino for CPUs.  [default: torch]")]
BatchTiles = Annotated[
    int | None,
    typer.Option("--batch-tiles", help="Tiles in one pass of the encoder.  [default: 8 of 224 px on a CPU, 256 on a GPU]"),
]
Reader = Annotated[
    str | None,
    typer.Option(
        "--reader",
        help="auto, direct (compressed tiles, without OpenSlide), device (the GPU decodes them) or openslide.  [default: auto]",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.  [default: auto]")]
Workers = Annotated[int | None, typer.Option("--workers", help="Worker processes.  [default: one per GPU, or one]")]
Readers = Annotated[int | None, typer.Option("--readers", help="Reading threads per worker.  [default: the cores allowed]")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Address of a running Dask scheduler.")]
SchedulerFile = Annotated[str | None, typer.Option("--scheduler-file", help="Scheduler file of a running Dask cluster.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace features made by other settings.")]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]

MAGNIFICATIONS = (5, 10, 20, 40, 60, 63, 80, 100)  # that users give where micrometres per pixel are asked for

# Option name -> (record, field). An option left out leaves the default to its record.
HOMES = {
    "encoder": ("embed", "encoder"),
    "weights": ("embed", "weights"),
    "precision": ("embed", "precision"),
    "engine": ("embed", "engine"),
    "batch_tiles": ("embed", "batch_tiles"),
    "max_tiles": ("embed", "max_tiles"),
    "reader": ("embed", "reader"),
    "tile_px": ("tiles", "tile_px"),
    "tile_mpp": ("tiles", "mpp"),
    "min_coverage": ("tiles", "min_coverage"),
    "max_upsampling": ("tiles", "max_upsampling"),
    "model": ("heatmap", "model"),
    "hot_score": ("heatmap", "hot_score"),
    "error_rate": ("answer", "error_rate"),
    "check": ("heatmap", "check"),
    "workers": ("run", "workers"),
    "readers": ("run", "readers"),
    "device": ("run", "device"),
    "scheduler": ("run", "scheduler"),
    "scheduler_file": ("run", "scheduler_file"),
}


def merge_settings(file: Path | None, before: Settings | None = None, **options: Any) -> Settings:
    """Settings from the file (or those `before`), with every option that was given put over them."""
    settings = load_settings(file) if file else before or Settings()
    for name, value in options.items():
        if value is not None:
            record, field = HOMES[name]
            settings = replace(settings, **{record: replace(getattr(settings, record), **{field: value})})
    return settings


def find_jobs(slides: Sequence[Path] | None, mpp: float | None, manifest: Path | None) -> list[Any]:
    """SlideJobs for the slides given, with what the manifest says of them; without slides, the manifest's."""
    from pathovit.pipeline import SlideJob, with_mpp
    from pathovit.preflight import find_slides

    rows = read_manifest(manifest, note) if manifest else []
    if not slides and not rows:
        raise SettingsError("No slide given. Give slide files, a folder, or a --manifest.")
    if mpp is not None:
        check_mpp(mpp)
    if not slides:
        rows = [replace(row, slide=existing_slide(row), in_folder=True) for row in rows]
    found: dict[Path, Path] = {}
    for path in find_slides(slides or [row.slide for row in rows]):
        found.setdefault(path.resolve(), path)
    given = list(found.values())
    told = rows_of_slides(rows, given, manifest, note) if manifest else {}
    jobs = []
    for path in given:
        job = SlideJob(path.absolute())  # workers may run in another folder
        if (row := told.get(path)) is not None:
            job = SlideJob(path.absolute(), row.mpp, "manifest", row.patient, row.label("label"))
        jobs.append(with_mpp(job, mpp))
    return jobs


def note(text: str) -> None:
    """A sentence on what was understood, on stderr."""
    sys.stderr.write(f"pathovit: {plain(text)}\n")


def check_mpp(mpp: float) -> None:
    """Refuse a pixel size that is a magnification, or none."""
    if not mpp > 0:
        raise SettingsError(f"--mpp is {mpp:g}, expected above 0.")
    if mpp in MAGNIFICATIONS:
        raise SettingsError(
            f"--mpp {mpp:g} looks like a magnification. Give micrometres per pixel: {mpp:g}x is about {10 / mpp:g} with most scanners."
        )


def stored_slides(features: Path, damaged: list[str]) -> Iterator[tuple[dict[str, Any], SlideFeatures]]:
    """slide.json and features of every finished slide of a folder; slides that cannot be read are named and added to `damaged`.

    Raises
    ------
    NoSlidesError : there is none
    """
    from pathovit.report import done_slides, refused_records
    from pathovit.store import FeatureStore

    slides = done_slides(features)
    for slide_id, fault in refused_records(features).items():
        damaged.append(slide_id)
        note(f"{slide_id}: {fault}")
    if not slides and not damaged:
        raise NoSlidesError(f"{features}: no finished slide in it. Make some with: pathovit embed SLIDES --out {features}")
    for done in slides:
        slide_id = done["slide"]["slide_id"]
        try:
            slide = FeatureStore(features / "slides" / slide_id, Path(done["slide"]["file"])).read(slide_id)
        except SlideError as error:
            damaged.append(slide_id)
            sys.stderr.write(f"pathovit: {plain(str(error))}\n")
            continue
        yield done, slide


def weights_path(settings: Settings) -> Settings:
    """Paths made absolute, for workers that may run in another folder."""
    weights = settings.embed.weights
    if weights and weights != "random":
        settings = replace(settings, embed=replace(settings.embed, weights=str(Path(weights).resolve())))
    return settings
