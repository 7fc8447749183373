"""Names of files, folders and patients reach no result: thirty are planted, everything is run, and every stored byte is searched."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from command import pathovit
from made_cohort import write_cohort
from made_paint import paint_strokes
from made_runs import folder_of, rewrite
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from pathovit.outputs.names import LOG, PRIVATE, Names
from pathovit.outputs.sealed import read_sealed

ASCII = (270, 306, 315, 316, 269, 305)  # ImageDescription, DateTime, Artist, HostComputer, DocumentName, Software


class Canaries:
    """Names that must not come out."""

    def __init__(self) -> None:
        self.planted: list[str] = []

    def __call__(self, where: str) -> str:
        name = f"CANARY{len(self.planted):02d}{where}"
        self.planted.append(name)
        return name

    def found_in(self, *folders: Path) -> dict[str, list[str]]:
        """By canary the files that hold it, or are called by it, in any encoding; private files of ours are left out."""
        found: dict[str, list[str]] = {}
        for path in (path for folder in folders for path in folder.rglob("*")):
            if path.name in (PRIVATE, LOG) and stat.S_IMODE(path.stat().st_mode) == 0o600:
                continue
            content = b"\0".join(_readings(path.read_bytes())) if path.is_file() else b""
            for name in self.planted:
                if name in path.name or name.encode() in content or name.encode("utf-16-le") in content:
                    found.setdefault(name, []).append(str(path))
        return found


def _readings(content: bytes) -> Iterator[bytes]:
    """A file as it is, and what is compressed in it."""
    yield content
    for place in re.finditer(rb"[\x78\x48\x58][\x01\x5e\x9c\xda]", content[: 2**20]):
        try:
            yield zlib.decompressobj().decompress(content[place.start() :], 2**16)
        except zlib.error:
            continue


def tissue(slides: list[Path]) -> np.ndarray:
    with openslide.OpenSlide(slides[0]) as slide:
        return np.asarray(slide.read_region((0, 0), 0, (3000, 2560)).convert("RGB"))


def plant_svs(path: Path, pixels: np.ndarray, canary: Canaries) -> Path:
    """A slide as Aperio writes it, with a name in every place that holds one."""
    height, width, _ = pixels.shape
    keys = ("Filename", "Title", "User", "Date", "Time", "ScanScope ID", "ImageID", "Barcode", "Patient")
    told = "|".join(f"{key} = {canary(key.replace(' ', ''))}" for key in keys)
    said = f"Aperio Image Library v12.0.15 \r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5|{told}"
    tags = [(tag, "s", 0, canary(f"tag{tag}"), True) for tag in ASCII[2:5]]
    label = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(label).text((20, 20), canary("label"), fill="black")
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(256, 256), photometric="rgb", compression="zlib", description=said, software=canary("software"),
                   datetime="2026:11:28 00:00:00", extratags=tags, metadata=None)  # fmt: skip
        for kind, subfiletype in (("label", 1), ("macro", 9)):
            about = f"Aperio Image Library v12.0.15 \r\n{kind} 400x400 {canary(kind)}"
            tiff.write(np.asarray(label), photometric="rgb", rowsperstrip=400, compression="zlib", subfiletype=subfiletype, description=about, metadata=None)  # fmt: skip
    return path


def plant_png(path: Path, pixels: np.ndarray, canary: Canaries) -> Path:
    told = PngInfo()
    told.add_text("Author", canary("PngAuthor"))
    told.add_text("Comment", canary("PngComment"), zip=True)
    picture = Image.fromarray(pixels[:2048, :2048])
    exif = picture.getexif()
    exif[315] = canary("Exif")
    picture.save(path, pnginfo=told, exif=exif)
    return path


def plant_dicom(folder: Path, source: Path, canary: Canaries) -> Path:
    """A DICOM slide whose patient has a name in every attribute for one."""
    import pydicom

    words = {
        "PatientName": canary("Patient"), "PatientID": canary("Mrn"), "AccessionNumber": canary("Acc"), "ContainerIdentifier": canary("Box"),
        "InstitutionName": canary("Clinic"), "ReferringPhysicianName": canary("Doctor"), "StudyDescription": canary("Study"), "StationName": canary("Station")[:16],
    }  # fmt: skip
    folder.mkdir()
    for number, path in enumerate(sorted(source.glob("*.dcm"))):
        found = pydicom.dcmread(path)
        for name, word in words.items():
            setattr(found, name, word)
        found.PhotometricInterpretation = "YBR_FULL_422"  # what OpenSlide takes
        found.save_as(folder / f"{canary.planted[-1]}-{number}.dcm")
    return folder


def test_no_name_comes_out(slides: list[Path], tmp_path: Path, shared: Path) -> None:
    canary, pixels = Canaries(), tissue(slides)
    home = tmp_path / canary("grandparent") / canary("folder")
    home.mkdir(parents=True)
    plant_svs(home / f"{canary('file')}.svs", pixels, canary)
    plant_png(home / f"{canary('flat')}.png", pixels, canary)
    plant_dicom(home / canary("dicom"), shared / "vendor/dicom_CMU-1-Small-Region", canary)
    first = next(home.glob("*.svs"))
    shutil.copyfile(first, home / f"{canary('twin')}.svs")
    (home / f"{canary('broken')}.svs").write_bytes(first.read_bytes()[:200_000])
    (home / f"{canary('page')}.svs").write_text(f"<html>{canary('html')}")
    manifest = home / f"{canary('table')}.csv"
    manifest.write_text(
        f"slide,patient,mpp\n{first.name},{canary('patient')},\n{next(home.glob('*.png')).name},{canary('other')},0.5\n"
    )
    settings = home / f"{canary('settings')}.toml"
    settings.write_text("[run]\nslide_timeout_min = 60\n")
    out, results = tmp_path / "out", tmp_path / "results"
    assert len(canary.planted) >= 30
    given = (home, next(home.glob("*.png")))
    done = pathovit("run", *given, "--manifest", manifest, "--settings", settings, "--out", out)
    assert done.returncode == 3, done.stderr
    assert first.name in done.stderr  # who sits before it may know
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["code"] for row in rows) == ["", "", "", "", "not_a_slide", "truncated"], [
        (row["code"], row["reason"]) for row in rows
    ]
    assert canary.found_in(out) == {}
    slide = folder_of(out, first.stem)
    painted = paint_strokes(out, slide.name, slides[0].with_suffix(".geojson"), home / canary("regions"))
    strokes = painted.rename(painted.with_name(f"{first.stem}.geojson"))  # as QuPath does
    model = results / "taught"
    for command in (
        ("teach", out, strokes, "--model", model, "--suggest", 3),
        ("tissue", out),
        ("heatmap", *given, "--manifest", manifest, "--out", out),
        ("export", out, "--folder", results / "export"),
        ("review", out, "--import", strokes),
        ("review", out, "--export", results / "labels.csv", "--regions", results / "regions", "--static", results / "static"),
        ("robustness", "reference", first, "--max-tiles", 8, "--out", results / "robustness"),
        ("verify", out),
    ):  # fmt: skip
        done = pathovit(*command)
        assert done.returncode in (0, 3), done.stderr
        assert canary.found_in(out, results) == {}, command
    done = pathovit("run", first, "--keep-names", "--max-tiles", 8, "--out", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    assert [name for name in canary.found_in(tmp_path / "kept") if name in first.name]  # so they are searched well
    told = pathovit("predict", out).stdout
    assert not any(name in told for name in canary.planted)
    names = json.loads(pathovit("names", out, "--json").stdout)
    assert {Path(one["path"]).name for one in names["files"].values()} >= {first.name}
    assert any(canary.planted[-3] or name for name in names["patients"].values())
    assert stat.S_IMODE((out / PRIVATE).stat().st_mode) == 0o600


def test_no_patient_comes_out_of_a_training(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort")
    rows = list(csv.DictReader(io.StringIO((folder / "labels.csv").read_text())))
    canary = Canaries()
    for row in rows:
        row["patient"] = canary(row["patient"])
    with (tmp_path / "labels.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    model, out = tmp_path / "model", tmp_path / "evaluation"
    features = ("--features", folder / "features")
    done = pathovit("train", tmp_path / "labels.csv", *features, "--model", model, "--folds", 2, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    done = pathovit("evaluate", model, tmp_path / "labels.csv", *features, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["patients_it_learned_from"], found["patients_known_by"]) == (
        len({row["patient"] for row in rows}),
        "names and slides",
    )
    assert canary.found_in(model, out) == {}
    with (out / "predictions.csv").open() as file:
        ids = {row["patient"] for row in csv.DictReader(file)}
    assert {Names.read(out).patient_of(known) for known in ids} == {row["patient"] for row in rows}
    assert {Names.read(model).patient_of(known) for known in ids} == {row["patient"] for row in rows}  # one id in both
    (model / PRIVATE).unlink()
    done = pathovit("evaluate", model, tmp_path / "labels.csv", *features, "--out", tmp_path / "again", "--json")
    assert json.loads(done.stdout)["patients_known_by"] == "slides"
    done = pathovit("evaluate", model, tmp_path / "labels.csv", *features, "--out", tmp_path / "named", "--keep-names")
    assert canary.planted[0] in (tmp_path / "named" / "predictions.csv").read_text()
    done = pathovit("compare", out, tmp_path / "named")  # by the names behind the ids
    assert done.returncode == 0, done.stderr


def test_kept_names_stand_in_the_results(slides: list[Path], finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path: path.read_bytes() for path in out.glob("slides/*/features.zarr/features/c/*/*")}
    done = pathovit("run", *slides, "--out", out, "--keep-names")
    assert done.returncode == 0, done.stderr
    with (out / "predictions.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == {path.name for path in slides}
    assert {path: path.read_bytes() for path in before} == before  # drawn anew, not embedded
    assert json.loads((out / "run.json").read_text())["slides"] == [str(path) for path in slides]
    done = pathovit("run", *slides, "--out", out)
    assert done.stderr.count("done already") == 3, done.stderr
    assert "3 slides of this folder were stored with names" in done.stderr


def test_a_run_that_was_killed_leaves_names_for_what_it_did(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    known = read_sealed(out / PRIVATE)
    rewrite(out / PRIVATE, files={name: about | {"slide_id": ""} for name, about in known["files"].items()})
    told = pathovit("names", out).stdout
    assert folder_of(out, "one").name in told
    assert "file-" not in told


def test_damaged_names_are_told(finished: Path, slides: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    content = (out / PRIVATE).read_bytes()
    (out / PRIVATE).write_bytes(content.replace(b"one.svs", b"two.svs", 1))
    done = pathovit("run", slides[0], "--out", out)
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0)
    assert PRIVATE in done.stderr
    assert PRIVATE in pathovit("verify", out).stdout
    (out / PRIVATE).write_bytes(content)
    (out / PRIVATE).chmod(0o644)
    assert "others may read it" in pathovit("verify", out).stdout


def test_a_slide_in_several_files_is_called_by_the_one_given_first(tmp_path: Path) -> None:
    for number in range(20):  # each with a key of its own, which decides how ids are sorted
        folder = tmp_path / str(number)
        folder.mkdir()
        names = Names()
        for name in ("first", "second", "third"):
            names.note(tmp_path / f"{name}.svs", None, "slide-0123456789ab")
        names.write(folder)
        again = Names.read(folder)
        again.note(tmp_path / "a copy.svs", None, "slide-0123456789ab")
        again.write(folder)
        assert Names.read(folder).by_id()["slide-0123456789ab"] == "first.svs"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a colleague")
def test_a_colleague_neither_reads_names_nor_takes_them_away(tmp_path: Path) -> None:
    names = Names()
    names.patient_id("Smith")
    names.write(tmp_path)
    tmp_path.chmod(0o777)
    code = f"""
