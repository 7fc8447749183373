"""JPEG 2000, decoded strictly. The one door to OpenJPEG.

A damaged code block decodes to wrong pixels without an error, so every warning counts here, and one more check is asked
for: after a block is decoded its bytes must be used up, no more and no fewer (as the `predictable termination` flag of the
code stream has OpenJPEG do; set here for streams that were written without it, it changes no pixel). On a real slide that
finds nine in ten changed bytes, where a plain decoder finds one in a hundred. The library is the one that imagecodecs or
Pillow bring; imagecodecs itself prints warnings and does not pass them on.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import struct
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pathovit.slides.readers import RGB

MOST_SYNTHESIZED = 16  # bytes that a sound block may read beyond its end: encoders cut off what a decoder can guess
PTERM = 0x10
SOC, COD, COC, SOT = 0xFF4F, 0xFF52, 0xFF53, 0xFF90
CODE_STREAM = 0  # of OpenJPEG's formats
PARAMETERS_BYTES = 2**15  # more than any version's opj_dparameters_t


class Damaged(ValueError):
    """The decoder complains of the data, so many times."""

    def __init__(self, complaint: str, complaints: int = 1) -> None:
        super().__init__(complaint)
        self.complaints = complaints


class _Component(ctypes.Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("dx", "dy", "w", "h", "x0", "y0", "prec", "bpp", "sgnd", "resno_decoded", "factor")),
        ("data", POINTER(c_int32)),
        ("alpha", c_uint16),
    ]


class _Image(ctypes.Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("x0", "y0", "x1", "y1", "numcomps")),
        ("color_space", c_int),
        ("comps", POINTER(_Component)),
        ("icc_profile_buf", c_void_p),
        ("icc_profile_len", c_uint32),
    ]


_Message = CFUNCTYPE(None, c_char_p, c_void_p)
_Read = CFUNCTYPE(c_size_t, c_void_p, c_size_t, c_void_p)
_Skip = CFUNCTYPE(c_int64, c_int64, c_void_p)
_Seek = CFUNCTYPE(c_int, c_int64, c_void_p)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "opj_create_decompress": (c_void_p, [c_int]),
    "opj_set_default_decoder_parameters": (None, [c_void_p]),
    "opj_setup_decoder": (c_int, [c_void_p, c_void_p]),
    "opj_set_warning_handler": (c_int, [c_void_p, _Message, c_void_p]),
    "opj_set_error_handler": (c_int, [c_void_p, _Message, c_void_p]),
    "opj_stream_create": (c_void_p, [c_size_t, c_int]),
    "opj_stream_set_user_data": (None, [c_void_p, c_void_p, c_void_p]),
    "opj_stream_set_user_data_length": (None, [c_void_p, c_uint64]),
    "opj_stream_set_read_function": (None, [c_void_p, _Read]),
    "opj_stream_set_skip_function": (None, [c_void_p, _Skip]),
    "opj_stream_set_seek_function": (None, [c_void_p, _Seek]),
    "opj_read_header": (c_int, [c_void_p, c_void_p, POINTER(POINTER(_Image))]),
    "opj_decode": (c_int, [c_void_p, c_void_p, POINTER(_Image)]),
    "opj_end_decompress": (c_int, [c_void_p, c_void_p]),
    "opj_stream_destroy": (None, [c_void_p]),
    "opj_destroy_codec": (None, [c_void_p]),
    "opj_image_destroy": (None, [POINTER(_Image)]),
}


@cache
def library() -> Any | None:
    """OpenJPEG with the signatures of its functions; None where no copy of it is found."""
    for path in _candidates():
        try:
            found = ctypes.CDLL(path)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return found
    return None


def _candidates() -> list[str]:
    """Copies that wheels bring, then the system's."""
    found = []
    for package, folders in (
        ("imagecodecs", ("../imagecodecs.libs", ".dylibs")),
        ("PIL", ("../pillow.libs", ".dylibs", "../PIL/.dylibs")),
    ):
        spec = importlib.util.find_spec(package)
        for folder in folders if spec and spec.origin else ():
            assert spec and spec.origin
            found += sorted(str(path) for path in (Path(spec.origin).parent / folder).resolve().glob("libopenjp2*"))
    system = ctypes.util.find_library("openjp2")
    return [*found, *([system] if system else [])]


