"""One frozen record per step; every default has its home here. Read from one TOML file with a table per record.

A record goes whole into the recipe of what it made and into the RunRecord, so a changed setting is never mistaken
for a finished slide.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pathovit.errors import SettingsError
from pathovit.files import read_bytes


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is found; sizes in micrometres, whatever the slide's levels are.

    Examples
    --------
    >>> pathovit.TissueSettings(mask_mpp=4.0).mask_mpp
    4.0
    """

    mask_mpp: float = 8.0  # um per mask pixel
    min_area_um2: float = 6_000.0  # smaller islands are dust (6,000 um2: a disc of 87 um)
    max_hole_um2: float = 60_000.0  # smaller holes are lumina and fat, part of the tissue
    closing_um: float = 24.0  # joins the walls of fat cells
    opening_um: float = 12.0  # removes threads, edges of bubbles and cover slips
    drop_pen: bool = True  # leave ink on the glass out

    def __post_init__(self) -> None:
        if not 1 <= self.mask_mpp <= 64:
            raise SettingsError(f"tissue.mask_mpp is {self.mask_mpp}, expected 1 to 64 um per pixel.")


@dataclass(frozen=True)
class TileSpec:
    """The tiles asked for. None means: what the encoder was trained at.

    Examples
    --------
    >>> pathovit.TileSpec(tile_px=224, mpp=0.5)  # of 112 um
    TileSpec(tile_px=224, mpp=0.5, stride_px=None, min_coverage=0.25, snap_tolerance=0.02, max_upsampling=1.1)
    """

    tile_px: int | None = None  # side of a tile in pixels
    mpp: float | None = None  # um per pixel of a tile
    stride_px: int | None = None  # None: tile_px, no overlap
    min_coverage: float = 0.25  # share of a tile that must lie on tissue
    snap_tolerance: float = 0.02  # a level within 2 % of the asked mpp is read as it is
    max_upsampling: float = 1.1  # a slide coarser than asked by more than this fails

    def __post_init__(self) -> None:
        if self.tile_px is not None and not 8 <= self.tile_px <= 8192:
            raise SettingsError(f"tiles.tile_px is {self.tile_px}, expected 8 to 8192 pixels.")
        if self.mpp is not None and not 0.05 <= self.mpp <= 20:
            raise SettingsError(f"tiles.mpp is {self.mpp}, expected 0.05 to 20 um per pixel.")
        if self.stride_px is not None and self.stride_px < 1:
            raise SettingsError(f"tiles.stride_px is {self.stride_px}, expected at least 1 pixel.")
        if not 0 <= self.min_coverage <= 1:
            raise SettingsError(f"tiles.min_coverage is {self.min_coverage}, expected 0 to 1.")
        if self.max_upsampling < 1:
            raise SettingsError(f"tiles.max_upsampling is {self.max_upsampling}, expected at least 1.")


def fill_spec(spec: TileSpec, tile_px: int, mpp: float) -> TileSpec:
    """The spec with the encoder's own tile size and mpp where none was asked for.

    Raises
    ------
    SettingsError : the stride does not divide the tile

    Examples
    --------
    >>> pathovit.fill_spec(pathovit.TileSpec(mpp=0.5), tile_px=224, mpp=1.0).mpp
    0.5
    """
    size = spec.tile_px or tile_px
    if size % (spec.stride_px or size):
        raise SettingsError(
            f"tiles.stride_px is {spec.stride_px}; it must divide tile_px ({size}), so that the heatmap has whole cells."
        )
    return dataclasses.replace(spec, tile_px=size, mpp=spec.mpp or mpp, stride_px=spec.stride_px or size)


@dataclass(frozen=True)
class EmbedSettings:
    """How tiles become features."""

    encoder: str = "reference"  # by name (`pathovit encoders`), or its folder
    weights: str | None = None  # a .safetensors file; None: the record's own
    precision: str = "auto"  # auto, fp32, bf16; int8 with openvino
    engine: str = "torch"  # or openvino
    reader: str = "auto"  # auto, direct, device or openslide
    batch_tiles: int | None = None  # None: as many as suit the device (`Encoder.batch_tiles`)
    part_tiles: int = 4096  # one Dask task; whole chunks
    chunk_tiles: int = 1024  # one commit on disk
    max_tiles: int | None = None  # a cap per slide, for trials; spread evenly over the grid
    feature_dtype: str | None = None  # None: the encoder's own; float32 for features that are too large for float16

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16", "int8"):
            raise SettingsError(f"embed.precision is {self.precision!r}, expected auto, fp32, bf16 or int8.")
        if self.engine not in ("torch", "openvino"):
            raise SettingsError(f"embed.engine is {self.engine!r}, expected torch or openvino.")
        if self.precision == "int8" and self.engine != "openvino":
            raise SettingsError("embed.precision int8 needs embed.engine openvino (--engine openvino).")
        if self.reader not in ("auto", "direct", "device", "openslide"):
            raise SettingsError(f"embed.reader is {self.reader!r}, expected auto, direct, device or openslide.")
        if self.chunk_tiles < 1 or (self.batch_tiles is not None and self.batch_tiles < 1):
            raise SettingsError(f"embed.batch_tiles is {self.batch_tiles}, chunk_tiles {self.chunk_tiles}; expected at least 1.")
        if self.part_tiles < 1 or self.part_tiles % self.chunk_tiles:
            raise SettingsError(f"embed.part_tiles ({self.part_tiles}) must be a multiple of {self.chunk_tiles}.")
        if self.feature_dtype not in (None, "float16", "float32"):
            raise SettingsError(f"embed.feature_dtype is {self.feature_dtype!r}, expected float16 or float32.")
        if self.max_tiles is not None and self.max_tiles < 1:
            raise SettingsError(f"embed.max_tiles is {self.max_tiles}, expected at least 1.")


