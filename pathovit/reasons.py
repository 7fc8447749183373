"""Why a slide failed, as codes that stay: in slide.json, predictions.csv and --json; `pathovit explain CODE` says cause and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What went wrong. A code is never given another meaning; new ones may come."""

    NO_FILE = "no_file"
    NO_PERMISSION = "no_permission"
    EMPTY = "empty"
    NOT_A_SLIDE = "not_a_slide"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    NO_MPP = "no_mpp"
    WRONG_MPP = "wrong_mpp"
    TOO_COARSE = "too_coarse"
    NO_TISSUE = "no_tissue"
    UNREADABLE = "unreadable"
    UNREAD_TILES = "unread_tiles"
    CHANGED = "changed"
    IO_ERROR = "io_error"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    KILLED = "killed"
    DEVICE = "device"
    FEATURES = "features"
    STORE_DAMAGED = "store_damaged"
    OTHER_RECIPE = "other_recipe"
    SAME_SLIDE = "same_slide"
    SETTINGS = "settings"
    NO_SLIDES = "no_slides"
    IN_USE = "in_use"
    STORAGE = "storage"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Explained:
    """What a code stands for, and what to do."""

    cause: str
    remedy: str


COPY_AGAIN = "Copy or export it again from its source, and compare the two sizes."
EXPLAINED = {
    Code.NO_FILE: Explained("There is no file of that name, or a link points nowhere.", "Check the path; mount the drive it lies on."),
    Code.NO_PERMISSION: Explained(
        "This user may not read the file.", "Ask its owner for the right to read it (chmod, or the access list of the share)."
    ),
    Code.EMPTY: Explained("The file has 0 bytes, or the folder holds nothing: a copy that was never made.", COPY_AGAIN),
    Code.NOT_A_SLIDE: Explained(
        "The file is something else: a folder, a pipe, a table, an archive, a web page that was saved instead of a slide, a git-lfs pointer; "
        "or no reader knows its format.",
        "Give the slide file itself. Unpack an archive; fetch what a pointer stands for with `git lfs pull`; log in and download again.",
    ),
    Code.TRUNCATED: Explained("The file ends before the data that it announces: a copy or a download that stopped half way.", COPY_AGAIN),
    Code.DAMAGED: Explained("The file contradicts itself: directories, sizes or tiles that cannot be true.", COPY_AGAIN),
    Code.UNSUPPORTED: Explained(
        "A sound file of a form whose pixels would be taken for what they are not: grey, 16 bits, turned, inverted, or without plain tiles where "
        "those were asked for.",
        "The message says what to convert; a tool that does is `vips tiffsave --tile --pyramid`.",
    ),
    Code.TOO_LARGE: Explained(
        "It cannot be read without more memory than one slide may take: a picture without tiles, or with very large ones.",
        "Make a tiled pyramid of it: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg",
    ),
    Code.NO_MPP: Explained(
        "The file does not say how large its pixels are.",
        "Give micrometres per pixel with --mpp (about 0.25 for a scan at 40x, 0.5 at 20x), or in the mpp column of a --manifest.",
    ),
    Code.WRONG_MPP: Explained("The pixel size that is stated cannot be true of a microscope slide.", "Give the true one with --mpp, or in a --manifest."),
    Code.TOO_COARSE: Explained(
        "The slide was scanned coarser than the encoder needs.",
        "Use an encoder that was made for it, give the true --mpp, or allow more with --max-upsampling: the features are then less certain.",
    ),
    Code.NO_TISSUE: Explained(
        "No tissue was found: an empty glass, a stain that is too pale, fluorescence, or a pixel size that is wrong.",
        "Look at the slide. The settings of [tissue] say what is left out; `pathovit info` shows how much.",
    ),
    Code.UNREADABLE: Explained("Tiles of it cannot be decoded, and too few are left.", COPY_AGAIN),
    Code.UNREAD_TILES: Explained(
        "The slide is done, and more of its tissue could not be read than run.max_unreadable allows: its verdict is degraded.",
        "Look in the overview where that tissue lies, before the answer is used. " + COPY_AGAIN,
    ),
    Code.CHANGED: Explained("The file was replaced or written to while it was read.", "Run the same command again when it is whole."),
    Code.IO_ERROR: Explained(
        "The drive or the network failed while the file was read, and went on failing when it was asked again. It says nothing of the slide.",
        "Look at the mount and its server; then run the same command again.",
    ),
    Code.TIMEOUT: Explained(
        "Reading or drawing it took longer than it may, twice.",
        "Look at the drive it lies on. run.read_timeout_s says how long a tile may take, run.slide_timeout_min a slide.",
    ),
    Code.OUT_OF_MEMORY: Explained(
        "It outgrew the memory that its worker may have.", "Look whether its pixel size is true; use fewer workers, or --batch-tiles."
    ),
    Code.CRASHED: Explained("Reading it ended its worker, twice, alone: a decoder crashed on it.", COPY_AGAIN),
    Code.KILLED: Explained(
        "Its workers were ended from outside, again and again: by the system's guard of memory, a batch system or a person. The slide may be sound.",
        "Look at the machine's memory (dmesg), then run the same command again.",
    ),
    Code.DEVICE: Explained(
        "The device that embeds was lost or refused its work, and did so again in a new worker.",
        "Look at it with nvidia-smi; --device cpu does without it.",
    ),
    Code.FEATURES: Explained(
        "The encoder gave numbers that cannot be stored: none, or too large ones.", "Try --precision fp32, --feature-dtype float32, or other weights."
    ),
    Code.STORE_DAMAGED: Explained(
        "What is stored of the slide is missing, damaged, of another version, or somebody else's.",
        "pathovit verify OUT --repair computes again what is damaged; run with --overwrite replaces all of it.",
    ),
    Code.OTHER_RECIPE: Explained(
        "The folder holds features of the slide that were made otherwise: by another encoder, tile size, pixel size or device.",
        "Choose another --out, or replace them with --overwrite.",
    ),
    Code.SAME_SLIDE: Explained("The same content was given twice, and is done once.", "Nothing needs to be done, unless the other one failed."),
    Code.SETTINGS: Explained("An option, a settings file, a table or a model cannot be used; exit code 2.", "The message names it."),
    Code.NO_SLIDES: Explained("Nothing was found to be done; exit code 4.", "Give slide files, a folder of them, or the --out folder of a run."),
    Code.IN_USE: Explained("Another run writes to this folder; exit code 5.", "Wait for it, begin both with --join, or choose another --out."),
    Code.STORAGE: Explained(
        "The output cannot be written: full, read-only, gone or faulty; exit code 6.",
        "Free some space or choose another --out; the same command then goes on where it stopped.",
    ),
    Code.INTERNAL: Explained("A fault of pathovit itself; exit code 1.", "The other slides went on. Report it with the message, which holds the traceback."),
}  # fmt: skip
