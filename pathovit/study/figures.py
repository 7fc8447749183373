"""Pictures of training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathovit.model.judged import Metric, Metrics
from pathovit.model.metrics import CALIBRATION_BINS, lifelines
from pathovit.model.slide_model import SlideModel
from pathovit.model.targets import Kind
from pathovit.model.targets.classes import Classes
from pathovit.model.targets.survival import Survival
from pathovit.show.canvas import new_figure, own_style, save
from pathovit.show.sheet import drawable
from pathovit.study.cohort import Bag
from pathovit.study.evaluation import Answers, Tell
from pathovit.study.localisation import tile_scores
from pathovit.study.probe import Probed

MODEL, FAINT, SECOND = "#24507a", "#9aa5b1", "#c0562f"
MAX_CURVES = 8
MAX_MAPS = 12


@own_style()
def training_curves(path: Path, history: Sequence[dict[str, float]], best_epoch: int, title: str) -> None:
    """What training lowers, the validation loss that chose the epoch, and the main metric; these are different quantities."""
    metric = next(name for name in history[0] if name not in ("epoch", "train_loss", "loss"))
    figure, panels = _figure(1, 3, (12, 3.6), title)
    epochs = [line["epoch"] for line in history]
    names = {
        "train_loss": "training objective",
        "loss": "validation loss, calibrated",
        metric: f"validation {metric.replace('_', ' ')}",
    }
    for axes, (key, name) in zip(panels, names.items(), strict=True):
        axes.plot(epochs, [line[key] for line in history], color=FAINT if key == "train_loss" else MODEL)
        axes.axvline(best_epoch, color=SECOND, linestyle=":", label="kept")
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend(frameon=False)
    save(figure, path)


@own_style()
def evaluation_picture(path: Path, answers: Answers, found: Metrics, title: str) -> None:
    """ROC, precision-recall and calibration for classes; Kaplan-Meier for survival; predicted against true for numbers."""
    kind = answers.target.kind
    draw = next(draw for known, draw in PICTURES.items() if isinstance(kind, known))
    save(draw(answers, found, title), path)


def _of_classes(answers: Answers, found: Metrics, title: str) -> Any:
    figure, (roc, pr, calibration) = _figure(1, 3, (13, 4.3), title)
    _roc(roc, answers, found)
    _precision_recall(pr, answers, found)
    _calibration(calibration, answers, found)
    return figure


def _of_survival(answers: Answers, found: Metrics, title: str) -> Any:
    figure, (axes,) = _figure(1, 1, (6.5, 4.6), title)
    _kaplan_meier(axes, answers, found)
    return figure


def _of_numbers(answers: Answers, found: Metrics, title: str) -> Any:
    figure, (axes,) = _figure(1, 1, (5, 4.8), title)
    axes.scatter(answers.truth[:, 0], answers.values[:, 0], s=14, color=MODEL, alpha=0.7, linewidths=0)
    ends = [float(min(answers.truth.min(), answers.values.min())), float(max(answers.truth.max(), answers.values.max()))]
    axes.plot(ends, ends, color=FAINT, linestyle=":")
    axes.set(
        xlabel=_label(f"true {answers.target.columns[0]}"),
        ylabel="predicted",
        title=f"MAE {said(found['mae'])}\nR2 {said(found['r2'])}",
    )
    return figure


PICTURES = {Classes: _of_classes, Survival: _of_survival, Kind: _of_numbers}  # of the first kind that fits


@own_style()
def maps_picture(path: Path, model: SlideModel, bags: Sequence[Bag], title: str, tell: Tell) -> None:
    """Scores of the tiles of some patients, one class each, and around them what was drawn."""
    shown = list(bags)[:MAX_MAPS]
    columns = min(4, len(shown))
    figure, panels = _figure(-(-len(shown) // columns), columns, (3.2 * columns, 3.1 * -(-len(shown) // columns) + 0.8), title)
    for place, axes in enumerate(panels):
        axes.axis("off")
        if place < len(shown):
            _map(axes, model, shown[place], tell(shown[place].patient))
    save(figure, path)


def _map(axes: Any, model: SlideModel, bag: Bag, patient: str) -> None:
    """The slide with most of what was drawn: scores as colour; around tiles of the class a red line, around those that are not a white one."""
    assert bag.marks is not None
    begins = np.cumsum([0, *bag.tiles])
    known = torch.isfinite(bag.marks).any(1)
    most = int(np.argmax([int(known[a:b].sum()) for a, b in pairwise(begins)]))
    here = slice(int(begins[most]), int(begins[most + 1]))
    marks = bag.marks[here].numpy()
    column = int((marks == 1).sum(0).argmax())
    cells = np.rint((bag.xy_um[here] - bag.xy_um[here].min(0).values).numpy() / bag.pitch_um).astype(int)
    width, height = (int(side) + 1 for side in cells.max(0))
    scores = np.full((height, width), np.nan)
    truth = np.zeros((height, width))
    scores[cells[:, 1], cells[:, 0]] = tile_scores(model, bag)[here, column]
    truth[cells[:, 1], cells[:, 0]] = np.where(marks[:, column] == 1, 1, np.where(marks[:, column] == 0, -1, 0))
    axes.imshow(scores, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    for value, colour in ((1, SECOND), (-1, "white")):
        if (truth == value).any():
            around = np.pad((truth == value).astype(float), 1)  # an outline at the edge, and of a single row
            x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
            axes.contour(x, y, around, [0.5], colors=colour, linewidths=1.2)
    axes.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6))
    axes.set_title(f"{_label(patient)}\n{_label(model.target.score_names[column])}", fontsize=8)


@own_style()
def robustness_picture(path: Path, names: Sequence[str], moved: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """For each way of looking at the slides: how far each answer's number moved, and how much of each map changed sides."""
    figure, panels = _figure(1, 2, (11, 1.5 + 0.3 * len(names)), title)
    for axes, column, label in ((panels[0], 0, "change of the answer's number"), (panels[1], 1, "tiles that crossed score 0.5")):
        for row, name in enumerate(names):
            values = np.array([found[column] for found in moved.get(name, ())])
            axes.scatter(values, row + np.linspace(-0.22, 0.22, len(values)), s=10, color=MODEL, alpha=0.55, linewidths=0)
            if len(values):
                axes.plot([np.median(values)] * 2, [row - 0.35, row + 0.35], color=SECOND, linewidth=1.5)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names if column == 0 else [])
        axes.invert_yaxis()
    panels[0].set_xlim(*np.array([-1.02, 1.02]) * max(1.0, *(abs(one[0]) for found in moved.values() for one in found), 0.0))
    panels[1].set_xlim(-0.02, 1.02)
    save(figure, path)


