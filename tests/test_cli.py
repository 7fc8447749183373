"""The command line, as a user meets it: real processes, real exit codes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MPP, squares_picture, write_tiff

from pathovit.settings import Settings, load_settings

PATHOVIT = [sys.executable, "-c", "from pathovit.cli import main; main()"]


def pathovit(*arguments: object, timeout: float = 300, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PATHOVIT, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=cwd)


def test_help_lists_every_command_of_the_readme() -> None:
    text = pathovit("--help").stdout
    commands = re.findall(r"^\| `pathovit (\w+)", (Path(__file__).parents[1] / "README.md").read_text(), re.MULTILINE)
    assert len(commands) >= 10
    assert all(f" {name} " in text for name in commands)


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
        (["export", "nowhere"], 4, "no finished slide"),
        (["verify", "nowhere"], 4, "no slide in it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_gets_its_exit_code_and_a_remedy(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.svs").write_text("no slide")
    (tmp_path / "empty").mkdir()
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
    assert re.search(r"reference +256 +96 px at 1 µm +Apache-2.0 +here", out)
    assert re.search(r"uni2_h .*gated", out)
