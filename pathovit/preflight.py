"""Look at a file before OpenSlide does: some files hang it, abort the process, or eat the memory.

Measured: a FIFO hangs it for ever; a 1 kB TIFF that declares one 60,000 x 60,000 tile ends the process with SIGABRT
when memory is refused; a truncated slide opens without complaint and fails tile by tile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pathovit.errors import NoSlidesError, SlideOpenError, slide_errors
from pathovit.files import open_patiently, tried_again

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".dcm", ".vms", ".vmu", ".svslide", ".czi")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_TILE_BYTES = 256 * 2**20  # a tile is decoded whole, 4 bytes a pixel
MAX_SIDE_PX = 2**24
MAX_PAGES = 10_000
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATIONS = {
    2: "mirrored", 3: "turned by 180 degrees", 4: "flipped", 5: "mirrored and turned", 6: "turned by 90 degrees",
    7: "mirrored and turned", 8: "turned by 270 degrees",
}  # fmt: skip
NOT_SLIDES = {
    **dict.fromkeys(
        (".csv", ".tsv", ".txt", ".xlsx", ".xls"),
        "a table. Give tables with --manifest (or to `pathovit train`), and slides here.",
    ),
    **dict.fromkeys((".json", ".geojson", ".xml", ".toml", ".yaml", ".html", ".md", ".pdf"), "a document, not a slide."),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z"), "an archive. Unpack it first."),
    **dict.fromkeys((".pt", ".pth", ".safetensors", ".h5", ".npy"), "numbers, not pixels. Give the slide itself."),
}
OWN_OUTPUTS = {"run.json", "slide.json"}
OWN_PICTURES = "heatmap.ome.tiff"  # is no slide


def find_slides(paths: Iterable[Path]) -> list[Path]:
    """Slide files under the given files and folders, sorted within a folder, each once.

    Files named one by one are taken whatever their suffix (preflight says what is wrong with them). Of a DICOM
    series, which is many files, the first stands for all.

    Raises
    ------
    NoSlidesError : nothing was found
    """
    found: dict[Path, None] = {}
    asked = list(paths)
    if not any(path.exists() or path.is_symlink() for path in asked):
        raise NoSlidesError(
            f"{', '.join(str(p) for p in asked) or 'No path given'}: there is no such file or folder. Check the path."
        )
    for path in asked:
        if path.is_dir():
            found.update(dict.fromkeys(_slides_in(path)))
        else:
            found[path] = None
    slides = _one_file_per_series(found)
    if not slides:
        names = ", ".join(str(p) for p in asked) or "no path given"
        pictures = next((picture for path in asked if path.is_dir() for picture in _pictures_in(path)), None)
        hint = f" Plain pictures count only when they are named, e.g. {pictures}." if pictures else ""
        raise NoSlidesError(
            f"No slide found in {names}. Give slide files ({', '.join(SLIDE_SUFFIXES)}) or a folder of them.{hint}"
        )
    return slides


def _slides_in(folder: Path) -> Iterator[Path]:
    """Slide files below a folder; links to folders, data folders of MRXS slides and output folders are left out.

    The folder that was named is looked at whatever else lies in it. Plain pictures are not slides unless they are named.
    """
    for root, folders, files in os.walk(folder, followlinks=False):
        if OWN_OUTPUTS & set(files):  # what pathovit wrote is not looked at as slides
            if Path(root) != folder:
                folders.clear()
                continue
            files = [name for name in files if name != OWN_PICTURES]
        mirax_data = {Path(name).stem for name in files if name.lower().endswith(".mrxs")}
        folders[:] = sorted(name for name in folders if name not in mirax_data and not name.endswith(".zarr"))
        for name in sorted(files):
            if name.lower().endswith(SLIDE_SUFFIXES) and not name.startswith("."):
                yield Path(root) / name


def _pictures_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in FLAT_SUFFIXES)


def _one_file_per_series(paths: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    seen: set[tuple[Path, str]] = set()
    for path in paths:
        if path.suffix.lower() == ".dcm":
            series = (path.parent, dicom_series(path))
            if series[1] and series in seen:
                continue
            seen.add(series)
        kept.append(path)
    return kept


def dicom_series(path: Path) -> str:
    """SeriesInstanceUID of a DICOM file, from its first 64 KiB; "" if there is none.

    Read here, and not with a DICOM library, because nothing else of the file is needed: explicit and implicit
    little-endian files both hold the tag (0020,000E) followed by its length and text.
    """
    if not path.is_file():
        return ""
    with slide_errors(path), path.open("rb") as file:
        head = file.read(65536)
    at = head.find(b"\x20\x00\x0e\x00")
    if at < 0:
        return ""
    match = re.match(rb"(?:UI..|....)([0-9.]{1,64})", head[at + 4 : at + 80], re.DOTALL)
    return match.group(1).decode("ascii") if match else ""


def check_kind(path: Path) -> None:
    """Refuse what is no slide at first sight.

    Raises
    ------
    SlideOpenError : missing, not a regular file, unreadable, empty, or a file of another kind by its name
    """
    with slide_errors(path):
        if not path.exists():
            raise SlideOpenError(path, "there is no such file. Check the path; a link may point nowhere.")
        found = tried_again(path.stat)
        if stat.S_ISDIR(found.st_mode):
            raise SlideOpenError(path, "this is a folder. Give a slide file.")
        if not stat.S_ISREG(found.st_mode):
            raise SlideOpenError(path, "not a regular file (a pipe, socket or device). Give a slide file.")
        if kind := NOT_SLIDES.get(path.suffix.lower()):
            raise SlideOpenError(path, f"this is {kind}")
    if found.st_size == 0:
        raise SlideOpenError(path, "the file is empty (0 bytes). Copy it again from its source.")


def check_file(path: Path) -> None:
    """Refuse what must not reach a decoder.

    Raises
    ------
    SlideOpenError : as `check_kind`, or truncated, or of absurd dimensions
    """
    check_kind(path)
    with slide_errors(path):
        with open_patiently(path) as file:
            head = file.read(4)
        if head in TIFF_HEADS:
            _check_tiff(path, path.stat().st_size)


def _check_tiff(path: Path, file_bytes: int) -> None:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would complain of becomes our own message
    _refuse_truncated(path, file_bytes)
    try:
        with open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
            if not len(tiff.pages):
                raise SlideOpenError(path, "damaged: it holds no image. Copy or export it again.")
            for page in tiff.pages:
                if not isinstance(page, tifffile.TiffPage):  # a frame: same geometry as the page before
                    continue
                _check_page(path, page, file_bytes)
    except SlideOpenError:
        raise
    except OSError as error:
        if error.errno is None:
            raise SlideOpenError(path, f"damaged or not a TIFF slide ({error}). Copy or export it again.") from error
        raise
    except Exception as error:  # a fuzzed TIFF can raise anything in a parser; whatever it is, the file is refused
        raise SlideOpenError(path, f"damaged or not a TIFF slide ({error}). Copy or export it again.") from error


def _refuse_truncated(path: Path, file_bytes: int) -> None:
    """Follow the chain of directories, which often lie behind the pixels: a file that was cut off has lost them."""
    if path.suffix.lower() == ".ndpi":  # has a chain of its own kind
        return
    with open_patiently(path) as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = len(head) == 16 and struct.unpack_from(order + "H", head, 2)[0] == 43
        place, count, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
        if len(head) < (16 if big else 8):
            raise SlideOpenError(
                path, f"truncated: it has {file_bytes} bytes, fewer than a TIFF header. Copy it again from its source."
            )
        at: int = struct.unpack_from(order + place, head, 8 if big else 4)[0]
        for _ in range(MAX_PAGES):
            if not at:
                return
            if at >= file_bytes:
                raise SlideOpenError(
                    path,
                    f"truncated: a directory would start at byte {at:,}, and the file has {file_bytes:,}. Copy it again from its source.",
                )
            file.seek(at)
            entries = file.read(struct.calcsize(order + count))
            if len(entries) < struct.calcsize(order + count):
                return
            file.seek(struct.unpack(order + count, entries)[0] * entry_bytes, os.SEEK_CUR)
            following = file.read(struct.calcsize(order + place))
            if len(following) < struct.calcsize(order + place):
                return
            at = struct.unpack(order + place, following)[0]


def check_picture(path: Path) -> None:
    """Refuse a TIFF whose pixels would be taken for what they are not.

    Raises
    ------
    SlideOpenError : turned by its Orientation tag, not 8 bits a sample, grey, or of other colours than RGB
    """
    import tifffile

    with slide_errors(path), open_patiently(path) as file:
        if file.read(2) not in (b"II", b"MM"):
            return
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            tiled = [p for p in tiff.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled]
            turned = {p.tags["Orientation"].value for p in tiled if "Orientation" in p.tags}
            grey = sum(1 for p in tiff.pages if p.shape[:2] == page.shape[:2]) if page.samplesperpixel == 1 else 0
    if page.is_tiled and (odd := turned - {1, 0}):
        raise SlideOpenError(
            path,
            f"its Orientation tag is {min(odd)} ({ORIENTATIONS.get(min(odd), 'unknown')}). Save it upright, without that tag.",
        )
    if page.bitspersample != 8:
        raise SlideOpenError(
            path,
            f"its pixels have {page.bitspersample} bits a sample, and 8 are needed. Convert it, scaling the range that is used to 0 to 255.",
        )
    if grey:
        pages = f" in {grey} pages of one channel each" if grey > 1 else ""
        raise SlideOpenError(
            path,
            f"its pixels are grey{pages}; a stained slide needs its colours. If the pages are red, green and blue, save them as one RGB page.",
        )


def _check_page(path: Path, page: object, file_bytes: int) -> None:
    import tifffile

    assert isinstance(page, tifffile.TiffPage)
    width, height = page.imagewidth, page.imagelength
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise SlideOpenError(path, f"declares an image of {width} x {height} pixels. The file is damaged.")
    if page.is_tiled and page.tilewidth * page.tilelength * 4 > MAX_TILE_BYTES:
        raise SlideOpenError(
            path,
            f"its tiles are {page.tilewidth} x {page.tilelength} pixels, more than can be decoded safely. "
            "Re-tile it, e.g. with `vips tiffsave --tile --pyramid`.",
        )
    end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if end > file_bytes:
        raise SlideOpenError(
            path,
            f"truncated: it has {file_bytes:,} bytes, and pixel data up to byte {end:,} are announced. "
            "Copy it again from its source.",
        )


def slide_files(path: Path) -> list[Path]:
    """All files that make up a slide: the file itself, MRXS and VMS data beside it, the files of a DICOM series."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        series = dicom_series(path)
        beside = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".dcm" and p.is_file())
        return [p for p in beside if dicom_series(p) == series] or [path]
    if suffix in (".mrxs", ".vms", ".vmu"):
        data = path.with_suffix("")
        inside = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else []
        return [path, *inside]
    return [path]