def decode(coded: bytes, check_ends: bool = True) -> RGB:
    """Pixels (H, W, 3) of a JPEG 2000 code stream of three 8-bit components, as they are stored.

    Parameters
    ----------
    check_ends : whether every block must end where its data end

    Raises
    ------
    Damaged : an error, or any warning, of the decoder; or another kind of picture
    """
    lib = library()
    assert lib, "ask library() first"
    stream_only = code_stream(coded)
    data = with_checked_ends(stream_only) if check_ends else stream_only
    complaints: list[str] = []
    at = 0

    def complain(message: bytes, _: int | None) -> None:
        text = message.decode("ascii", "replace").strip()
        beyond = re.search(r"(\d+) synthesized", text)
        if beyond is None or int(beyond[1]) > MOST_SYNTHESIZED:
            complaints.append(text)

    def read(target: int, size: int, _: int | None) -> int:
        nonlocal at
        part = data[at : at + size]
        ctypes.memmove(target, part, len(part))
        at += len(part)
        return len(part) or 2**64 - 1  # (size_t) -1: the end

    def skip(count: int, _: int | None) -> int:
        nonlocal at
        at = min(max(at + count, 0), len(data))
        return count

    def seek(place: int, _: int | None) -> int:
        nonlocal at
        at = min(place, len(data))
        return 1

    callbacks = (_Message(complain), _Read(read), _Skip(skip), _Seek(seek))  # kept alive until the end
    codec, stream = lib.opj_create_decompress(CODE_STREAM), lib.opj_stream_create(max(len(data), 1024), 1)
    image = POINTER(_Image)()
    try:
        lib.opj_set_warning_handler(codec, callbacks[0], None)
        lib.opj_set_error_handler(codec, callbacks[0], None)
        parameters = ctypes.create_string_buffer(PARAMETERS_BYTES)
        lib.opj_set_default_decoder_parameters(parameters)
        lib.opj_stream_set_user_data(stream, None, None)
        lib.opj_stream_set_user_data_length(stream, len(data))
        lib.opj_stream_set_read_function(stream, callbacks[1])
        lib.opj_stream_set_skip_function(stream, callbacks[2])
        lib.opj_stream_set_seek_function(stream, callbacks[3])
        good = lib.opj_setup_decoder(codec, parameters) and lib.opj_read_header(stream, codec, byref(image))
        good = good and lib.opj_decode(codec, stream, image) and lib.opj_end_decompress(codec, stream)
        if not good or complaints:
            raise Damaged(complaints[0] if complaints else "it cannot be decoded", len(complaints))
        return _pixels(image.contents)
    finally:
        if image:
            lib.opj_image_destroy(image)
        lib.opj_stream_destroy(stream)
        lib.opj_destroy_codec(codec)


def _pixels(image: _Image) -> RGB:
    parts = image.comps[: image.numcomps]
    sizes = {(part.h, part.w) for part in parts}
    if len(parts) != 3 or len(sizes) != 1 or any(part.prec != 8 or part.sgnd or not part.data for part in parts):
        raise Damaged("not three components of 8 bits")
    (shape,) = sizes
    pixels = np.empty((*shape, 3), np.uint8)
    for channel, part in enumerate(parts):
        pixels[..., channel] = np.ctypeslib.as_array(part.data, shape)
    return pixels


def code_stream(coded: bytes) -> bytes:
    """The code stream inside a JP2 file's boxes; anything else as it is."""
    at = 0
    if coded[4:8] != b"jP  ":
        return coded
    while at + 8 <= len(coded):
        length, kind = struct.unpack_from(">I4s", coded, at)
        head = 8
        if length == 1 and at + 16 <= len(coded):
            length, head = struct.unpack_from(">Q", coded, at + 8)[0], 16
        if kind == b"jp2c":
            return coded[at + head : at + length if length else None]
        if length < head:
            break
        at += length
    return coded


def with_checked_ends(coded: bytes) -> bytes:
    """The code stream with the flag that has a decoder check where blocks end; as it is, if it is no plain code stream."""
    changed = bytearray(coded)
    at = 2
    if len(coded) < 4 or struct.unpack_from(">H", coded)[0] != SOC:
        return coded
    while at + 4 <= len(coded):
        marker, length = struct.unpack_from(">HH", coded, at)
        if marker == SOT:
            return bytes(changed)
        style = {COD: 12, COC: 9}.get(marker)  # COC: for fewer than 257 components
        if style is not None and style < length + 2 and at + style < len(coded):
            changed[at + style] |= PTERM
        at += 2 + length
    return coded
