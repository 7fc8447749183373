"""Make again what is missing or damaged in an output folder, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pathovit.errors import SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.outputs.names import Names
from pathovit.outputs.records import RecordError, SlideRecord
from pathovit.outputs.runs import RUN, RunRecord, all_runs, files_at_hand, last_run
from pathovit.outputs.sealed import write_sealed
from pathovit.outputs.verify import RECORDS, Verified
from pathovit.run.drive import Listener
from pathovit.run.folder import Stop, run_jobs, show_results
from pathovit.run.match import Matched
from pathovit.run.plan import SlideJob
from pathovit.run.worker import Failed, guarded
from pathovit.settings import Settings, on_this_machine, settings_from_dict
from pathovit.tables import Say

IN_FEATURES = ("features.zarr/", "features.json", "slide.json")


def repair(out: OutFolder, found: Verified, command: Sequence[str], changed: Listener, say: Say, stop: Stop) -> None:
    """Mend what `verify` found, as far as that can be done; what cannot is said. The folder's lease must be held.

    Chunks of features are embedded again one by one, if their slide is where a run found it; pictures are drawn again from features.

    Raises
    ------
    SettingsError : nobody knows any more by what settings the folder was made
    """
    _drop_damaged_records(out, found, say)
    names = out.names()
    record = _last_run(out).with_names(names)
    settings = on_this_machine(settings_from_dict(dict(record.settings), f"{out.path / RUN}"))
    for fault in found.faults:
        if fault.where.endswith(".partial"):
            (out.path / fault.where).unlink(missing_ok=True)
    at_hand = {digest[:12]: path for digest, path in files_at_hand(out).items()}
    bad = dict.fromkeys(fault.slide_id for fault in found.faults if fault.slide_id)
    jobs = []
    for name in bad:
        known = out.slide(name).record()
        if known and known.finish_recipe and known.finish_recipe.values.get("model_sha256") != record.model_sha256:
            say(
                f"{name}: another model answered it than that of the last run. Mend it with: pathovit run SLIDE --model MODEL --out {out.path}"
            )
            continue
        of_features = known is None or any(_of_features(fault.where, name) for fault in found.faults if fault.slide_id == name)
        if known is not None and known.recipe.is_imported and of_features:
            say(f"{name}: another program made its features. Mend it with: pathovit import FILE --out {out.path}")
            continue
        outlined = known is not None and known.recipe.outlines is not None
        if (path := at_hand.get(name[-12:])) is not None and not outlined:
            jobs.append(_job(path, known, names))
        elif known is None or of_features:
            why, how = (
                ("its tissue is what a person outlined", " --tissue OUTLINES")
                if outlined
                else ("its slide is not where it was", "")
            )
            say(f"{name}: {why}. Mend it with: pathovit run SLIDE{how} --out {out.path}")
        else:
            _draw_again(out, known, settings, record.model, say)
    if jobs:
        run_jobs(jobs, out, Matched(settings, record.model), False, command, changed, say, stop)
    else:
        show_results(out, record)


def _drop_damaged_records(out: OutFolder, found: Verified, say: Say) -> None:
    for fault in found.faults:
        if fault.where.startswith(RECORDS) and fault.where.endswith(".json"):
            (out.path / fault.where).unlink(missing_ok=True)
            say(f"{fault.where}: removed. It {fault.what}, and cannot be made again")


def _last_run(out: OutFolder) -> RunRecord:
    """The newest run that can be read; it is put in its place."""
    try:
        return last_run(out)
    except RecordError:
        kept = all_runs(out)
    if not kept:
        raise SettingsError(
            f"{out.path}: no record of a run is left that can be read. Use `pathovit run` with the slides and settings."
        )
    write_sealed(out.path / RUN, kept[0].to_json())
    return kept[0]


def _job(path: Path, known: SlideRecord | None, names: Names) -> SlideJob:
    """The slide as it was asked for."""
    if known is None:
        given = names.files.get(names.file_id(path))
        return SlideJob(path, patient=given.patient if given else None)
    about = known.description
    mpp = None if about.mpp_source.startswith("metadata") else about.mpp
    return SlideJob(path, mpp, about.mpp_source, known.patient and names.patient_of(known.patient), known.label)


def _of_features(where: str, name: str) -> bool:
    return where.removeprefix(f"slides/{name}/").startswith((*IN_FEATURES, "views/"))


def _draw_again(out: OutFolder, known: SlideRecord, settings: Settings, model: str | None, say: Say) -> None:
    from pathovit.model.slide_model import load_model
    from pathovit.outputs.store import FeatureStore
    from pathovit.run.finish import redraw_slide

    path = out.called(known)
    if model is None:
        say(f"{known.slide_id}: no model is known to draw it by")
        return

    def draw() -> SlideRecord:
        loaded = load_model(model)
        answered = loaded.answer(FeatureStore(out.slide(known.slide_id), path).read(), settings.answer.error_rate)
        return redraw_slide(known, out, replace(settings, heatmap=replace(settings.heatmap, check=False)), answered, None)

    done = guarded(draw, path)
    if isinstance(done, Failed):
        say(f"{known.slide_id}: {done.error}")
