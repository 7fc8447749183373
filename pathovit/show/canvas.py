"""Figures of a study by matplotlib, whatever the user's own settings of it are. The one door to matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathovit import RESEARCH_USE
from pathovit.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = "DejaVu Sans"  # comes with matplotlib


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's defaults: a matplotlibrc of the user does not reach our pictures."""
    import matplotlib

    left = {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}  # of the process, not of a picture
    ours = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in left}
    with matplotlib.rc_context(ours | {"font.family": [FONT]}):
        yield


def new_figure(size: tuple[float, float], title: str, footer: str = RESEARCH_USE) -> Any:
    """A figure of so many inches with its title and footer; to be made, filled and saved within `own_style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.supxlabel(footer, fontsize=8)
    return figure


def save(figure: Any, path: Path) -> None:
    """Put a figure in place as PNG, whole."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")  # or every picture in it would be resampled twice
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", pil_kwargs={"compress_level": 3}, metadata={"Software": "pathovit", "Comment": RESEARCH_USE}
    )
    write_atomically(path, buffer.getvalue())


def draw_map(
    values: NDArray[np.float32], extent: tuple[float, float, float, float], name: str, high: float | None, axes: Axes | None,
    outside: str = "",
) -> Axes:  # fmt: skip
    """A layer of a map on axes of the user's own, in the user's own style; a new figure where there are none.

    Parameters
    ----------
    extent : left, right, bottom, top in millimetres
    high : end of the scale; None for the highest value
    outside : why its scores mean nothing, and get no colour
    """
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots(layout="constrained")[1]
    drawn = axes.imshow(values, cmap="Greys" if outside else "cividis", vmin=0, vmax=high, extent=extent, interpolation="nearest")
    axes.figure.colorbar(drawn, ax=axes, label=name)
    axes.set(xlabel="mm", ylabel="mm")
    axes.set_title(f"{outside}\n{RESEARCH_USE}" if outside else RESEARCH_USE, fontsize="x-small")
    return axes
