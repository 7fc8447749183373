"""What the page shows of a folder and of a slide, as JSON. What a reader may not see yet is not in it."""

from __future__ import annotations

from collections import Counter

from pathovit import RESEARCH_USE
from pathovit.errors import SettingsError
from pathovit.outputs.records import A_MAP
from pathovit.review.about import about
from pathovit.review.desk import CAUSES, Case, Desk, Group, Whereabouts
from pathovit.review.heat import Heat
from pathovit.review.opinion import Opinion, Standing, runs_of
from pathovit.review.pixels import ServedLevel
from pathovit.review.readers import Reader
from pathovit.review.sight import UNDOABLE, sight
from pathovit.slides.slide import Slide
from pathovit.text import plain

NO_FILE = {
    Whereabouts.MISSING: "The slide is not where it was when it was read. Put it back, or start the review with --slides FOLDER.",
    Whereabouts.CHANGED: "The file is not the one that was read: its content has changed. Run pathovit on it again.",
}

LEAST_SURE_FIRST = "The model has an answer; those that it is least sure of come first, whatever they are."


def worklist(desk: Desk, reader: Reader, blind: bool) -> dict[str, object]:
    """All slides of the folder, with what the reader has done on each."""
    cases, readers, groups = desk.cases(), desk.readers(), list(Group)
    if blind:
        cases = sorted(cases, key=lambda case: (groups.index(case.group), case.blind_rank))
    causes = CAUSES | ({Group.ANSWERED: LEAST_SURE_FIRST} if blind else {})
    rows = []
    for case in cases:
        answer, damaged = case.answer, ""
        try:
            opinion, standing = desk.opinion(case, reader.name), desk.standing(case)
        except SettingsError as error:  # the others go on
            opinion, standing, damaged = Opinion(reader.name), Standing(None, "", False, False), str(error)
        seen = sight(case, opinion, blind, not readers.people)
        may_know = seen.first_done
        rows.append(
            {
                "key": case.key,
                "file": plain(desk.called(case)),
                "patient": plain(desk.patient(case)),
                "group": case.group.value,
                "reason": plain(damaged or (_first_line(case.reason) if may_know or case.group == Group.FAILED else "")),
                "answer": plain(answer.answer) if answer and seen.answer else "",
                "novelty": round(answer.novelty, 2) if answer and answer.novelty is not None and may_know else None,
                "mine": desk.is_assigned(case, reader, readers, opinion),
                "state": _state(opinion),
                "label": opinion.label,
                "disagreement": reader.may_settle and standing.disagreement and not standing.settled,
            }
        )
    found = Counter(case.group for case in cases)
    return {
        "research_use": RESEARCH_USE,
        "folder": desk.out.path.resolve().name,
        "rows": rows,
        "groups": [{"name": group.value, "count": found[group], "cause": causes[group]} for group in Group if found[group]],
        "reader": {"name": reader.name, "role": reader.role, "may_settle": reader.may_settle},
        "readers": len(readers.people),
        "blind": blind,
        "models": sorted({f"{case.answer.model} {case.model_sha256[:8]}" for case in cases if case.answer}),
    }


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _state(opinion: Opinion) -> str:
    if opinion.signed:
        return "signed"
    if opinion.decided:
        return "decided"
    return "opened" if opinion.opened else "new"


def slide_page(desk: Desk, case: Case, reader: Reader, blind: bool, heat: Heat | None, slide: Slide | None, levels: list[ServedLevel],
               whereabouts: Whereabouts, overview_ready: bool) -> dict[str, object]:  # fmt: skip
    """Everything that the page of a slide needs, but its pixels and its map."""
    opinion, standing = desk.opinion(case, reader.name), desk.standing(case)
    allowed = sight(case, opinion, blind, not desk.readers().people)
    may_know, seen = allowed.first_done, allowed.answer
    record, answer = case.record, case.answer
    found: dict[str, object] = {
        "key": case.key,
        "file": plain(desk.called(case)),
        "patient": plain(desk.patient(case)),
        "group": case.group.value,
        "drawn": record.products.get("heatmap.ome.tiff", "") if record else "",
        "cause": _cause(case) if may_know or case.group == Group.FAILED else "",
        "first_done": may_know,
        "may_see": seen,
        "missing": NO_FILE.get(whereabouts, ""),
        "about": {key: value for key, value in about(record).items() if key != "answer"},
        "doubtful": case.doubtful,
        "opinion": opinion_page(opinion),
        "settled": {"label": standing.label, "by": standing.by} if standing.settled and reader.may_settle else None,
        "others": others_page(desk, case, reader) if reader.may_settle and opinion.decided else [],
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
            {"key": other.key, "file": plain(desk.called(other))}
            for other in (desk.cases() if case.patient else ())
            if other.patient == case.patient and other.key != case.key
        ],
    }
    if answer and may_know:
        found["answer"] = {
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
            "overview_ready": overview_ready,
        }
    if heat is not None:
        rows, columns = heat.shape
        found["grid"] = {
            "rows": rows, "columns": columns, "origin": heat.origin, "tile_origin": heat.tile_origin, "cell": heat.cell_l0,
            "tile": heat.tile_l0,
        }  # fmt: skip
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
        "regions": [{key: event.said[key] for key in ("runs", "judgement", "label")} for event in opinion.regions],
        "judged": opinion.judged,
        "elsewhere": opinion.elsewhere,
        "last": opinion.events[-1].number if opinion.events else 0,
        "can_undo": (of := undoable(opinion)),
        "undoes": next((event.kind for event in opinion.events if event.number == of), ""),
        "decided_before": opinion.decided_before,
    }


def undoable(opinion: Opinion) -> int | None:
    """Number of the newest event that can be taken back: a decision or paint, not what was seen."""
    undone = {event.said["of"] for event in opinion.events if event.kind == "undo"}
    open_ = [event.number for event in opinion.events if event.kind in UNDOABLE and event.number not in undone]
    return open_[-1] if open_ else None


def others_page(desk: Desk, case: Case, reader: Reader) -> list[dict[str, object]]:
    """What other readers decided, for those who settle; not before they have decided themselves, where they read, too."""
    return [
        {"reader": one.reader, "label": one.label, "judgement": one.judgement, "note": one.note, "signed": one.signed}
        for name, one in sorted(desk.opinions(case).items())
        if name != reader.name and one.decided
    ]
