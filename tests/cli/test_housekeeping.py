"""pathovit settings, clean, -V, and the log of a folder."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from made_runs import folder_of
from typer.testing import CliRunner

import pathovit
from pathovit import __version__
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.cli.app import app
from pathovit.cli.options import merge_settings
from pathovit.cli.settings import template
from pathovit.errors import NoSlidesError, SettingsError, StoreError
from pathovit.outputs.names import LOG
from pathovit.outputs.runs import RUN
from pathovit.outputs.verify import verify
from pathovit.settings import Settings, load_settings, on_this_machine, settings_from_dict


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_the_version_has_a_short_option() -> None:
    assert call("-V").stdout == call("--version").stdout == f"pathovit {__version__}\n"


def test_the_settings_file_changes_nothing_and_names_every_setting_with_its_default(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(call("settings").stdout)
    assert load_settings(tmp_path / "my.toml") == Settings()
    lines = [re.sub(r"^# (\w+ = \S)", r"\1", line) for line in template() if not re.match(r"# \w+ =  ", line)]
    (tmp_path / "all.toml").write_text("\n".join(line for part in lines for line in part.splitlines()))
    assert load_settings(tmp_path / "all.toml") == Settings()
    told = "\n".join(template())
    for table in dataclasses.fields(Settings):
        for setting in dataclasses.fields(getattr(Settings(), table.name)):
            assert re.search(rf"^# {setting.name} = .*  # \w", told, re.MULTILINE), f"{setting.name} is not explained"
    assert "None" not in told


def test_settings_of_a_run_are_printed_to_be_used_again(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    pathovit.run_folder(slides[0], out, settings={"embed": {"max_tiles": 9}, "heatmap": {"hot_score": 0.7}}, progress=False)
    done = call("settings", out)
    (tmp_path / "again.toml").write_text(done.stdout)
    again = load_settings(tmp_path / "again.toml")
    assert (again.embed.max_tiles, again.heatmap.hot_score) == (9, 0.7)
    assert pathovit.run_folder(slides[0], out, settings=again, progress=False).states[0].skipped


def test_the_log_keeps_what_was_said_and_how_slides_ended_for_its_owner_alone(slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty.svs").write_bytes(b"")
    pathovit.run_folder([slides[0], tmp_path / "empty.svs"], out, settings={"embed": {"max_tiles": 9}}, progress=False)
    log = out / LOG
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[\d+\] "
    assert re.search(stamp + rf"pathovit {re.escape(__version__)} begins: run_folder$", text, re.MULTILINE)
    assert re.search(stamp + r"one\.svs: tumour: .*, 9 tiles", text, re.MULTILINE)
    assert re.search(stamp + r"empty\.svs: failed: the file is empty", text, re.MULTILINE)
    assert re.search(stamp + r"ends after [\d.]+ s, exit code 3$", text, re.MULTILINE)
    pathovit.run_folder(slides[0], out, settings={"embed": {"max_tiles": 9}}, progress=False)
    assert log.read_text().startswith(text), "it goes on"
    assert log.read_text().count(" begins: ") == 2
    assert not [remark for remark in verify(pathovit.OutFolder(out)).remarks if LOG in remark]


def test_what_a_folder_can_do_without_is_listed_and_removed_only_when_asked(
    finished: Path, slides: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    torn = folder_of(out, "one") / ".features.abcd.partial"
    torn.mkdir()
    (torn / "zarr.json").write_bytes(b"x" * 2000)
    done = call("clean", out, "--features")
    assert re.search(r"2\.0 KB  half written by runs that were killed: 1 item; lost with it: nothing", done.stdout)
    assert re.search(r"KB  features: 3 items; lost with it: predict, teach, train", done.stdout)
    assert "Nothing was removed: say --yes" in done.stderr
    assert torn.exists()
    assert call("clean", out, "--yes").exit_code == 0
    assert not torn.exists()
    assert pathovit.load_features(out, "one").features.any()
    assert call("clean", out, "--features", "--yes").exit_code == 0
    with pytest.raises(StoreError, match="is gone, and with it the features. Embed it again"):
        pathovit.load_features(out, "one")
    assert not verify(pathovit.OutFolder(out)).faults
    assert len(pathovit.load_results(out)) == 3
    assert "tumour" in (out / "report.html").read_text()
    assert (folder_of(out, "one") / "overview.png").is_file()
    answers = pathovit.load_results(out)["answer"].tolist()
    again = call("embed", *slides[:2], "--out", out)
    assert again.exit_code == 0, again.output
    assert pathovit.load_results(out)["answer"].tolist() == answers, "of the same features the answers stay"
    assert pathovit.load_features(out, "one").features.any(), "a slide without features is not done"
    assert not verify(pathovit.OutFolder(out)).faults
    with pytest.raises(NoSlidesError, match="no run of pathovit wrote into it"):
        call("clean", tmp_path)


def test_imported_features_cannot_be_made_again_and_stay(finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--to", "stamp", "--folder", tmp_path / "stamp").exit_code == 0
    assert call("import", tmp_path / "stamp", "--out", tmp_path / "in").exit_code == 0
    done = call("clean", tmp_path / "in", "--features", "--yes")
    assert "features (those of 3 slides were imported, and stay): 0 items" in done.stdout
    assert all(folder.features.is_dir() for folder in pathovit.OutFolder(tmp_path / "in").slides())


def test_answers_for_a_file_that_has_other_content_now_can_go(slides: list[Path], tmp_path: Path) -> None:
    slide = Path(shutil.copy(slides[0], tmp_path / "S.svs"))
    few = {"embed": {"max_tiles": 9}}
    pathovit.run_folder(slide, tmp_path / "out", settings=few, progress=False)
    shutil.copy(slides[1], slide)
    pathovit.run_folder(slide, tmp_path / "out", settings=few, progress=False)
    assert len(pathovit.load_results(tmp_path / "out")) == 2
    assert call("clean", tmp_path / "out", "--older", "--yes").exit_code == 0
    assert len(pathovit.load_results(tmp_path / "out")) == 1
    assert not verify(pathovit.OutFolder(tmp_path / "out")).faults


def test_what_was_reviewed_is_never_cleaned_away(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = pathovit.OutFolder(shutil.copytree(finished, tmp_path / "out"))
    records = [record for one in out.slides() if (record := one.record())]
    (out.slide(records[0].slide_id).path / "review.jsonl").write_text("{}\n")
    monkeypatch.setattr(pathovit.OutFolder, "superseded", lambda self: {record.sha256 for record in records[:2]})
    done = call("clean", out.path, "--older", "--yes")
    assert "(those of 1 slide were reviewed, and stay): 1 item" in done.stdout
    assert (out.slide(records[0].slide_id).path / "review.jsonl").is_file()
    assert not out.slide(records[1].slide_id).path.exists()


def test_options_that_fit_together_alone_are_given_together() -> None:
    embed = merge_settings(None, precision="int8", engine="openvino").embed
    assert (embed.precision, embed.engine) == ("int8", "openvino")


def test_a_cluster_of_a_run_that_is_over_is_not_waited_for() -> None:
    given = settings_from_dict({"run": {"scheduler_file": "/gone.json"}, "heatmap": {"check": True}}, "given")
    found = on_this_machine(given)
    assert (found.run.scheduler_file, found.heatmap.check) == (None, False)


def test_patients_and_labels_stay_where_they_are_not_said_again(slides: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f"slide,patient,label\n{slides[0].name},P1,tumour\n")
    out = tmp_path / "out"
    few = {"embed": {"max_tiles": 9}}
    pathovit.run_folder(slides[0], out, manifest=table, settings=few, progress=False)
    (before,) = pathovit.run_folder(slides[0], out, settings=few, progress=False).slides
    assert (before.label, bool(before.patient)) == ("tumour", True)
    (other,) = pathovit.run_folder(slides[0], out, settings=few | {"heatmap": {"hot_score": 0.7}}, progress=False).slides
    assert (other.patient, other.label) == (before.patient, before.label)
    assert [about.patient for about in pathovit.OutFolder(out).names().files.values()] == ["P1"]


def test_json_is_alone_on_stdout_and_a_folder_that_is_not_there_is_not_made(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder_of(out, "one") / "overview.png").unlink()
    found = json.loads(call("verify", out, "--json", "--repair").stdout)
    assert (found["faults"], found["review"]) == ([], [])
    with pytest.raises(NoSlidesError, match="there is no such folder"):
        call("tissue", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_damaged_record_of_runs_is_told_before_anything_is_removed(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / RUN).write_bytes((out / RUN).read_bytes()[:-9])
    with pytest.raises(SettingsError, match="--repair"):
        call("clean", out, "--features", "--yes")
    assert (folder_of(out, "one") / "features.zarr").is_dir()