@dataclass(frozen=True)
class AnswerSettings:
    """What is said of a slide."""

    error_rate: float = 0.1  # of answers that may be wrong; what cannot be said at that rate is "unsure"

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise SettingsError(f"answer.error_rate is {self.error_rate}, expected between 0 and 1.")


@dataclass(frozen=True)
class HeatmapSettings:
    """How scores become pictures."""

    model: str = "reference"  # a model folder, or the bundled one
    check: bool = False  # measure whether the heatmap shows what the answer rests on
    hot_score: float = 0.5  # regions at or above this score are outlined
    top_tiles: int = 12  # tiles with the highest scores that are kept as pictures
    overview_px: int = 1600  # longer side of the overview picture
    max_geojson_tiles: int = 250_000  # above this, tiles of one score band are dissolved into polygons

    def __post_init__(self) -> None:
        if not 0 <= self.hot_score <= 1:
            raise SettingsError(f"heatmap.hot_score is {self.hot_score}, expected 0 to 1.")
        if not 64 <= self.overview_px <= 9000 or self.top_tiles < 0:  # of more, what is read for it would not fit
            raise SettingsError(f"heatmap.overview_px is {self.overview_px}, expected 64 to 9000; top_tiles at least 0.")


@dataclass(frozen=True)
class RunSettings:
    """Who does the work, and how bad a slide may be."""

    workers: int | None = None  # None: one per GPU, or one
    readers: int | None = None  # reading threads per worker; None: the cores this process may use
    scheduler: str | None = None  # address of a running Dask scheduler
    scheduler_file: str | None = None  # that a running Dask scheduler wrote
    certificates: str | None = None  # folder of those that the scheduler asks for; None: as Dask is set
    plain_tcp: bool = False  # speak with a scheduler that has none
    read_timeout_s: float = 120.0  # a tile that takes longer costs its worker
    slide_timeout_min: float | None = None  # a slide that takes longer in all fails; None: no limit
    max_unreadable: float = 0.01  # share of tissue tiles; above it the slide counts as degraded
    device: str = "auto"  # auto, cpu, cuda, mps
    keep_names: bool = False  # of files and patients, in results; else in names.private.json alone
    full_check: bool = False  # look at every byte of slides that are done already; else at 64 MB of each

    def __post_init__(self) -> None:
        for name in ("workers", "readers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"run.{name} is {value}, expected at least 1.")
        if not self.read_timeout_s > 0:
            raise SettingsError(f"run.read_timeout_s is {self.read_timeout_s}, expected above 0 seconds.")
        if self.slide_timeout_min is not None and not self.slide_timeout_min > 0:
            raise SettingsError(f"run.slide_timeout_min is {self.slide_timeout_min}, expected above 0 minutes.")
        if not 0 <= self.max_unreadable <= 1:
            raise SettingsError(f"run.max_unreadable is {self.max_unreadable}, expected 0 to 1.")


@dataclass(frozen=True)
class TrainSettings:
    """How a slide model is fitted."""

    kind: str = "slide_transformer"  # or a baseline: mean, abmil, clam_sb, transformer, transmil
    epochs: int = 30
    patience: int = 10  # epochs without a better validation loss
    learning_rate: float = 2e-4
    weight_decay: float = 0.05
    averaging: float = 0.97  # of the weights over steps; few patients make single steps jumpy
    bags_per_step: int = 4  # at most: of few patients each is a step of its own
    max_tiles: int = 4096  # of a bag in one training step; validation sees all
    feature_noise: float = 1.0  # of a feature's spread: few patients have few tiles, which must not be learned by heart
    tile_dropout: float = 0.3  # share of tiles left out of a bag, drawn anew each time
    tile_loss: float = 0.5  # weight of the loss on single tiles (slide_transformer, targets with classes)
    region_loss: float = 1.0  # weight of the loss on tiles in regions
    top_share: float = 0.02  # of a bag's tiles that must show its class
    label_smoothing: float = 0.1  # keeps scores from saturating, so that the map is graded
    class_weights: bool = True  # rare classes count as much as frequent ones
    width: int = 128
    depth: int = 1
    validation_share: float = 0.2
    test_share: float = 0.2
    precision: str = "auto"  # auto (bf16 on a GPU), fp32 or bf16
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"train.epochs is {self.epochs}, expected at least 1.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise SettingsError(f"train.precision is {self.precision!r}, expected auto, fp32 or bf16.")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise SettingsError(f"train.{name} is {getattr(self, name)}, expected 0 to 0.5.")
        if not self.validation_share:
            raise SettingsError("train.validation_share is 0; early stopping and calibration need a validation part.")


@dataclass(frozen=True)
class AggregatorConfig:
    """The shape of an aggregator."""

    feature_dim: int
    outputs: int  # logits C
    width: int = 128
    depth: int = 1  # pairs of a plain and a shifted block
    heads: int = 4
    kind: str = "slide_transformer"  # or one of the baselines


@dataclass(frozen=True)
class Settings:
    """All settings of a run, one record per step.

    Examples
    --------
    >>> pathovit.Settings(tiles=pathovit.TileSpec(mpp=0.5)).tiles.mpp
    0.5
    """

    tissue: TissueSettings = field(default_factory=TissueSettings)
    tiles: TileSpec = field(default_factory=TileSpec)
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    answer: AnswerSettings = field(default_factory=AnswerSettings)
    heatmap: HeatmapSettings = field(default_factory=HeatmapSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)


def load_settings(path: Path | str) -> Settings:
    """Settings from a TOML file. Unknown names are refused, and the nearest known name is offered.

    Raises
    ------
    SettingsError : it is no TOML file, or says what is none of our settings

    Examples
    --------
    >>> _ = Path("my.toml").write_text("[tiles]\\nmpp = 0.5")
    >>> pathovit.load_settings("my.toml").tiles.mpp
    0.5
    """
    try:
        tables = tomllib.loads(read_bytes(Path(path)).decode("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}. Give an existing TOML file with --settings.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}.") from error
    return settings_from_dict(tables, str(path))


def on_this_machine(settings: Settings) -> Settings:
    """Settings of a run that is over, for another one here: a cluster of those days is gone, and maps are not checked each time."""
    run = dataclasses.replace(settings.run, scheduler=None, scheduler_file=None, certificates=None, plain_tcp=False)
    return dataclasses.replace(settings, run=run, heatmap=dataclasses.replace(settings.heatmap, check=False))


def as_settings(given: Settings | Mapping[str, Any] | Path | str | None) -> Settings:
    """Settings from Python: a record, tables such as {"tiles": {"mpp": 0.5}}, a TOML file, or None for the defaults."""
    if isinstance(given, Path | str):
        return load_settings(Path(given))
    if isinstance(given, Mapping):
        return settings_from_dict(dict(given), "settings")
    return given or Settings()


def settings_from_dict(tables: dict[str, Any], origin: str) -> Settings:
    """Settings from nested tables, e.g. {"tiles": {"mpp": 0.5}}; `origin` is named in errors."""
    records = {f.name: f.default_factory for f in dataclasses.fields(Settings)}
    _refuse_unknown(set(tables), set(records), origin, "table")
    made: dict[str, Any] = {}
    for name, values in tables.items():
        record = records[name]
        assert callable(record)
        if not isinstance(values, dict):
            raise SettingsError(f"{origin}: [{name}] must be a table.")
        known = {f.name for f in dataclasses.fields(record)}  # type: ignore[arg-type]  # a dataclass type, by construction
        _refuse_unknown(set(values), known, f"{origin}, [{name}]", "setting")
        hints = get_type_hints(record)
        made[name] = record(**{key: _typed(value, hints[key], f"{origin}, [{name}] {key}") for key, value in values.items()})
    return Settings(**made)


def _typed(value: Any, hint: Any, origin: str) -> Any:
    """The value, if it is of one of the types of a hint (`int | None`); a whole number serves as any number."""
    kinds = get_args(hint) or (hint,)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if value is None and type(None) in kinds:
        return None
    said = " or ".join(NAMES[kind] for kind in kinds if kind in NAMES)
    raise SettingsError(f"{origin} is {value!r}, expected {said}.")


NAMES = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}


def _refuse_unknown(given: set[str], known: set[str], origin: str, kind: str) -> None:
    for name in sorted(given - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
        raise SettingsError(f"{origin}: unknown {kind} {name!r}.{hint}")