FileState = tuple[tuple[int, int, int], ...]  # size, time and inode of every file of a slide


def file_state(path: Path) -> FileState:
    """What changes when a slide's files are replaced or written to."""
    with slide_errors(path):
        stats = [tried_again(file.stat) for file in slide_files(path)]
    return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)


def require_unchanged(path: Path, state: FileState, sha256: str) -> FileState:
    """The state of a slide's files, which hold what they held. Raises SlideOpenError where they are others than those looked at first."""
    now = file_state(path)
    if now != state and content_sha256(path) != sha256:  # a file may be touched, and be the same
        raise SlideOpenError(
            path,
            "changed while it was read: it was replaced, or is still being copied. Run the same command again when it is whole.",
        )
    return now


def content_sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of all bytes of a slide; of several files: names and bytes, in order of name."""
    files = slide_files(path)
    digest = hashlib.sha256()
    with slide_errors(path):
        for part in files:
            if len(files) > 1:
                digest.update(part.name.encode("utf-8", "surrogateescape") + b"\0")
            with open_patiently(part) as file:
                while block := file.read(2**22):
                    digest.update(block)
    return digest.hexdigest()


def slide_id(path: Path, sha256: str) -> str:
    """ASCII slug of the stem and 12 hex digits of the content: safe in paths, tables and HTML, never ambiguous."""
    ascii_stem = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_stem).strip("-")[:60] or "slide"
    return f"{slug}-{sha256[:12]}"
