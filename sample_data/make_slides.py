"""Write made whole-slide images (see `__init__.py`): python sample_data/make_slides.py FOLDER"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script knows its own folder alone

from sample_data import demo_specs, large_spec, make_slide


def main() -> None:
    parser = argparse.ArgumentParser(description="Write made H&E slides (SVS) with the outlines of their tumours.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--slides", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, help="instead: one square slide, this many pixels wide")
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--height", type=int, default=6144)
    parser.add_argument("--mpp", type=float, choices=(0.25, 0.5), help="micrometres per pixel (0.5; with --size 0.25)")
    asked = parser.parse_args()
    if asked.size:
        specs = [large_spec(asked.size, asked.seed, asked.mpp or 0.25)]
    else:
        specs = demo_specs(asked.slides, asked.seed, (asked.width, asked.height), asked.mpp or 0.5)
    for spec in specs:
        path = make_slide(asked.out, spec)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
