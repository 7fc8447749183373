"""The command line, as a user meets it: real processes, real exit codes."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import PATHOVIT, pathovit
from made_cohort import ONCE, study, write_slide, write_table
from made_slides import MPP, squares_picture, write_tiff
from typer.testing import CliRunner

from pathovit.cli import app
from pathovit.cli import commands as _registered  # noqa: F401
from pathovit.encoders.records import timm_architectures
from pathovit.errors import SettingsError
from pathovit.run.match import match_model
from pathovit.run.plan import SlideJob
from pathovit.run.progress import Progress, Steps
from pathovit.run.schedule import SlideState
from pathovit.settings import Settings, load_settings


def test_help_lists_every_command_of_the_readme() -> None:
    text = pathovit("--help").stdout
    commands = re.findall(r"^\| `pathovit (\w+)", (Path(__file__).parents[2] / "README.md").read_text(), re.MULTILINE)
    assert len(commands) >= 10
    assert all(f" {name} " in text for name in commands)


def test_help_says_what_is_done_where_an_option_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are markup to the library that draws it, unless they are escaped."""
    monkeypatch.setenv("COLUMNS", "200")
    text = pathovit("run", "--help").stdout
    for said in (
        "[default: the bundled one]",
        "[default: the encoder's own]",
        "[default: one per GPU, or one]",
        "[default: 0.1]",
    ):
        assert said in text
    assert "\\[" not in text
    again = pathovit("heatmap", "--help").stdout  # which takes what the last run took
    assert again.count("[default: as in the last run]") == 3
    assert "[default: 0" not in again


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['pathovit', '--help']\nfrom pathovit.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'timm', 'zarr', 'skimage', 'distributed', 'openslide') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("[]")


def test_info_needs_no_torch(squares: Path) -> None:
    code = f"import sys; sys.argv = ['pathovit', 'info', {str(squares)!r}]\nfrom pathovit.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False")


def test_info_tells_what_a_run_would_do(squares: Path) -> None:
    done = pathovit("info", squares, "--json")
    assert done.returncode == 0
    (row,) = json.loads(done.stdout)
    assert row["size"] == [2048, 1536]
    assert row["mpp"] == pytest.approx([MPP, MPP])
    assert row["mpp_source"] == "metadata (openslide.mpp-x)"
    assert row["tissue_mm2"] == pytest.approx(0.262, rel=0.08)
    assert row["tiles"] in range(25, 40)  # 512 um / 96 um = 5.3 tiles a side


