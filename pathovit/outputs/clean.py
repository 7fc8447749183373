"""What an output folder can do without, and its removal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pathovit.outputs.folder import OutFolder, SlideFolder
from pathovit.outputs.records import DONE
from pathovit.outputs.sealed import write_sealed
from pathovit.text import counted

REVIEW = "review.jsonl"  # of a slide that somebody has reviewed: it is part of one record of all

Find = Callable[[OutFolder], Iterator[Path]]


@dataclass(frozen=True)
class Spare:
    """Files of one kind, and what is lost with them."""

    what: str
    lost: str
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        files = (file for path in self.paths for file in ([path] if path.is_file() else path.rglob("*")))
        return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def spare(out: OutFolder, *, older: bool, features: bool) -> list[Spare]:
    """What can go; half-written files always can.

    Parameters
    ----------
    older : slides whose file has other content now
    features : of all slides
    """
    found = [Spare("half written by runs that were killed", "nothing", tuple(_half_written(out)))]
    if older:
        gone = [*_older(out)]
        spared = [path for path in gone if not (path / REVIEW).exists()]
        stay = (
            f" (those of {counted(len(gone) - len(spared), 'slide')} were reviewed, and stay)" if len(spared) < len(gone) else ""
        )
        found.append(Spare(f"results of files that have other content now{stay}", "these older answers", tuple(spared)))
    if features:
        records = [record for one in out.slides() if (record := one.record()) and one.features.is_dir()]
        kept = [record.slide_id for record in records if not record.recipe.is_imported]  # others cannot be made again
        what = "features" + (
            f" (those of {counted(len(records) - len(kept), 'slide')} were imported, and stay)"
            if len(kept) < len(records)
            else ""
        )
        paths = tuple(out.slide(name).features for name in kept)
        found.append(Spare(what, "predict, teach, train and other models need them: slides would be embedded again", paths))
    return found


def _half_written(out: OutFolder) -> Iterator[Path]:
    for path in sorted(out.path.rglob("*.partial")):
        if not path.is_symlink() and not any(parent.name.endswith(".partial") for parent in path.parents):
            yield path


def _older(out: OutFolder) -> Iterator[Path]:
    gone = out.superseded()
    return (folder.path for folder in out.slides() if (record := folder.record()) and record.sha256 in gone)


def remove(spared: Spare) -> None:
    """Remove it. Where features go, the record of the slide no longer speaks of them."""
    for path in spared.paths:
        folder = SlideFolder(path.parent)
        record = folder.record() if path == folder.features else None
        if record:
            of_features = (f"{folder.features.name}/", "features.json")
            kept = {name: digest for name, digest in record.products.items() if not name.startswith(of_features)}
            write_sealed(folder.path / DONE, replace(record, products=kept).to_json())
            (folder.path / "features.json").unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
