"""What is written is what the published schemas say, and what they say is read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from made import made_record

from pathovit.outputs.records import Answer, FeaturesRecord, HeatmapCheck, OrderFigures, Outcome, SlideRecord, TopTile
from pathovit.outputs.runs import RunRecord, SlideOutcome
from pathovit.settings import Settings

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
STORED = Path(__file__).parent / "stored" / "out_2026_11.zip"
DIGEST = "0" * 64
ANSWER = Answer("m", "age: 50", "50", {"predicted_age": 50.0}, (), (), (), (None, 60.0), 0.5, strange=False)
CHECK = HeatmapCheck(1e-7, "tumour", OrderFigures(0.1, 0.2, 0.9), OrderFigures(0.9, 0.8, 0.7))


def check(name: str, found: Any) -> None:
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text("utf-8"))).validate(found)


def as_read_back(found: Any) -> Any:
    return json.loads(json.dumps(found, default=str))


SLIDE = made_record(
    sha256=DIGEST, prediction=ANSWER, heatmap_check=CHECK, top_tiles=(TopTile("top_tiles/01.jpg", 0.9, 0.1, 3, 4),), products={"a.png": DIGEST},
    versions={"torch": "2"}, patient="p", label="x",
)  # fmt: skip
RUN = RunRecord(
    ("run", "a.svs"), "2026-11-25T12:00:00+0000", Settings().to_dict(), DIGEST, None, None, False, ("a.svs",), 3, 1.5,
    (SlideOutcome("a.svs", "failed", "", "why"),), "refused",
)  # fmt: skip
RECORDS = {
    "slide": SLIDE.to_json(),
    "features": FeaturesRecord({"zarr.json": DIGEST}, 2.0).to_json(),
    "outcome": Outcome("a.svs", "why", "a-1", twin=True, patient="p", when="2026-11-25").to_json(),
    "run": RUN.to_json(),
}


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_record_follows_its_schema_and_a_changed_one_does_not(name: str) -> None:
    found = as_read_back(RECORDS[name])
    check(name, found)
    optional = {"finished", "outcomes", "error", "views", "code", "run"}
    for key in found:
        if key not in optional:
            with pytest.raises(ValidationError):
                check(name, {k: v for k, v in found.items() if k != key})
    with pytest.raises(ValidationError):
        check(name, found | {"another": 1})


def test_what_is_written_is_read_again_whole() -> None:
    assert SlideRecord.from_json(as_read_back(RECORDS["slide"]), "a-1") == SLIDE
    assert RunRecord.from_json(as_read_back(RECORDS["run"])) == RUN
    assert FeaturesRecord.from_json(RECORDS["features"]).seconds == 2.0
    assert Outcome.from_json(RECORDS["outcome"]).twin


def test_a_record_of_before_is_the_same_but_for_its_format(tmp_path: Path) -> None:
    with zipfile.ZipFile(STORED) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("slide.json"))
        found = json.loads(archive.read(name))
    assert "format" not in found
    check("slide", found | {"format": 1})
