"""Text from outside, made safe to show: file names can hold anything."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def plain(text: str) -> str:
    """Text without control characters and lone surrogates, for pictures, tables and terminals."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.encode("utf-8", "replace").decode())


def duration(seconds: float) -> str:
    """4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes for people: 512 B, 4.0 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def say_left_out(areas: Mapping[str, float]) -> str:
    """1.8 mm² ink, 0.2 mm² grey: what was taken for no tissue although it is not glass."""
    return ", ".join(f"{say_mm2(area)} {reason}" for reason, area in areas.items())


def say_mm2(area: float) -> str:
    """An area for people: 0.24 mm², 1,230 mm²."""
    return f"{area:.2g} mm²" if area < 10 else f"{area:,.0f} mm²"


def first_line(error: BaseException) -> str:
    """What an error of a library says that says much: its first line, or of what kind it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def counted(count: int, thing: str) -> str:
    """So many things: 1 slide, 2 slides."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def as_card(rows: Mapping[str, str], picture: Image | None = None) -> str:
    """What a notebook shows of an object: rows of a table, and a picture beside them."""
    cells = "".join(
        f"<tr><td style='text-align:left;opacity:.7'>{html.escape(plain(name))}</td>"
        f"<td style='text-align:left'>{html.escape(plain(value))}</td></tr>"
        for name, value in rows.items()
    )
    shown = ""
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        shown = f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    return f"<div style='display:flex;gap:1em;align-items:flex-start'><table>{cells}</table>{shown}</div>"