import os
from pathlib import Path
from pathovit.errors import StorageError
from pathovit.outputs.names import Names
os.setuid(65534)
folder = Path({str(tmp_path)!r})
print(Names.are_closed(folder), Names.read(folder).patients)
try:
    Names().write(folder)
except StorageError as error:
    print(error)
"""
    for folder in [tmp_path, *tmp_path.parents]:  # a folder of tests lets nobody in
        if folder.stat().st_uid == 0 and folder != Path("/") and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o711)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "True {}", done.stderr
    assert "another user's" in done.stdout
    assert set(Names.read(tmp_path).patients.values()) == {"Smith"}


@pytest.mark.parametrize("text", ["/data/SMITH/SMITH_J.svs: cannot be read", "SMITH_J.svs is damaged", "of SMITH_J alone"])
def test_a_reason_names_nobody(text: str) -> None:
    from pathovit.outputs.names import without_names

    assert "SMITH" not in without_names(text, Path("/data/SMITH/SMITH_J.svs"))


def test_a_name_inside_another_word_is_left_alone() -> None:
    from pathovit.outputs.names import without_names

    assert without_names("S1A of S1 at 512 px, S1_label", Path("/data/x/S1A.svs")) == "… of S1 at 512 px, S1_label"
    assert without_names("damaged beside mag", Path("/data/x/mag.svs")) == "damaged beside …"
    assert without_names("mage, image, mag_thumb", Path("/data/x/mag.svs")) == "mage, image, …_thumb"
