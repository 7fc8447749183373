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


def test_slides_of_either_of_two_groups_are_usual_and_those_between_are_strange() -> None:
    made = Novelty.fit(slides(30) + slides(10, shift=12.0, seed=7), slides(30, seed=1) + slides(10, shift=12.0, seed=8))
    assert len(made.slide_centres) == 2
    for shift, seed in ((0.0, 2), (12.0, 9)):
        assert np.mean([made.slide(s) > 1 for s in slides(60, shift=shift, seed=seed)]) < 0.15
    assert all(made.slide(s) > 1 for s in slides(20, shift=6.0, seed=3))
    assert len(Novelty.fit(slides(40), slides(40, seed=1)).slide_centres) == 1


def test_models_of_before_are_still_read() -> None:
    made = Novelty.fit(slides(10), slides(5, seed=1))
    old = {name: values for name, values in made.tensors().items() if not name.startswith("slide_") or name == "slide_limit"}
    again = Novelty.from_tensors(old)
    assert again is not None
    assert np.array_equal(again.slide_centres[0], made.centre)
