"""What was given, to slides that are to be done: files and folders, with what a manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.files import slide_stem
from pathovit.manifest import Names as TableNames
from pathovit.manifest import existing_slide, read_manifest, rows_of_slides
from pathovit.outputs.names import Names
from pathovit.run.plan import SlideJob, with_mpp
from pathovit.slides.find import find_slides
from pathovit.slides.outlines import files_in, stem_of
from pathovit.tables import Say

MAGNIFICATIONS = (5, 10, 20, 40, 60, 63, 80, 100)  # that users give where micrometres per pixel are asked for


def find_jobs(
    slides: Sequence[Path] | None, mpp: float | None = None, manifest: Path | None = None, say: Say = lambda text: None,
    tissue: Path | None = None,
) -> list[SlideJob]:  # fmt: skip
    """SlideJobs for the slides given, with what the manifest says of them; without slides, the manifest's.

    Parameters
    ----------
    tissue : a file of outlines, or a folder of them, named after slides: their tissue is not looked for

    Raises
    ------
    SettingsError : nothing given, a pixel size that is none, a manifest that cannot be understood
    NoSlidesError : no slide was found
    """
    rows = read_manifest(manifest, say) if manifest else []
    if not slides and not rows:
        raise SettingsError("No slide given. Give slide files, a folder, or a --manifest.")
    if mpp is not None:
        check_mpp(mpp)
    if not slides:
        rows = [replace(row, slide=existing_slide(row), in_folder=True) for row in rows]
    found: dict[Path, Path] = {}
    for path in find_slides(slides or [row.slide for row in rows], say):
        found.setdefault(path.resolve(), path)
    given = list(found.values())
    told = rows_of_slides(rows, given, manifest, say) if manifest else {}
    jobs = []
    for path in given:
        job = SlideJob(path.absolute())  # workers may run in another folder
        if (row := told.get(path)) is not None:
            job = SlideJob(path.absolute(), row.mpp, "manifest", row.patient, row.label("label"))
        jobs.append(with_mpp(job, mpp))
    return _outlined(jobs, tissue, say) if tissue else jobs


def _outlined(jobs: Sequence[SlideJob], tissue: Path, say: Say) -> list[SlideJob]:
    """The jobs with the files that outline their tissue."""
    if not tissue.exists():
        raise SettingsError(f"--tissue {tissue}: there is no such file or folder.")
    files = files_in(tissue) if tissue.is_dir() else [tissue]
    names = TableNames({job.path: [job.path.name, slide_stem(job.path.name)] for job in jobs})
    found: dict[Path, Path] = {}
    for file in files:
        fitting, _ = names.find(stem_of(file))
        if len(fitting) > 1 or (fitting and fitting[0] in found):
            both = " and ".join(map(str, fitting if len(fitting) > 1 else [found[fitting[0]].name, file.name]))
            raise SettingsError(f"--tissue {file}: {both} cannot be told apart. Keep one of them.")
        if fitting:
            found[fitting[0]] = file.absolute()
    if not found:
        raise SettingsError(f"--tissue {tissue}: no file in it (GeoJSON, or XML of ASAP) is named after one of the slides.")
    if len(found) < len(jobs):
        say(f"{len(found)} of {len(jobs)} slides have their tissue outlined; that of the others is looked for")
    return [replace(job, outlines=found.get(job.path)) for job in jobs]


def told(jobs: Sequence[SlideJob], names: Names | None) -> list[SlideJob]:
    """The same slides, with what results may tell of their names.

    Parameters
    ----------
    names : where it is noted what ids stand for; None: results tell names
    """
    if names is None:
        return [replace(job, file=job.path.name) for job in jobs]
    return [
        replace(job, patient=job.patient and names.patient_id(job.patient), file_id=names.note(job.path, job.patient))
        for job in jobs
    ]


def check_mpp(mpp: float) -> None:
    """Refuse a pixel size that is a magnification, or none."""
    if not isinstance(mpp, Real):
        raise SettingsError(f"mpp is {mpp!r}, expected a number: um per pixel.")
    if not mpp > 0:
        raise SettingsError(f"--mpp is {mpp:g}, expected above 0.")
    if mpp in MAGNIFICATIONS:
        raise SettingsError(
            f"--mpp {mpp:g} looks like a magnification. Give micrometres per pixel: {mpp:g}x is about {10 / mpp:g} with most scanners."
        )