def test_a_manifest_gives_pixel_sizes_and_an_option_gives_the_rest(make_squares: Callable[..., Path], tmp_path: Path) -> None:
    one, two = make_squares("one.tif", mpp=None), make_squares("two.tif", mpp=None)
    (tmp_path / "manifest.csv").write_text("slide,mpp,patient,label\none.tif,0.25,p1,x\n")
    done = pathovit("info", one, two, "--manifest", tmp_path / "manifest.csv", "--mpp", 1.0, "--json")
    rows = {row["file"]: row for row in json.loads(done.stdout)}
    assert (rows["one.tif"]["mpp"], rows["one.tif"]["mpp_source"]) == ([0.25, 0.25], "manifest")
    assert (rows["two.tif"]["mpp"], rows["two.tif"]["mpp_source"]) == ([1.0, 1.0], "option --mpp")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "nowhere-to-be-found"], 4, "no such file"),
        (["run", "x.svs", "--out", "x.svs"], 2, "there is a file of that name"),
        (["run", "empty"], 4, "No slide found"),
        (["run"], 2, "No slide given"),
        (["run", "x.svs", "--mpp", "-1"], 2, "expected above 0"),
        (["run", "x.svs", "--encoder", "vit_smal"], 2, "Did you mean"),
        (["run", "x.svs", "--model", "nowhere"], 2, "not a model folder"),
        (["run", "x.svs", "--encoder", "vit_small", "--weights", "w.pt"], 2, "no such weights file"),
        (["run", "x.svs", "--precision", "fp8"], 2, "expected auto, fp32, bf16 or int8"),
        (["run", "x.svs", "--no-such-option"], 2, "No such option"),
        (["run", "x.svs", "--device", "cuda:99x"], 2, "no such device"),
        (["train", "nowhere.csv"], 2, "Give an existing CSV file"),
        (["run", "x.svs", "--tile-px", "224"], 2, "the model 'reference' was made for 96"),
        (["run", "x.svs", "--mpp", "40"], 2, "looks like a magnification"),
        (["run", "labels.csv"], 3, "this is a table. Give tables with --manifest"),
        (["run", "x.svs", "--out", "/proc/nowhere/out"], 2, "there can be no such folder"),
        (["run", "x.svs", "--settings", "typed.toml"], 2, "[tiles] tile_px is '224', expected a whole number"),
        (["export", "nowhere"], 4, "no finished slide"),
        (["verify", "nowhere"], 4, "no slide in it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_gets_its_exit_code_and_a_remedy(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_text("no slide")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("slide,label\na,b\n")
    (tmp_path / "typed.toml").write_text('[tiles]\ntile_px = "224"\n')
    done = subprocess.run([*PATHOVIT, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == code, done.stderr
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_unknown_settings_are_refused_and_the_nearest_is_offered(tmp_path: Path, squares: Path) -> None:
    (tmp_path / "s.toml").write_text("[tiles]\nmin_coverge = 0.5\n")
    done = pathovit("info", squares, "--settings", tmp_path / "s.toml")
    assert done.returncode == 2
    assert "unknown setting 'min_coverge'. Did you mean 'min_coverage'?" in done.stderr


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('[tissue]\nmask_mpp = 4.0\n[embed]\nencoder = "vit_small"\n')
    settings = load_settings(tmp_path / "s.toml")
    assert settings.tissue.mask_mpp == 4.0
    assert settings.embed.encoder == "vit_small"
    assert settings.tiles == Settings().tiles


def test_file_names_cannot_play_tricks_on_the_terminal(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a[b]\x1b[2J[-b].tif", squares_picture())
    done = pathovit("info", path)
    assert done.returncode == 0
    assert "\x1b[2J" not in done.stdout
    assert "a[b]" in done.stdout


def test_encoders_are_listed_with_licence_and_state() -> None:
    out = pathovit("encoders").stdout
    assert re.search(r"reference +256 +4 +96 px at 1 µm +Apache-2.0 +here", out)
    assert re.search(r"uni2_h +1536 +681 +224 px at 0.5 µm +CC-BY-NC-ND-4.0 +fetch, after a click", out)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[tissue]\ndrop_pen = "no"\n', "drop_pen is 'no', expected true or false"),
        ("[tissue]\nmask_mpp = true\n", "mask_mpp is True, expected a number"),
        ("[embed]\nencoder = 5\n", "encoder is 5, expected a text in quotes"),
        ("[run]\nworkers = 1.5\n", "workers is 1.5, expected a whole number"),
    ],
)
def test_types_of_settings_are_checked(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text("[tissue]\nmask_mpp = 4\n")  # a whole number serves as any number
    assert load_settings(tmp_path / "s.toml").tissue.mask_mpp == 4.0


def test_a_model_named_in_the_settings_is_used_with_any_encoder(tmp_path: Path, cohort: Path) -> None:
    """Also by `heatmap`, which takes the settings of the last run."""
    study(cohort / "labels.csv", cohort / "features", tmp_path / "m", ONCE)
    settings = Settings()
    settings = replace(
        settings, embed=replace(settings.embed, encoder="e"), heatmap=replace(settings.heatmap, model=str(tmp_path / "m"))
    )
    found = match_model(settings, encoder_given=True, model_given=False)
    assert found.model == str(tmp_path / "m")
    assert (found.settings.tiles.tile_px, found.settings.heatmap.model) == (96, str(tmp_path / "m"))
    bundled = match_model(replace(settings, heatmap=Settings().heatmap), encoder_given=True, model_given=False)
    assert bundled.model is None  # it is made for its own encoder


def test_a_deleted_folder_is_named_or_not_needed(tmp_path: Path, squares: Path) -> None:
    gone = "import os, sys; os.makedirs('gone'); os.chdir('gone'); os.rmdir('../gone'); from pathovit.cli import main; sys.argv = ['pathovit', {}]; main()"
    commands = {
        f"'info', {str(squares)!r}": (0, ""),
        "'run', 'x.svs'": (4, "no such file"),
        "'info', '--manifest', 'm.csv'": (2, "existing CSV"),
    }
    for arguments, (code, said) in commands.items():
        done = subprocess.run([sys.executable, "-c", gone.format(arguments)], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert said in done.stderr


def test_a_typed_encoder_name_is_answered_without_loading_timm() -> None:
    code = "import sys\nfrom pathovit.errors import PathovitError\nfrom pathovit.encoders.names import known_record\nfrom pathovit.encoders.records import timm_architectures\ntry: known_record('vit_smal')\n"
    code += "except PathovitError as error: print(error)\nprint('timm' in sys.modules, len(timm_architectures()) > 800)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Did you mean vit_small" in out
    assert out.strip().endswith("False True")


def test_every_name_of_timm_is_known_from_its_sources() -> None:
    import timm

    assert {name.split(".")[0] for name in timm.list_models()} <= timm_architectures()


def test_answers_of_a_measurement_have_all_their_columns(tmp_path: Path, cohort: Path) -> None:
    """The first slide is strange and has no interval; the others do."""
    rows = [{"slide": f"slide-{i:02d}.svs", "age": str(40 + 30 * (i % 2) + i / 10)} for i in range(28)]
    study(write_table(tmp_path / "l.csv", rows), cohort / "features", tmp_path / "m", ONCE, target="age")
    features = tmp_path / "features" / "slides"
    for name in ("slide-03", "slide-04", "slide-05"):
        shutil.copytree(cohort / "features" / "slides" / name, features / name)
    write_slide(tmp_path / "features", "a-strange", True, np.random.default_rng(0), shift=50.0)
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "features"), "--model", str(tmp_path / "m"), "--error-rate", "0.5"])
    assert done.exit_code == 0, done.exception
    found = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["file"] for row in found] == ["a-strange.svs", "slide-03.svs", "slide-04.svs", "slide-05.svs"]
    assert (found[0]["low_age"], "unlike those it knows" in found[0]["reason"]) == ("", True)
    usual = [row for row in found if "unlike" not in row["reason"]]
    assert usual
    assert all(float(row["low_age"]) < float(row["predicted_age"]) < float(row["high_age"]) for row in usual)


def test_counted_steps_say_how_much_of_what_is_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    steps("reading features", 1, 400)
    monkeypatch.setattr("pathovit.run.progress.STEP_EVERY_S", 0)
    steps("reading features", 120, 400)
    assert capsys.readouterr().err == "reading features: 120 of 400\n"


def test_a_batch_job_is_not_silent_until_its_first_slide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathovit.run.progress.FIRST_LINES_S", 0.1)
    progress = Progress(3)
    state = SlideState(0, SlideJob(Path("a.svs")), stage="embedding")
    with progress:
        progress.say("workers are ready")
        progress.changed(state)
        time.sleep(2.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["3 slides", "workers are ready"]
    assert lines[2].startswith("0 of 3 slides, 1 embedding")
