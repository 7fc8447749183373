"""Options that several commands share, declared once, and how they become settings."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathovit.errors import NoSlidesError, SettingsError, SlideError
from pathovit.settings import Settings, load_settings
from pathovit.text import plain

if TYPE_CHECKING:
    from pathovit.outputs.features import SlideFeatures
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.records import SlideRecord
    from pathovit.run.plan import SlideJob

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
Tissue = Annotated[
    Path | None,
    typer.Option(
        "--tissue", help="Outlines of tissue (GeoJSON of QuPath, XML of ASAP), named after slides, instead of looking for it."
    ),
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Encoder by name (see `pathovit encoders`), or any timm name.")
]
Pool = Annotated[
    str | None, typer.Option("--pool", help="Of the encoder's tokens: cls, mean or cls_mean.  \\[default: as it was published]")
]
Weights = Annotated[str | None, typer.Option("--weights", help="Weights for the encoder, a .safetensors file.")]
TilePx = Annotated[int | None, typer.Option("--tile-px", help="Tile side in pixels.  \\[default: the encoder's own]")]
TileMpp = Annotated[float | None, typer.Option("--tile-mpp", help="Resolution of tiles.  \\[default: the encoder's own]")]
MinCoverage = Annotated[
    float | None, typer.Option("--min-coverage", help="Share of a tile that must be tissue.  \\[default: 0.25]")
]
MaxUpsampling = Annotated[
    float | None, typer.Option("--max-upsampling", help="Accept slides coarser than the tiles by this factor.  \\[default: 1.1]")
]
MaxTiles = Annotated[int | None, typer.Option("--max-tiles", help="At most so many tiles per slide, spread evenly: for trials.")]
ErrorRate = Annotated[
    float | None,
    typer.Option("--error-rate", help="Share of answers that may be wrong; else the answer is unsure.  \\[default: 0.1]"),
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto, fp32 or bf16; int8 with --engine openvino.  \\[default: auto]")
]
Engine = Annotated[str | None, typer.Option("--engine", help="torch, or openvino for CPUs.  \\[default: torch]")]
BatchTiles = Annotated[
    int | None,
    typer.Option("--batch-tiles", help="Tiles in one pass of the encoder.  \\[default: 8 of 224 px on a CPU, 256 on a GPU]"),
]
Reader = Annotated[
    str | None,
    typer.Option(
        "--reader",
        help="auto, direct (compressed tiles, without OpenSlide), device (the GPU decodes them) or openslide.  \\[default: auto]",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.  \\[default: auto]")]
Workers = Annotated[int | None, typer.Option("--workers", help="Worker processes.  \\[default: one per GPU, or one]")]
Readers = Annotated[int | None, typer.Option("--readers", help="Reading threads per worker.  \\[default: the cores allowed]")]
FullCheck = Annotated[
    bool | None, typer.Option("--full-check", help="Look at every byte of slides that are done already, not at 64 MB of each.")
]
KeepNames = Annotated[
    bool | None,
    typer.Option("--keep-names", help="Write names of files and patients into results, not into a private file beside them."),
]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Address of a running Dask scheduler.")]
SchedulerFile = Annotated[str | None, typer.Option("--scheduler-file", help="Scheduler file of a running Dask cluster.")]
Certificates = Annotated[
    str | None, typer.Option("--certificates", help="Folder of the certificates of that cluster (`pathovit certificates`).")
]
PlainTcp = Annotated[
    bool | None, typer.Option("--plain-tcp", help="Use a scheduler without encryption: whoever reaches it can act as you.")
]
FeatureDtype = Annotated[
    str | None,
    typer.Option("--feature-dtype", help="float16, or float32 for features too large for that.  \\[default: the encoder's own]"),
]
HotScore = Annotated[float | None, typer.Option("--hot-score", help="Outline regions at or above this score.  \\[default: 0.5]")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Model folder made by `pathovit train`.  \\[default: the bundled one]")
]
Check = Annotated[
    bool | None, typer.Option("--check", help="Measure whether the heatmap shows what the answer rests on (minutes a slide).")
]
Join = Annotated[
    bool, typer.Option("--join", help="Work on the same output together with other runs: each slide is done by one of them.")
]
TellNames = Annotated[
    bool,
    typer.Option("--keep-names", help="Write names of patients into tables and pictures, not into a private file beside them."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Make the features of all slides given anew, in the place of those that are there.")
]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]


@dataclass(frozen=True)
class Shared:
    """An option, and the setting that it overrides."""

    kind: Any  # Annotated, as Typer takes it
    record: str  # of Settings
    field: str


# By the name of the parameter. An option left out leaves the default to its record.
SHARED = {
    "model": Shared(ModelName, "heatmap", "model"),
    "encoder": Shared(EncoderName, "embed", "encoder"),
    "weights": Shared(Weights, "embed", "weights"),
    "tile_px": Shared(TilePx, "tiles", "tile_px"),
    "tile_mpp": Shared(TileMpp, "tiles", "mpp"),
    "min_coverage": Shared(MinCoverage, "tiles", "min_coverage"),
    "max_upsampling": Shared(MaxUpsampling, "tiles", "max_upsampling"),
    "max_tiles": Shared(MaxTiles, "embed", "max_tiles"),
    "hot_score": Shared(HotScore, "heatmap", "hot_score"),
    "error_rate": Shared(ErrorRate, "answer", "error_rate"),
    "check": Shared(Check, "heatmap", "check"),
    "precision": Shared(Precision, "embed", "precision"),
    "engine": Shared(Engine, "embed", "engine"),
    "batch_tiles": Shared(BatchTiles, "embed", "batch_tiles"),
    "feature_dtype": Shared(FeatureDtype, "embed", "feature_dtype"),
    "reader": Shared(Reader, "embed", "reader"),
    "device": Shared(Device, "run", "device"),
    "workers": Shared(Workers, "run", "workers"),
    "readers": Shared(Readers, "run", "readers"),
    "keep_names": Shared(KeepNames, "run", "keep_names"),
    "full_check": Shared(FullCheck, "run", "full_check"),
    "scheduler": Shared(Scheduler, "run", "scheduler"),
    "scheduler_file": Shared(SchedulerFile, "run", "scheduler_file"),
    "certificates": Shared(Certificates, "run", "certificates"),
    "plain_tcp": Shared(PlainTcp, "run", "plain_tcp"),
}
OF_SLIDES = ("encoder", "tile_px", "tile_mpp", "tissue", "min_coverage", "max_upsampling", "max_tiles", "reader")
OF_THE_MACHINE = (
    "weights",
    "precision",
    "engine",
    "batch_tiles",
    "feature_dtype",
    "device",
    "workers",
    "readers",
    "full_check",
    "keep_names",
)
OF_A_CLUSTER = ("scheduler", "scheduler_file", "certificates", "plain_tcp")
OF_ANSWERS = ("model", "hot_score", "error_rate")


@dataclass(frozen=True)
class Asked:
    """What was given of the shared options: which slides, and the settings with every option put over them."""

    given: dict[str, Any]  # option -> value, of those that were given
    settings_file: Path | None
    slides: list[Path] | None
    mpp: float | None
    manifest: Path | None
    tissue: Path | None = None

    def settings(self, before: Settings | None = None) -> Settings:
        """Settings of the file (or those `before`), with every option that was given put over them."""
        return merge_settings(self.settings_file, before, **self.given)

    def jobs(self) -> list[SlideJob]:
        from pathovit.run.jobs import find_jobs

        return find_jobs(self.slides, self.mpp, self.manifest, note, self.tissue)


def takes_slides(*names: str, default: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command on slides: it gets the shared options of these names, those of slides and manifest, and --settings as one `asked`.

    Parameters
    ----------
    default : what an option is that is not given, where that is not what `run` takes
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "asked"]
        shared = {"slides": MaybeSlides, "mpp": Mpp, "manifest": ManifestFile}
        shared |= {name: _with_default(SHARED[name].kind, default) for name in SHARED if name in names}
        shared |= {"tissue": Tissue} if "tissue" in names else {}
        shared |= {"pool": Pool, "settings_file": SettingsFile} if "encoder" in names else {"settings_file": SettingsFile}
        added = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for n, kind in shared.items()
        ]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            found = {name: values.pop(name) for name in shared}
            given = {name: value for name, value in found.items() if name in SHARED and value is not None}
            if pool := found.get("pool"):
                given["encoder"] = _pooled(given.get("encoder"), pool)
            asked = Asked(given, found["settings_file"], found["slides"], found["mpp"], found["manifest"], found.get("tissue"))
            command(asked=asked, **values)

        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        first = [p for p in own if _is_argument(p)]
        parameters = [
            *first,
            added[0],
            *(p for p in own if p not in first),
            *added[1:],
        ]  # its arguments, slides, its options, shared
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what Typer reads
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return wrap


def _with_default(kind: Any, default: str) -> Any:
    if not default:
        return kind
    option = copy.copy(kind.__metadata__[0])
    option.help = re.sub(r"\[default: .*\]", f"[default: {default}]", option.help)
    return Annotated[kind.__origin__, option]


def _pooled(encoder: str | None, pool: str) -> str:
    if encoder is None:
        raise SettingsError("--pool says what is done with the tokens of an encoder: name it with --encoder.")
    return f"{encoder}:{pool}"


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(isinstance(said, typer.models.ArgumentInfo) for said in getattr(parameter.annotation, "__metadata__", ()))


def merge_settings(file: Path | None, before: Settings | None = None, **options: Any) -> Settings:
    """Settings from the file (or those `before`), with every option that was given put over them."""
    settings = load_settings(file) if file else before or Settings()
    given: dict[str, dict[str, object]] = {}  # by record: what does not fit alone may fit together
    for name, value in options.items():
        if value is not None:
            given.setdefault(SHARED[name].record, {})[SHARED[name].field] = value
    return replace(settings, **{record: replace(getattr(settings, record), **values) for record, values in given.items()})


def note(text: str) -> None:
    """A sentence on what was understood, on stderr."""
    sys.stderr.write(f"pathovit: {plain(text)}\n")


def refused_slides(out: OutFolder) -> list[str]:
    """Slides whose records cannot be read; each is named with its reason.

    Raises
    ------
    NoSlidesError : there is no slide at all
    """
    records, refused = out.finished()
    for one in refused:
        note(f"{one.slide_id}: {one.reason}")
    if not records and not refused:
        raise NoSlidesError(f"{out.path}: no finished slide in it. Make some with: pathovit embed SLIDES --out {out.path}")
    return [one.slide_id for one in refused]


def stored_slides(features: Path, damaged: list[str]) -> Iterator[tuple[SlideRecord, SlideFeatures]]:
    """Record and features of every finished slide of a folder; slides that cannot be read are named and added to `damaged`.

    Raises
    ------
    NoSlidesError : there is none
    """
    from pathovit.outputs.folder import OutFolder
    from pathovit.outputs.store import FeatureStore

    out = OutFolder(features)
    damaged += refused_slides(out)
    for record in out.finished()[0]:
        try:
            slide = FeatureStore(out.slide(record.slide_id), out.called(record)).read()
        except SlideError as error:
            damaged.append(record.slide_id)
            note(str(error))
            continue
        yield record, slide
