"""The record of a review: whole, or found not to be."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from datetime import datetime as real_datetime
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from made import made_record

from pathovit.errors import SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.review import record as record_module
from pathovit.review.audit import to_rows, to_text, verify
from pathovit.review.record import Head, Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Three slides with eleven events on them, and two on the folder."""
    out = OutFolder(tmp_path)
    for name in ("a-1", "b-2", "c-3"):
        out.slide(name).write(made_record(name), [])
    found = Record(out)
    for step in range(11):
        note = {"event": "note", "note": f"<b>{step}</b> ü"}
        found.append(("a-1", "b-2", "c-3")[step % 3], "Dr. A", "reader", note, {"answer": False}, {"model": "m"})
    found.append("", "Dr. A", "reader", {"event": "exported", "labels": 3})
    found.append("", "Dr. A", "reader", {"event": "exported", "labels": 4})
    return found


def test_what_was_said_can_be_read_again_in_order(record: Record) -> None:
    assert [event.number for event in record.events("a-1")] == [1, 4, 7, 10]
    assert record.events("b-2")[0].said["note"] == "<b>1</b> ü"
    assert record.events("b-2")[0].about == {"model": "m"}
    audit = verify(record)
    assert (len(audit.events), audit.broken, audit.remarks) == (13, (), ())
    assert audit.head.digest == audit.events[-1].digest
    assert "Dr. A (reader)  noted" in to_text(audit)
    assert to_rows(audit.events)[12]["event"] == "exported"


def test_every_line_follows_the_published_schema(record: Record) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "review.schema.json").read_text())
    for event in verify(record).events:
        Draft202012Validator(schema).validate(event.to_json())
    with pytest.raises(ValidationError):
        Draft202012Validator(schema).validate(event.to_json() | {"more": 1})


def tamper_edit(record: Record, chance: random.Random) -> None:
    """A byte of some file is another one."""
    path = chance.choice([*(path for _, path in record.files()), record.folder / "head.json"])
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def tamper_said(record: Record, chance: random.Random) -> None:
    """A note is another one, in JSON that can be read."""
    _, path = chance.choice(record.files())
    lines = path.read_text().splitlines()
    place = chance.randrange(len(lines))
    found = json.loads(lines[place])
    found[chance.choice(["reader", "time", "role"])] = "another"
    lines[place] = json.dumps(found, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")


def tamper_delete(record: Record, chance: random.Random) -> None:
    """A line is gone; or a whole file."""
    _, path = chance.choice(record.files())
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    if not lines or chance.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(b"".join(lines))


def tamper_end(record: Record, chance: random.Random) -> None:
    """The last lines of a file are gone."""
    _, path = chance.choice(record.files())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: chance.randrange(len(lines))]))


def tamper_swap(record: Record, chance: random.Random) -> None:
    """Two lines have changed places, in a file or between two."""
    (_, a), (_, b) = chance.choice(record.files()), chance.choice(record.files())
    lines = {path: path.read_bytes().splitlines(keepends=True) for path in (a, b)}
    i, j = chance.randrange(len(lines[a])), chance.randrange(len(lines[b]))
    if a == b and i == j:
        j = (i + 1) % len(lines[b])
    lines[a][i], lines[b][j] = lines[b][j], lines[a][i]
    for path, content in lines.items():
        path.write_bytes(b"".join(content))


@pytest.mark.parametrize("tamper", [tamper_edit, tamper_said, tamper_delete, tamper_end, tamper_swap])
def test_every_edit_deletion_and_swap_is_found(record: Record, tamper: Callable[[Record, random.Random], None]) -> None:
    before = {path: path.read_bytes() for path in [*(path for _, path in record.files()), record.folder / "head.json"]}
    missed = []
    for seed in range(40):
        tamper(record, random.Random(seed))
        after = {path: path.read_bytes() if path.is_file() else None for path in before}
        if after != before and not verify(record).broken:
            missed.append(seed)
        for path, content in before.items():
            path.write_bytes(content)
    assert missed == []


def test_a_line_that_repeats_is_found(record: Record) -> None:
    path = record.path("a-1")
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    assert any("twice" in broken for broken in verify(record).broken)


def test_a_record_that_was_written_anew_is_told_by_a_digest_that_was_noted(record: Record) -> None:
    noted = verify(record).head.digest
    record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "more"})
    assert verify(record, noted).broken == ()
    for _, path in record.files():
        path.unlink()
    (record.folder / "head.json").unlink()
    record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "another story"})
    assert verify(record).broken == ()
    assert "noted before" in verify(record, noted).broken[0]


def test_the_chain_holds_though_the_clock_is_set_back(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    class Before(real_datetime):
        @classmethod
        def now(cls, tz: object = None) -> real_datetime:
            return real_datetime.fromisoformat("2001-01-01T00:00:00.000+00:00")

    monkeypatch.setattr(record_module, "datetime", Before)
    record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "long ago"})
    audit = verify(record)
    assert audit.broken == ()
    assert "clock had been set back" in audit.remarks[0]


def test_an_end_that_was_never_finished_is_no_event(record: Record) -> None:
    path, head = record.path("a-1"), record.head()
    path.write_bytes(path.read_bytes() + b'{"format": 1, "numb')
    assert "cut off" in verify(record).broken[0]  # as if somebody had taken the end of a line
    with pytest.raises(SettingsError, match="cut off"):
        record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "x"})
    record._write_head(Head(head.number, head.digest, "a-1"))  # as it stands while a line is being written
    audit = verify(record)
    assert audit.broken == ()
    assert "never acknowledged" in audit.remarks[0]
    record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "goes on"})
    assert (verify(record).broken, verify(record).remarks) == ((), ())


@pytest.mark.parametrize("next_to", ["b-2", "a-1"])
def test_power_may_go_between_the_line_and_the_head(record: Record, monkeypatch: pytest.MonkeyPatch, next_to: str) -> None:
    written = Record._write_head

    def until_the_line(self: Record, head: Head) -> None:
        if head.writing is None:
            raise SystemExit
        written(self, head)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "_write_head", until_the_line)
        with pytest.raises(SystemExit):
            record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "written"})
    assert (verify(record).broken, len(verify(record).events)) == ((), 14)
    record.append(next_to, "Dr. A", "reader", {"event": "note", "note": "goes on"})
    assert (verify(record).broken, len(verify(record).events)) == ((), 15)


def test_nothing_follows_on_a_line_that_was_changed(record: Record) -> None:
    path = record.path("a-1")
    path.write_bytes(path.read_bytes().replace(b"<b>9", b"<b>8"))
    with pytest.raises(SettingsError, match="pathovit audit verify"):
        record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "more"})
    with pytest.raises(SettingsError, match="pathovit audit verify"):
        record.events("a-1")


def test_a_link_is_not_followed(record: Record, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("")
    record.path("a-1").unlink()
    record.path("a-1").symlink_to(target)
    with pytest.raises(SettingsError, match="link"):
        record.append("a-1", "Dr. A", "reader", {"event": "note", "note": "x"})
    assert target.read_text() == ""


def test_only_its_owner_reads_it(record: Record) -> None:
    assert os.stat(record.path("a-1")).st_mode & 0o077 == 0


def _append_some(folder: Path) -> None:
    found = Record(OutFolder(folder))
    for step in range(20):
        found.append(("a-1", "b-2")[step % 2], "Dr. B", "reader", {"event": "note", "note": str(step)})


def test_several_processes_write_one_chain(record: Record) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_append_some, args=(record.out.path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    audit = verify(record)
    assert (audit.broken, len(audit.events)) == ((), 13 + 60)
