"""How pure kinds of tissue are, which were found without a label: against outlines.

python workflows/benchmarks/kinds_purity.py OUT [OUT ...] --regions DIR [--seeds 3]

OUT are folders of stored features; kinds are found over all their slides that DIR outlines. Of the outlined tiles: the share that has the class
that most tiles of its kind have, the kinds of each slide by themselves (what naming kinds on that slide would teach) and one
meaning for all slides; beside it the share of the commoner class, which one kind would reach. Agreement of two seeds: adjusted
Rand index over all tiles.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from teaching import outlined_slides

from pathovit.study.kinds import TissueKinds
from pathovit.study.regions import NOTHING

Places = NDArray[np.int64]


def purity(kinds: Places, truth: Places) -> float:
    """Share of tiles that have the class that most tiles of their kind have."""
    return sum(int(np.bincount(truth[kinds == kind]).max()) for kind in np.unique(kinds)) / len(truth)


def commoner(truth: Places) -> float:
    return float(np.bincount(truth).max() / len(truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--regions", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    slides = list(outlined_slides(options.out, options.regions))
    told: list[list[Places]] = []
    for seed in range(options.seeds):
        kinds = TissueKinds.fit([slide.stored for slide in slides], seed)
        told.append([kinds.tell(slide.stored)[0] for slide in slides])
        pairs = []
        for slide, of in zip(slides, told[-1], strict=True):
            known = slide.truth != NOTHING
            kind, truth = of[known], slide.truth[known]
            if len(np.unique(truth)) < 2:
                continue
            pairs.append((kind, truth))
            if seed == 0:
                print(
                    f"{slide.name}: {known.sum()} outlined tiles, commoner class {commoner(truth):.3f}, purity {purity(kind, truth):.3f}"
                )
        alone = [purity(*pair) for pair in pairs]
        kind, truth = (np.concatenate(each) for each in zip(*pairs, strict=True))
        print(
            f"seed {seed}: {len(kinds.letters)} kinds, {len(pairs)} slides of two classes; slide by slide {np.mean(alone):.3f} (worst {min(alone):.3f}, "
            f"commoner class {np.mean([commoner(t) for _, t in pairs]):.3f}); one meaning for all {purity(kind, truth):.3f} (commoner {commoner(truth):.3f})",
            flush=True,
        )
    whole = [np.concatenate(each) for each in told]
    print(f"agreement of two seeds: {np.mean([adjusted_rand_score(a, b) for a, b in combinations(whole, 2)]):.3f}")


if __name__ == "__main__":
    main()
