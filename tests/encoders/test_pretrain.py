"""An encoder trained on slides without labels: it learns, goes on after a kill to the same weights, and serves as any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import pathovit
from made_tiles import write_tiles

from pathovit.encoders import RECORDS, known_record, load_encoder, write_encoder
from pathovit.encoders.build import for_side
from pathovit.encoders.pretrain import fit
from pathovit.encoders.pretrain import teacher as teaching
from pathovit.encoders.pretrain.augment import altered, through, to_images, views, windows
from pathovit.encoders.pretrain.backbone import Backbone, norms_of, settle, width_of
from pathovit.encoders.pretrain.fit import Line, PretrainSettings, pretrain
from pathovit.encoders.pretrain.methods import Mae
from pathovit.encoders.pretrain.teacher import Evened, Lessons, Teacher, said_by
from pathovit.encoders.pretrain.tiles import Batch, Draw, TileStream, fresh
from pathovit.errors import NoSlidesError, SettingsError
from pathovit.outputs.folder import OutFolder
from pathovit.run.plan import SlideJob
from pathovit.settings import Settings

SIDE = 64
SMALL = replace(RECORDS["reference"], tile_px=SIDE)
COMMON = ("--tile-px", SIDE, "--steps", 6, "--batch-tiles", 4, "--device", "cpu")


@pytest.fixture
def stream(slides: list[Path]) -> Iterator[TileStream]:
    made = TileStream([SlideJob(path) for path in slides[:2]], SIDE, [1.0, 2.0], Settings(), 2, 0, lambda text: None)
    yield made
    made.close()


def test_the_same_step_has_the_same_tiles_at_every_resolution(stream: TileStream) -> None:
    first, again, other = (stream.batch(step, fresh(step, 16)) for step in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.which == again.which != other.which
    assert first.pixels.shape == (16, SIDE, SIDE, 3)
    assert {resolution for _, resolution, _ in first.which} == {0, 1}
    in_order = [batch.step for batch in stream.batches(2, 6, lambda step: fresh(step, 4))]
    assert in_order == [2, 3, 4, 5]
    assert np.array_equal(next(stream.batches(3, 4, lambda step: fresh(step, 16))).pixels, first.pixels)


def test_a_stream_of_other_tiles_is_another(stream: TileStream, slides: list[Path], tmp_path: Path) -> None:
    """By its digest a training goes on, and believes what a teacher said of its tiles."""

    def digest(jobs: list[SlideJob], settings: Settings = Settings()) -> str:  # noqa: B008
        made = TileStream(jobs, SIDE, [1.0, 2.0], settings, 1, 0, lambda text: None)
        made.close()
        return made.digest

    jobs = [SlideJob(path) for path in slides[:2]]
    assert digest(jobs) == stream.digest
    (tmp_path / "page.svs").write_text("<html>")
    assert digest([SlideJob(tmp_path / "page.svs"), *jobs]) == stream.digest, "what is left out draws nothing"
    assert digest([replace(jobs[0], mpp=(0.4, 0.4)), jobs[1]]) != stream.digest
    assert digest(jobs[:1]) != stream.digest
    assert digest(jobs, replace(Settings(), tiles=replace(Settings().tiles, min_coverage=0.6))) != stream.digest


def test_a_slide_that_cannot_be_read_is_left_out_and_said(slides: list[Path], tmp_path: Path) -> None:
    (tmp_path / "page.svs").write_text("<html>")
    said: list[str] = []
    jobs = [SlideJob(tmp_path / "page.svs"), SlideJob(slides[0])]
    made = TileStream(jobs, SIDE, [1.0], Settings(), 1, 0, said.append)
    assert made.slides == 1
    assert "page.svs" in said[0]
    made.close()
    with pytest.raises(NoSlidesError):
        TileStream(jobs[:1], SIDE, [1.0], Settings(), 1, 0, said.append)
    with pytest.raises(NoSlidesError):
        TileStream(jobs[1:], SIDE, [0.1], Settings(), 1, 0, said.append)
    assert said[-1] == "1 slide too coarse for tiles at 0.1 um per pixel: choose coarser ones with --tile-mpp"


def test_images_are_altered_and_stay_images() -> None:
    torch.manual_seed(0)
    images = to_images(torch.randint(0, 256, (4, SIDE, SIDE, 3), dtype=torch.uint8))
    for found in (altered(images), views(images, 32, (0.2, 0.5)), views(images, SIDE, (0.99, 1.0))):
        assert found.min() >= 0
        assert found.max() <= 1 + 1e-6
    assert not torch.allclose(altered(images), images, atol=0.02)
    torch.manual_seed(3)
    whole = views(images, SIDE, (1.0, 1.0))  # turned and mirrored alone: every pixel is kept
    assert torch.allclose(whole.flatten(2).sort(-1).values, images.flatten(2).sort(-1).values, atol=0.02)


@pytest.mark.parametrize(
    ("name", "side", "expected"), [("reference", 96, (256, 16)), ("swin_tiny", 224, (768, 32)), ("vit_small", 224, (384, 16)), ("resnet50", 224, (2048, 32))]
)  # fmt: skip
def test_every_family_gives_features_by_place(name: str, side: int, expected: tuple[int, int]) -> None:
    assert width_of(Backbone(RECORDS[name], side)) == expected


def test_places_of_a_teacher_are_seen_through_the_same_window_as_the_tile() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    seen = windows(6, (1.0, 1.0), images.device)  # turned and mirrored alone
    of_places = through(torch.nn.functional.avg_pool2d(images, 8), seen, 8)
    assert torch.allclose(torch.nn.functional.avg_pool2d(through(images, seen, 64), 8), of_places, atol=1e-5)


def test_a_teacher_tells_of_places_in_one_pass() -> None:
    teacher = load_encoder("reference", device="cpu", precision="fp32", tile_px=SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    whole, places = said_by(teacher, pixels)
    assert np.allclose(whole.numpy(), teacher.embed(pixels), atol=1e-5)
    assert places.shape == (3, 256, SIDE // 16, SIDE // 16)


def test_no_direction_of_what_a_teacher_says_drowns_the_others() -> None:
    chance = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=chance)).Q
    features = torch.randn(4000, 8, generator=chance) * torch.tensor([100.0, 4, 1, 1, 1, 1, 1, 1]) @ turned + 7
    evened = Evened(8, 3)
    evened.learn(features)
    spread = evened(features).std(0).sort(descending=True).values
    assert evened(features).mean(0).abs().max() < 1e-3
    assert float((spread**2).mean()) == pytest.approx(1, rel=0.01)
    assert float(spread[0] / spread[1]) == pytest.approx(5, rel=0.1)  # the square root of 25


def test_a_teacher_is_asked_once_of_a_tile_and_the_tiles_come_again_in_another_order(
    stream: TileStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "TOLD_TILES", 12)
    taught = Teacher(load_encoder("reference", device="cpu", precision="fp32", tile_px=SIDE))
    asked: list[int] = []
    monkeypatch.setattr(teaching, "said_by", lambda encoder, pixels: (asked.append(len(pixels)), said_by(encoder, pixels))[1])
    lessons = Lessons(taught, stream, tmp_path / "told", 9, 4, 0, 1, 0)
    said = [lessons.said(stream.batch(step, lessons.draws(step))) for step in range(9)]
    assert asked == [4, 4, 4]
    rounds = [[draw for step in range(at, at + 3) for draw in lessons.draws(step)] for at in (0, 3, 6)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert rounds[0] != rounds[1] != rounds[2]
    first = dict(zip(rounds[0], torch.cat([whole for whole, _ in said[:3]]), strict=True))
    for draw, whole in zip(rounds[1], torch.cat([whole for whole, _ in said[3:6]]), strict=True):
        assert torch.equal(first[draw], whole)
    places = said[8][1]
    assert places.shape == (4, 64, SIDE // 16, SIDE // 16)
    wanted = taught(stream.batch(8, lessons.draws(8)).pixels)[1]
    assert torch.allclose(places, wanted, atol=0.01)
    later = Lessons(taught, stream, tmp_path / "lost", 9, 4, 0, 1, 0)  # what was said is gone: it is asked again, to the same
    assert torch.equal(later.said(stream.batch(8, later.draws(8)))[0], said[8][0])


def test_batch_norm_is_settled_on_tiles_as_they_are() -> None:
    """What masked tiles leave in it is not what an encoder meets: features would be of another spread."""
    backbone, images = Backbone(SMALL, SIDE), torch.rand(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    backbone.train()
    for _ in range(3):
        backbone(0.1 * images)
    settle(backbone, images.split(8))
    assert not any(layer.training for layer in backbone.modules())
    first = norms_of(backbone)[0]
    seen = torch.cat([backbone.network.stem[0](backbone._seen(part)) for part in images.split(8)])
    assert torch.allclose(first.running_mean, seen.mean((0, 2, 3)), atol=1e-3)
    assert first.momentum == 0.1


class Killed(Exception):
    """As if the process had ended here."""


def weights_after(stream: TileStream, method: str, checkpoint: Path, kills: tuple[int, ...] = ()) -> list[torch.Tensor]:
    teacher = load_encoder("reference", device="cpu", precision="fp32", tile_px=SIDE) if method == "distil" else None
    settings = PretrainSettings(method, 8, 4, device="cpu", precision="fp32")
    left = list(kills)

    def on_line(line: Line) -> None:
        if left and line["step"] == left[0]:
            left.pop(0)
            raise Killed

    while True:
        try:
            found = pretrain(SMALL, SIDE, lambda network: None, stream, teacher, settings, "", checkpoint, on_line, None)
        except Killed:
            continue
        assert [line["step"] for line in found.history] == list(range(1, 9))
        return [tensor for tensor in found.backbone.network.state_dict().values() if tensor.is_floating_point()]


@pytest.mark.parametrize("method", ["distil", "dino", "mae"])
def test_a_killed_one_goes_on_to_the_same_weights(stream: TileStream, method: str, tmp_path: Path) -> None:
    whole = weights_after(stream, method, tmp_path / "a.pt")
    killed = weights_after(stream, method, tmp_path / "b.pt", kills=(1, 4, 7))
    assert all(torch.equal(a, b) for a, b in zip(whole, killed, strict=True))


def test_work_between_two_lines_is_kept(stream: TileStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time: a line of the history can be hours after the one before it."""
    monkeypatch.setattr(fit, "LOOKS", 2)
    monkeypatch.setattr(fit, "KEEP_S", -1)
    batches, begun, kills = TileStream.batches, [], [6]

    def broken(self: TileStream, first: int, steps: int, draws: Callable[[int], list[Draw]]) -> Iterator[Batch]:
        begun.append(first)
        for batch in batches(self, first, steps, draws):
            if kills and batch.step == kills[0]:
                kills.pop()
                raise Killed
            yield batch

    settings = PretrainSettings("mae", 8, 4, device="cpu", precision="fp32")

    def train(checkpoint: Path) -> fit.Pretrained:
        return pretrain(SMALL, SIDE, lambda n: None, stream, None, settings, "", checkpoint, lambda line: None, None)

    whole = train(tmp_path / "a.pt")
    monkeypatch.setattr(TileStream, "batches", broken)
    with pytest.raises(Killed):
        train(tmp_path / "b.pt")
    killed = train(tmp_path / "b.pt")
    assert begun == [0, 6]
    assert [line["step"] for line in killed.history] == [4, 8]
    assert [line["loss"] for line in killed.history] == [line["loss"] for line in whole.history]
    for one, other in zip(whole.backbone.parameters(), killed.backbone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_a_teacher_knows_is_learned(stream: TileStream, tmp_path: Path) -> None:
    teacher = load_encoder("reference", device="cpu", precision="fp32", tile_px=SIDE)
    settings = PretrainSettings("distil", 40, 8, device="cpu", precision="fp32")
    found = pretrain(SMALL, SIDE, lambda network: None, stream, teacher, settings, "", tmp_path / "c.pt", lambda line: None, None)
    assert np.mean([line["loss"] for line in found.history[-3:]]) < 0.9 * found.history[0]["loss"]


@pytest.mark.parametrize("method", ["distil", "dino", "mae"])
def test_the_command_makes_an_encoder_that_serves_as_any_other(slides: list[Path], tmp_path: Path, method: str) -> None:
    made, table = tmp_path / "My encoder", write_tiles(tmp_path / "tiles", 4)
    teacher = ("--teacher", "reference") if method == "distil" else ()
    done = pathovit("pretrain", *slides[:2], "--method", method, *teacher, *COMMON, "--probe", table, "--out", made)
    assert done.returncode == 0, done.stderr
    record = known_record(str(made))
    assert (record.name, record.tile_px, record.dim) == ("my-encoder", SIDE, 256)
    assert ("taught by reference (Apache-2.0)" in record.licence) == (method == "distil")
    about = json.loads((made / "pretrain.json").read_text())
    assert all(0 <= line["nearest"] <= 1 for line in about["history"])
    assert str(slides[0].stem) not in (made / "pretrain.json").read_text()  # slides are named nowhere
    assert (made / "pretrain.png").stat().st_size > 5_000
    assert not [path.name for path in made.iterdir() if path.name.startswith(".pretrain")]
    done = pathovit("embed", slides[0], "--encoder", made, "--max-tiles", 8, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (slide,) = OutFolder(tmp_path / "out").embedded()
    assert slide.recipe.encoder["encoder"] == "my-encoder"
    again = pathovit("pretrain", slides[0], "--method", method, *teacher, *COMMON, "--out", made)
    assert (again.returncode, "there is an encoder here already" in again.stderr) == (2, True)


def test_a_side_that_the_architecture_sees_but_its_record_does_not_name_is_learned(slides: list[Path], tmp_path: Path) -> None:
    """As the record is made before the first step: what is refused at the end was learned for nothing."""
    made = tmp_path / "odd"
    done = pathovit("pretrain", slides[0], "--method", "mae", "--tile-px", 80, "--steps", 2, "--batch-tiles", 2, "--out", made)
    assert done.returncode == 0, done.stderr
    assert (known_record(str(made)).tile_px, known_record(str(made)).multiple_px) == (80, 16)
    done = pathovit("embed", slides[0], "--encoder", made, "--max-tiles", 4, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "side"), [("levit_128s", 96), ("vit_small", 96), ("swin_tiny", 112), ("resnet50", 96), ("efficientnet_b0", 80), ("reference", 64)]
)  # fmt: skip
def test_what_was_learned_at_another_side_is_what_is_loaded(tmp_path: Path, name: str, side: int) -> None:
    """Positions and windows are made for a side: a network that was built for another one is not the same."""
    torch.manual_seed(0)
    backbone = Backbone(known_record(name), side).eval()
    record = replace(for_side(known_record(name), side), hub="", files=(), gated=False)
    write_encoder(tmp_path / "made", record, dict(backbone.network.state_dict()))
    loaded = load_encoder(str(tmp_path / "made"), device="cpu", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    with torch.no_grad():
        learned = backbone(to_images(torch.from_numpy(pixels))).numpy()
    assert loaded.tile_px == side
    assert np.allclose(loaded.embed(pixels), learned, atol=1e-4 * np.abs(learned).max())


def test_two_processes_learn_as_one(slides: list[Path], tmp_path: Path) -> None:
    made = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29517",
        "-m",
        "pathovit",
        "pretrain",
    ]
    given = [slides[0], "--method", "dino", *COMMON, "--out", made]
    done = subprocess.run(
        [*command, *map(str, given)], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 6: loss") == 1
    assert known_record(str(made)).dim == 256


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--method", "distil"), "name it with --teacher"),
        (("--method", "simclr"), "expected distil, dino, mae"),
        (("--method", "mae", "--architecture", "keep"), "gives no features by place"),
        (("--method", "dino", "--steps", 1), "--steps is 1"),
        (("--method", "dino", "--learning-rate", 0), "--learning-rate is 0"),
        (("--method", "dino", "--start", "none.safetensors"), "there is no such weights file"),
    ],
)
def test_what_cannot_be_is_told(slides: list[Path], tmp_path: Path, given: tuple[object, ...], said: str) -> None:
    done = pathovit("pretrain", slides[0], *given, "--out", tmp_path / "made")
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0), done.stderr
    assert said in done.stderr


def test_another_training_in_the_same_folder_is_refused(stream: TileStream, tmp_path: Path) -> None:
    weights_after(stream, "mae", tmp_path / "a.pt")
    with pytest.raises(SettingsError, match="by other settings or on other slides was begun there"):
        weights_after(stream, "dino", tmp_path / "a.pt")


def test_sides_and_seeds_that_cannot_be_are_refused_before_any_slide_is_looked_at() -> None:
    with pytest.raises(SettingsError, match="tiles of 250 px are no whole places of 31 px"):
        Mae(Backbone(RECORDS["resnet50"], 250))
    with pytest.raises(SettingsError, match="--seed is -1"):
        PretrainSettings(seed=-1)
