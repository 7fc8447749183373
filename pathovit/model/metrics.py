"""Metrics of answers with one truth and one probability a patient. They come from scikit-learn and lifelines (the one door to it)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError

Floats = NDArray[np.float64]
Flags = NDArray[np.int64]
CALIBRATION_BINS = 10
SPECIFICITY = 0.95


def auroc(truth: Flags, chance: Floats) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, chance))


def auprc(truth: Flags, chance: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, chance))


def sensitivity(truth: Flags, chance: Floats) -> float:
    """Sensitivity at the lowest threshold that at least 95 % of those without the class stay below."""
    without = np.sort(chance[truth == 0])
    threshold = without[int(np.ceil(SPECIFICITY * len(without))) - 1]
    return float((chance[truth == 1] > threshold).mean())


def calibration_error(truth: Flags, chance: Floats) -> float:
    """Distance of frequency and probability, averaged over patients.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    bins = np.minimum((chance * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, truth - chance, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(chance))


def concordance(truth: NDArray[np.float32], risk: Floats) -> float:
    """Share of comparable pairs in which the patient at higher risk has the earlier event (Harrell); `truth` (n, 2) time and event."""
    concordance_index = lifelines("utils").concordance_index
    if not truth[:, 1].any():
        return float("nan")
    try:
        return float(concordance_index(truth[:, 0], -risk, truth[:, 1]))
    except ZeroDivisionError:  # no two patients can be compared
        return float("nan")


def comparable(truth: NDArray[np.float32]) -> int:
    """Pairs of patients of whom it is known who had the event first; `truth` (n, 2) time and event."""
    time, event = truth[:, 0], truth[:, 1] == 1
    later = (time > time[:, None]) | ((time == time[:, None]) & ~event)
    return int((later & event[:, None]).sum())


def lifelines(module: str) -> Any:
    """The survival library, or how to get it."""
    import importlib

    try:
        return importlib.import_module(f"lifelines.{module}")
    except ImportError as error:
        raise SettingsError("Survival needs lifelines. Install it with: pip install 'pathovit[survival]'") from error
