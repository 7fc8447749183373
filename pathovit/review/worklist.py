"""What the page shows of a folder and of a slide, as JSON. What a reader may not see yet is not in it."""

from __future__ import annotations

from pathovit import RESEARCH_USE
from pathovit.outputs.records import A_MAP
from pathovit.review.about import about
from pathovit.review.desk import CAUSES, Case, Desk, Group, Whereabouts, counts
from pathovit.review.heat import Heat
from pathovit.review.opinion import Opinion, runs_of
from pathovit.review.pixels import ServedLevel
from pathovit.review.readers import Reader
from pathovit.slides.slide import Slide
from pathovit.text import plain

ASKED_FOR = (Group.UNSURE, Group.STRANGE)  # groups whose numbers are shown only when they are asked for
NO_FILE = {
    Whereabouts.MISSING: "The slide is not where it was when it was read. Put it back, or start the review with --slides FOLDER.",
    Whereabouts.CHANGED: "The file is not the one that was read: its content has changed. Run pathovit on it again.",
}


def worklist(desk: Desk, reader: Reader, blind: bool) -> dict[str, object]:
    """All slides of the folder, with what the reader has done on each."""
    cases, readers = desk.cases(), desk.readers()
    rows = []
    for case in cases:
        opinion, standing = desk.opinion(case.slide_id, reader.name), desk.standing(case.slide_id)
        may_know = first_done(case, opinion, blind)
        answer = case.answer
        rows.append(
            {
                "key": case.key,
                "file": plain(case.file),
                "patient": plain(case.patient),
                "group": case.group.value,
                "reason": plain(case.reason.splitlines()[0] if case.reason else "")
                if may_know or case.group == Group.FAILED
                else "",
                "answer": plain(answer.headline) if answer and may_know and case.group not in ASKED_FOR else "",
                "novelty": round(answer.novelty, 2) if answer and answer.novelty is not None else None,
                "tissue_mm2": round(case.record.survey.tissue_mm2, 1) if case.record else None,
                "mine": desk.is_assigned(case, reader, readers),
                "state": _state(opinion),
                "label": opinion.label,
                "signed": opinion.signed,
                "painted": len(opinion.painted),
                "disagreement": reader.may_settle and standing.disagreement and not standing.settled,
            }
        )
    found = counts(cases)
    return {
        "research_use": RESEARCH_USE,
        "folder": desk.out.path.resolve().name,
        "rows": rows,
        "groups": [{"name": group.value, "count": found[group], "cause": CAUSES[group]} for group in Group if found[group]],
        "reader": {"name": reader.name, "role": reader.role, "may_settle": reader.may_settle},
        "readers": len(readers.people),
        "blind": blind,
    }


def _state(opinion: Opinion) -> str:
    if opinion.signed:
        return "signed"
    if opinion.decided:
        return "decided"
    return "opened" if opinion.opened else "new"


def first_done(case: Case, opinion: Opinion, blind: bool) -> bool:
    """Whether a first impression was given, or none is asked for: nothing can lead where the model has no answer."""
    return opinion.shown or not blind or case.answer is None or case.answer.answer == A_MAP


def may_see(case: Case, opinion: Opinion, blind: bool) -> bool:
    """Whether a reader may see answer and map: not before a first impression, and of a doubtful slide not before they were asked for."""
    if not first_done(case, opinion, blind):
        return False
    anyway = any(event.kind == "shown" and event.said["anyway"] for event in opinion.events)
    return case.group not in ASKED_FOR or anyway