@own_style()
def pretraining_picture(path: Path, history: Sequence[dict[str, float]], title: str) -> None:
    """Loss, learning rate and, where labelled tiles were at hand, how well nearest neighbours tell them, over the steps."""
    names = {"loss": "loss", "learning_rate": "learning rate", "nearest": "AUROC of 20 nearest"}
    shown = {key: name for key, name in names.items() if key in history[0]}
    figure, panels = _figure(1, len(shown), (4 * len(shown), 3.6), title)
    for axes, (key, name) in zip(panels, shown.items(), strict=True):
        axes.plot([line["step"] for line in history], [line[key] for line in history], color=MODEL, marker=".")
        axes.set(xlabel="step", ylabel=name)
    save(figure, path)


@own_style()
def probe_picture(path: Path, rows: Sequence[Probed], title: str) -> None:
    """Quality over size: the linear probe's AUROC of every encoder with its interval; random weights are hollow."""
    figure, (axes, names) = _figure(1, 2, (11, max(4.5, 1.5 + 0.32 * len(rows))), title)
    ranked = sorted(rows, key=lambda row: row.linear.value or 0)
    sizes = [max(row.millions, 0.01) for row in rows]
    for place, row in enumerate(ranked):
        value, low, high = row.linear.value, row.linear.low, row.linear.high
        if value is None:
            continue
        look = {
            "color": SECOND if row.weights == "random" else MODEL,
            "markerfacecolor": "white" if row.weights == "random" else None,
        }
        for panel, at in ((axes, (max(row.millions, 0.01), value)), (names, (value, place))):
            panel.plot(*at, marker="o", linestyle="none", **look)
        if low is not None and high is not None:
            axes.plot([max(row.millions, 0.01)] * 2, [low, high], color=look["color"], linewidth=1)
            names.plot([low, high], [place] * 2, color=look["color"], linewidth=1)
        if row.nearest.value is not None:
            names.plot(row.nearest.value, place, marker="|", markersize=9, color=FAINT)
    axes.set(xscale="log", xlabel="million parameters", ylabel="AUROC of a linear probe, 95 % interval")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 4)
    axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    line = 0.035 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    taken: list[tuple[float, float]] = []
    for row in ranked:
        if row.linear.value is not None:
            at = np.log10(max(row.millions, 0.01))
            taken.append((at, _free_height(taken, at, row.linear.value, line)))
            axes.annotate(_label(row.name), (10**at * 1.08, taken[-1][1]), va="center", fontsize=7)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    labels = [_label(row.name) + (", random weights" if row.weights == "random" else "") for row in ranked]
    names.set(
        yticks=range(len(ranked)),
        yticklabels=labels,
        xlabel="AUROC: linear probe (dot), 20 nearest (stroke)",
        ylim=(-0.6, len(ranked) - 0.4),
    )
    save(figure, path)


