"""Look at a file before OpenSlide does: some files hang it, abort the process, or eat the memory.

Measured: a FIFO hangs it for ever; a 1 kB TIFF that declares one 60,000 x 60,000 tile ends the process with SIGABRT
when memory is refused; a truncated slide opens without complaint and fails tile by tile.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from pathovit.errors import SlideOpenError, slide_errors
from pathovit.files import open_patiently, tried_again
from pathovit.reasons import Code
from pathovit.slides.identity import slide_files

MAX_TILE_BYTES = 256 * 2**20  # a tile is decoded whole, 4 bytes a pixel
MAX_SIDE_PX = 2**24
MAX_PAGES = 10_000
LAST_ITEM = b"\xfe\xff\xdd\xe0"  # of a DICOM sequence: it ends the frames
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


HEADS = {  # by their first bytes, whatever they are called
    b"version https://git-lfs": "a pointer of git-lfs. Fetch the slide that it stands for: git lfs pull",
    b"<!doctype html": "a web page, saved instead of a slide: a download that needed a login. Download it again.",
    b"<html": "a web page, saved instead of a slide: a download that needed a login. Download it again.",
    b"<?xml": "an XML document, not a slide: perhaps a server's error message. Download it again.",
    b"%pdf": "a PDF document, not a slide.",
    b"\x1f\x8b": "a file packed by gzip. Unpack it first: gunzip",
    b"pk\x03\x04": "a ZIP archive. Unpack it first.",
    b"7z\xbc\xaf": "a 7z archive. Unpack it first.",
    b"rar!": "a RAR archive. Unpack it first.",
    b"bzh": "a file packed by bzip2. Unpack it first: bunzip2",
    b"\xfd7zxz": "a file packed by xz. Unpack it first: unxz",
    b"\x28\xb5\x2f\xfd": "a file packed by zstd. Unpack it first: unzstd",
    b"\x89hdf": "an HDF5 file: numbers, not pixels. Give the slide itself.",
    b"{": "a JSON document, not a slide: perhaps a server's error message. Download it again.",
}
ZEROS = "it begins with {} zero bytes: room was made for it, and it was never copied. Copy it again from its source."
HEAD_BYTES = 512


def check_kind(path: Path) -> None:
    """Refuse what is no slide at first sight.

    Raises
    ------
    SlideOpenError : missing, not a regular file, unreadable, empty, or a file of another kind by its name or its first bytes
    """
    with slide_errors(path):
        if not path.exists():
            raise SlideOpenError(path, "there is no such file. Check the path; a link may point nowhere.", Code.NO_FILE)
        found = tried_again(path.stat)
        if stat.S_ISDIR(found.st_mode):
            remedy = (
                "Give a slide file." if any(path.iterdir()) else "There is nothing in it: copy the slide again from its source."
            )
            raise SlideOpenError(path, f"this is a folder. {remedy}", Code.NOT_A_SLIDE)
        if not stat.S_ISREG(found.st_mode):
            raise SlideOpenError(path, "not a regular file (a pipe, socket or device). Give a slide file.", Code.NOT_A_SLIDE)
        if kind := NOT_SLIDES.get(path.suffix.lower()):
            raise SlideOpenError(path, f"this is {kind}", Code.NOT_A_SLIDE)
    if found.st_size == 0:
        raise SlideOpenError(path, "the file is empty (0 bytes). Copy it again from its source.", Code.EMPTY)
    with slide_errors(path), open_patiently(path) as file:
        head = file.read(HEAD_BYTES)
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, kind in HEADS.items():
        if begins.startswith(start):
            raise SlideOpenError(path, f"this is {kind}", Code.NOT_A_SLIDE)
    if path.suffix.lower() != ".dcm" and not any(head):  # whose first 128 bytes may be anything
        raise SlideOpenError(path, ZEROS.format(len(head)), Code.TRUNCATED)


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
        elif path.suffix.lower() == ".dcm":
            for part in slide_files(path):  # of all its levels
                _check_dicom(part, part.stat().st_size)


def _check_tiff(path: Path, file_bytes: int) -> None:
    import tifffile

    _refuse_truncated(path, file_bytes)
    with parsing(path), open_patiently(path) as file, tifffile.TiffFile(file) as tiff:
        if not len(tiff.pages):
            raise SlideOpenError(path, "damaged: it holds no image. Copy or export it again.")
        for page in tiff.pages:
            if not isinstance(page, tifffile.TiffPage):  # a frame: same geometry as the page before
                continue
            _check_page(path, page, file_bytes)


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """A fuzzed TIFF can raise anything in a parser; whatever it is, the file is refused."""
    try:
        yield
    except (SlideOpenError, MemoryError):
        raise
    except Exception as error:  # struct.error, IndexError, ZeroDivisionError ...: tifffile checks little of what it reads
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SlideOpenError(path, f"damaged or not a TIFF slide ({error}). Copy or export it again.") from error


def _check_dicom(path: Path, file_bytes: int) -> None:
    """Look whether all pixel data are there: OpenSlide opens a file without, and fails frame by frame."""
    import pydicom

    with open_patiently(path) as file:
        file.seek(max(0, file_bytes - 8))
        if file.read(8) == LAST_ITEM + bytes(4):  # as nearly all slides end: nothing more needs to be read
            return
        file.seek(0)
        try:
            found = pydicom.dcmread(file, stop_before_pixels=True, defer_size=1024)
        except OSError:
            raise
        except EOFError as error:
            raise SlideOpenError(path, f"truncated ({error}). Copy it again from its source.", Code.TRUNCATED) from error
        except Exception:  # a parser can raise anything on a damaged file; OpenSlide says what is wrong with it
            return
        end = _end_of_pixels(file, file_bytes, "<" if found.original_encoding[1] is not False else ">")
    if end > file_bytes:
        raise SlideOpenError(
            path,
            f"truncated: it has {file_bytes:,} bytes, and its pixel data do not end there. Copy it again from its source.",
            Code.TRUNCATED,
        )


def _end_of_pixels(file: BufferedReader, file_bytes: int, order: str) -> int:
    """The byte after the pixel data that begin where the file stands; one beyond the file where that is not in it."""
    head = file.read(12)
    if len(head) < 12:
        return file_bytes + (0 if not head else 1)
    explicit = head[4:6] in (b"OB", b"OW")
    (length,) = struct.unpack_from(order + "I", head, 8 if explicit else 4)
    at = file.tell() - (0 if explicit else 4)
    if length != 0xFFFFFFFF:
        return int(at + length)
    while True:  # fragments, each with its length
        file.seek(at)
        item = file.read(8)
        if len(item) < 8:
            return file_bytes + 1
        if item[:4] == LAST_ITEM:
            return at + 8
        at += 8 + int(struct.unpack_from(order + "I", item, 4)[0])
        if at > file_bytes:
            return at


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
                path,
                f"truncated: it has {file_bytes} bytes, fewer than a TIFF header. Copy it again from its source.",
                Code.TRUNCATED,
            )
        at: int = struct.unpack_from(order + place, head, 8 if big else 4)[0]
        for _ in range(MAX_PAGES):
            if not at:
                return
            if at >= file_bytes:
                raise SlideOpenError(
                    path,
                    f"truncated: a directory would start at byte {at:,}, and the file has {file_bytes:,}. Copy it again from its source.",
                    Code.TRUNCATED,
                )
            file.seek(at)
            entries = file.read(struct.calcsize(order + count))
            if len(entries) < struct.calcsize(order + count):
                return
            skipped = struct.unpack(order + count, entries)[0] * entry_bytes
            if skipped > file_bytes:
                return  # damaged: the parser says so
            file.seek(skipped, os.SEEK_CUR)
            following = file.read(struct.calcsize(order + place))
            if len(following) < struct.calcsize(order + place):
                return
            at = struct.unpack(order + place, following)[0]


READ_PHOTOMETRICS = (0, 1, 2, 6)  # TIFF's numbers: grey, which is refused by its name, RGB, YCbCr


def check_picture(path: Path) -> None:
    """Refuse a TIFF whose pixels would be taken for what they are not.

    Raises
    ------
    SlideOpenError : turned by its Orientation tag, not 8 bits a sample, grey, or of other colours than RGB
    """
    import tifffile

    with slide_errors(path), parsing(path), open_patiently(path) as file:
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
            Code.UNSUPPORTED,
        )
    if page.photometric not in READ_PHOTOMETRICS:
        raise SlideOpenError(path, f"its colours are {page.photometric.name}; RGB is needed. Convert it.", Code.UNSUPPORTED)
    if page.bitspersample != 8:
        raise SlideOpenError(
            path,
            f"its pixels have {page.bitspersample} bits a sample, and 8 are needed. Convert it, scaling the range that is used to 0 to 255.",
            Code.UNSUPPORTED,
        )
    if grey:
        pages = f" in {grey} pages of one channel each" if grey > 1 else ""
        raise SlideOpenError(
            path,
            f"its pixels are grey{pages}; a stained slide needs its colours. If the pages are red, green and blue, save them as one RGB page.",
            Code.UNSUPPORTED,
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
            Code.TOO_LARGE,
        )
    end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if end > file_bytes:
        raise SlideOpenError(
            path,
            f"truncated: it has {file_bytes:,} bytes, and pixel data up to byte {end:,} are announced. "
            "Copy it again from its source.",
            Code.TRUNCATED,
        )
