"""Many slides, one run: neither memory nor handles grow with them."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from command import PATHOVIT

SLIDES, MOST_KIB = 2000, 20  # a slide


def test_neither_memory_nor_handles_grow_with_the_slides(maker: ModuleType, tmp_path: Path, everything: bool) -> None:
    if not everything:
        pytest.skip("takes ten minutes: make reliability")
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    content = maker.make_slide(tmp_path, maker.SampleSpec(name="base", seed=1, size=(700, 700), tumour_fraction=0.3)).read_bytes()
    for number in range(SLIDES):
        (slides / f"s{number:04d}.svs").write_bytes(content + number.to_bytes(8, "little"))
    process = psutil.Popen([*PATHOVIT, "embed", str(slides), "--out", str(out)])
    seen = []
    while process.poll() is None:
        done = len(list(out.glob("slides/*/slide.json")))
        if SLIDES // 10 < done < SLIDES:  # what is loaded once is loaded, and the report is not begun
            seen.append((done, process.memory_info().rss / 1024, process.num_fds()))
        time.sleep(2)
    assert process.returncode == 0
    done_, kib, handles = np.array(seen).T
    assert np.polyfit(done_, kib, 1)[0] < MOST_KIB
    assert np.ptp(handles) < 10