def _free_height(taken: Sequence[tuple[float, float]], column: float, height: float, line: float) -> float:
    """The next height, upwards, at which a name of this height of `line` lies over no other; columns are log10 of a size."""
    while any(abs(column - other) < 0.5 and abs(height - level) < line for other, level in taken):
        height += line / 8
    return height


@own_style()
def device_timeline(path: Path, slides: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """Every batch that a device had, a row for each slide, and all of them below: a gap there is a device that waited."""
    figure, (axes,) = _figure(1, 1, (12, 1.6 + 0.28 * len(slides)), title)
    rows = [*slides.items(), ("any slide", [span for spans in slides.values() for span in spans])]
    for row, (_, spans) in enumerate(rows):
        bars = [(begun, ended - begun) for begun, ended in spans]
        colour = SECOND if row == len(slides) else MODEL
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, edgecolors="white", linewidth=0.2)
    axes.set(
        xlabel="seconds since the first batch",
        yticks=range(len(rows)),
        yticklabels=[_label(name, f"slide {place}") for place, (name, _) in enumerate(rows, start=1)],
    )
    axes.invert_yaxis()
    save(figure, path)


def said(metric: Metric) -> str:
    """A metric with its interval, as text."""
    if metric.value is None:
        return "not defined"
    if metric.low is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"


def _roc(axes: Any, answers: Answers, found: Metrics) -> None:
    from sklearn.metrics import roc_curve

    for place, (name, truth, chance) in enumerate(answers.one_vs_rest()[:MAX_CURVES], start=1):
        if 0 < truth.sum() < len(truth):
            false, true, _ = roc_curve(truth, chance)
            axes.plot(false, true, label=_label(name, f"class {place}"), **_line(answers))
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"AUROC {said(found['auroc'])}")
    left_out = len(answers.target.score_names) - MAX_CURVES
    if axes.get_legend_handles_labels()[0]:  # no curve where all patients are of one class
        axes.legend(frameon=False, loc="lower right", title=f"{left_out} more are not drawn" if left_out > 0 else None)


def _precision_recall(axes: Any, answers: Answers, found: Metrics) -> None:
    from sklearn.metrics import precision_recall_curve

    for place, (name, truth, chance) in enumerate(answers.one_vs_rest()[:MAX_CURVES], start=1):
        if 0 < truth.sum() < len(truth):
            precision, recall, _ = precision_recall_curve(truth, chance)
            axes.plot(recall, precision, label=_label(name, f"class {place}"), **_line(answers))
    axes.set(xlabel="sensitivity (recall)", ylabel="precision", ylim=(0, 1.02), title=f"AUPRC {said(found['auprc'])}")


def _calibration(axes: Any, answers: Answers, found: Metrics) -> None:
    """Dots as large as the patients they stand for."""
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":")
    for place, (name, truth, chance) in enumerate(answers.one_vs_rest()[:MAX_CURVES], start=1):
        bins = np.minimum((chance * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        filled = np.unique(bins)
        x = [chance[bins == b].mean() for b in filled]
        y = [truth[bins == b].mean() for b in filled]
        size = [20 + 300 * (bins == b).mean() for b in filled]
        drawn = axes.plot(x, y, label=_label(name, f"class {place}"), **_line(answers))
        axes.scatter(x, y, s=size, color=drawn[0].get_color(), alpha=0.5, linewidths=0)
    axes.set(xlabel="probability", ylabel="frequency", title=f"calibration error {said(found['ece'])}")


def _label(name: str, instead: str = "(a name in letters that cannot be drawn)") -> str:
    """A name as matplotlib shows it as it is: no formula, and not left out for a leading underscore."""
    text = drawable(name, instead).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _line(answers: Answers) -> dict[str, str]:
    """One curve has the colour of the model; of several each has its own."""
    return {"color": MODEL} if len(answers.target.score_names) == 1 else {}


def _kaplan_meier(axes: Any, answers: Answers, found: Metrics) -> None:
    """Patients above and below the median risk."""
    fitter = lifelines("fitters.kaplan_meier_fitter").KaplanMeierFitter
    risks = answers.values[:, 0]
    fold = answers.fold if len(answers.fold) else np.zeros(len(risks), int)  # each has a model, and a scale, of its own
    high = risks > np.array([np.median(risks[fold == one]) for one in fold])
    for name, chosen, colour in (("lower risk", ~high, MODEL), ("higher risk", high, SECOND)):
        if chosen.any():
            curve = fitter().fit(answers.truth[chosen, 0], answers.truth[chosen, 1], label=f"{name}, {chosen.sum()} patients")
            curve.plot_survival_function(ax=axes, color=colour, show_censors=True, censor_styles={"ms": 4, "marker": "|"})
    axes.set(
        xlabel=_label(answers.target.columns[0]),
        ylabel="without event",
        ylim=(0, 1.02),
        title=f"C-index {said(found['c_index'])}",
    )


def _figure(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Any, list[Any]]:
    figure = new_figure(size, title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
