import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pathovit import RESEARCH_USE
from pathovit.bench.peers import PEERS, measure_peer
from pathovit.bench.whole import device_use
from pathovit.errors import SettingsError
from pathovit.settings import TileSpec, fill_spec
from pathovit.slides.slide import open_slide
from pathovit.slides.tiling import lay_grid


def test_device_use_counts_overlapping_batches_once() -> None:
    busy, pause = device_use([[(0.0, 2.0), (5.0, 6.0)], [(1.0, 3.0), (5.2, 5.5)]])
    assert (busy, pause) == (4.0, 2.0)


def test_every_step_is_measured_on_a_slide(maker, tmp_path: Path) -> None:
    slide = maker.make_slide(tmp_path, maker.SampleSpec("s", 1, (3000, 3000), tumour_fraction=0.2))
    command = [sys.executable, "-c", "from pathovit.cli import main; main()", "bench", str(slide), "--runs", "1", "--json"]
    command += ["--timeline", str(tmp_path / "timeline.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = {line["step"].strip(): line for line in json.loads(done.stdout)["steps"]}
    for name in ("end to end", "tissue and grid", "finish", "read, 1 thread", "encode alone", "store", "limit: decoder alone"):
        assert steps[name]["rate"] > 0, name
    assert steps["end to end"]["rate"] <= 1.5 * steps["encode alone"]["rate"]
    assert "peak memory of all processes" in steps["whole run"]["remark"]
    assert "of what it does alone" in steps["share of the encoder"]["remark"]
    parts = [steps[name]["seconds"] for name in ("start", "end to end", "after the last batch")]
    assert steps["whole run"]["seconds"] == pytest.approx(sum(parts))
    assert steps["whole run"]["core_s"] > steps["finish"]["core_s"] > 0
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.text["Comment"] == RESEARCH_USE


def test_an_unknown_peer_is_refused_and_one_that_is_not_installed_says_so(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from made_slides import exact_mask

    monkeypatch.setitem(PEERS, "nothing", "import no_such_package")
    with open_slide(squares) as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        with pytest.raises(
            SettingsError, match="--against histolab: expected one of fastslide, lazyslide, microtome-wsi, tiatoolbox, nothing"
        ):
            measure_peer("histolab", slide, grid, 2, 1)
        with pytest.raises(SettingsError, match="Is it installed here?"):
            measure_peer("nothing", slide, grid, 2, 1)


@pytest.mark.parametrize(("package", "module"), [("fastslide", "fastslide"), ("microtome-wsi", "microtome")])
def test_a_peer_reads_the_same_tiles_by_one_thread_and_by_two(shared: Path, package: str, module: str) -> None:
    from made_slides import exact_mask

    pytest.importorskip(module)
    with open_slide(shared / "vendor/CMU-1-Small-Region.svs") as slide:
        grid = lay_grid(slide, exact_mask(slide), fill_spec(TileSpec(), 128, 0.5))
        lines = measure_peer(package, slide, grid, 2, 1)
    assert [line.remark[-9:].strip() for line in lines] == ["1 thread", "2 threads"]
    assert all(line.rate > 0 and line.core_s > 0 for line in lines)