def slide_page(desk: Desk, case: Case, reader: Reader, blind: bool, heat: Heat | None, slide: Slide | None, levels: list[ServedLevel],
               whereabouts: Whereabouts, overview_ready: bool) -> dict[str, object]:  # fmt: skip
    """Everything that the page of a slide needs, but its pixels and its map."""
    opinion, standing = desk.opinion(case.slide_id, reader.name), desk.standing(case.slide_id)
    may_know = first_done(case, opinion, blind)
    seen = may_see(case, opinion, blind)
    record, answer = case.record, case.answer
    found: dict[str, object] = {
        "key": case.key,
        "file": plain(case.file),
        "patient": plain(case.patient),
        "group": case.group.value,
        "drawn": record.products.get("heatmap.ome.tiff", "") if record else "",
        "cause": _cause(case) if may_know or case.group == Group.FAILED else "",
        "first_done": may_know,
        "may_see": seen,
        "missing": NO_FILE.get(whereabouts, ""),
        "about": about(record),
        "opinion": opinion_page(opinion),
        "settled": {"label": standing.label, "by": standing.by} if standing.settled and reader.may_settle else None,
        "others": others_page(desk, case, reader) if reader.may_settle else [],
    }
    if record is None:
        return found
    found |= {
        "size": record.description.size,
        "mpp": record.description.mpp,
        "mpp_source": record.description.mpp_source,
        "verdict": record.verdict.value,
        "trial": record.trial,
        "classes": list(answer.classes) if answer else [],
        "map_classes": [layer.name for layer in heat.layers if layer.kind == "score"] if heat else [],
        "is_map": bool(answer and answer.answer == A_MAP),
        "tiles": {"ok": record.tiles.ok, "unread": record.tiles.unread},
        "tissue_mm2": record.survey.tissue_mm2,
        "left_out_mm2": dict(record.survey.left_out_mm2),
        "same_patient": [
            {"key": other.key, "file": plain(other.file)}
            for other in desk.cases()
            if case.patient and other.patient == case.patient and other.key != case.key
        ],
    }
    if answer and may_know:
        found["answer"] = {
            "headline": plain(answer.headline) if seen else "",
            "word": plain(answer.answer),
            "novelty": answer.novelty,
            "numbers": {name: value for name, value in answer.columns.items() if value is not None} if seen else {},
        }
    if slide is not None:
        bounds = slide.bounds
        found["levels"] = [
            {"index": level.index, "size": level.size, "tile": level.tile, "downsample": level.downsample} for level in levels
        ]
        found |= {
            "bounds": [bounds.x, bounds.y, bounds.width, bounds.height],
            "background": slide.background,
            "overview_ready": overview_ready,
        }
    if heat is not None:
        rows, columns = heat.shape
        found["grid"] = {"rows": rows, "columns": columns, "origin": heat.origin, "cell": heat.cell_l0, "tile": heat.tile_l0}
        found["layers"] = [
            {"name": layer.name, "kind": layer.kind, "low": layer.low, "high": layer.high} for layer in heat.layers
        ] if seen else []  # fmt: skip
    return found


def _cause(case: Case) -> str:
    """Why a slide is where it is; nothing more where it was simply answered."""
    return plain(case.reason) or ("" if case.group in (Group.ANSWERED, Group.NO_ANSWER) else CAUSES[case.group])


def opinion_page(opinion: Opinion) -> dict[str, object]:
    """What a reader has said of a slide."""
    painted: dict[str, list[tuple[int, int]]] = {}
    for cell, label in opinion.painted.items():
        painted.setdefault(label, []).append(cell)
    return {
        "reader": opinion.reader,
        "first": opinion.first,
        "judgement": opinion.judgement,
        "label": opinion.label,
        "note": opinion.note,
        "signed": opinion.signed,
        "painted": {label: runs_of(cells) for label, cells in painted.items()},
        "regions": [{"runs": event.said["runs"], "judgement": event.said["judgement"]} for event in opinion.regions],
        "notes": [{"time": event.time, "note": event.said["note"]} for event in opinion.events if event.kind == "note"],
        "last": opinion.events[-1].number if opinion.events else 0,
        "can_undo": undoable(opinion),
    }


def undoable(opinion: Opinion) -> int | None:
    """Number of the newest event that can be taken back: a decision or paint, not what was seen."""
    undone = {event.said["of"] for event in opinion.events if event.kind == "undo"}
    open_ = [e.number for e in opinion.events if e.kind in ("decision", "region", "painted", "signed") and e.number not in undone]
    return open_[-1] if open_ else None


def others_page(desk: Desk, case: Case, reader: Reader) -> list[dict[str, object]]:
    """What other readers decided, for those who settle; not before they have decided themselves, where they read, too."""
    from pathovit.review.opinion import opinions

    found = opinions(desk.events(case.slide_id))
    return [
        {"reader": one.reader, "label": one.label, "judgement": one.judgement, "note": one.note, "signed": one.signed}
        for name, one in sorted(found.items())
        if name != reader.name and one.decided
    ]
