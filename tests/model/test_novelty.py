import numpy as np

from pathovit.model.novelty import Novelty


def slides(count: int, tiles: int = 150, shift: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(12, 12))
    return [(chance.normal(size=(tiles, 12)) @ mix + chance.normal(0, 0.3, 12) + shift).astype(np.float32) for _ in range(count)]


def test_strange_slides_score_above_one_and_usual_ones_below() -> None:
    made = Novelty.fit(slides(40), slides(40, seed=1))
    usual = [made.slide(s) for s in slides(200, seed=2)]
    strange = [made.slide(s) for s in slides(40, shift=2.0, seed=3)]
    assert np.mean(np.array(usual) > 1) < 0.1
    assert min(strange) > max(usual)
    assert (made.tiles(slides(1, seed=4)[0]) > 1).mean() < 0.12


def test_a_slide_of_few_tiles_is_not_strange_for_that() -> None:
    made = Novelty.fit(slides(40), slides(40, seed=1))
    small = [made.slide(s) for s in slides(200, tiles=8, seed=5)]
    assert np.mean(np.array(small) > 1) < 0.35
    assert np.median(small) < 1


def test_it_is_kept_and_found_again() -> None:
    made = Novelty.fit(slides(10), slides(5, seed=1))
    again = Novelty.from_tensors(made.tensors())
    assert again is not None
    assert again.slide(slides(1, seed=6)[0]) == made.slide(slides(1, seed=6)[0])
    assert Novelty.from_tensors({}) is None
