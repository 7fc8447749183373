"""What targets with classes share: how they are judged, calibrated and answered."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pathovit.errors import SettingsError
from pathovit.manifest import one_spelling
from pathovit.model.calibration import HOT_RATE, Calibration, Floats, fit_scaling, thin, upper_quantile
from pathovit.model.metrics import auprc, auroc, calibration_error, sensitivity
from pathovit.model.targets.kind import Cells, Chances, Interval, Kind, Options, Truth
from pathovit.tables import spelling

if TYPE_CHECKING:
    from torch import Tensor

ONE_CLASS = "patients of one class only"
SOFTENED = 0.5  # patients of each class that are taken to be answered wrongly


class Classes(Kind):
    """A target that answers with classes."""

    is_classification = True
    metrics: ClassVar[Mapping[str, str]] = {
        "auroc": "auroc",
        "auprc": "auprc",
        "balanced_accuracy": "balanced_accuracy",
        "sensitivity_at_95_specificity": "sensitivity",
        "brier": "brier",
        "ece": "ece",
    }

    @property
    def answer_columns(self) -> list[str]:
        return [f"prob_{name}" for name in self.classes]

    def values(self, logits: Floats, centre: float, scale: float) -> Floats:
        return self.probabilities(logits)

    def measured(self, calibration: Calibration, logits: Floats, error_rate: float) -> tuple[None, None]:
        return None, None

    # Answers

    @abstractmethod
    def question(self, question: int, chances: Floats, truth: Truth) -> tuple[Floats, NDArray[np.int64]]:
        """Probability of each option (n, options), and which one is true (n,)."""

    @abstractmethod
    def chances_of(self, question: int, chances: Floats) -> Floats:
        """Probability of each option of a question, for one patient."""

    def possible(self, calibration: Calibration, chances: Floats, error_rate: float) -> list[Options]:
        """With too few validation patients of a class it cannot be ruled out, and the answer stays open."""
        found = []
        for question, options in enumerate(self.questions()):
            chance = self.chances_of(question, chances)
            kept = []
            for option, name in enumerate(options):
                known = np.asarray(calibration.conformity[question][option])
                as_strange = (known >= round(1 - float(chance[option]), 6)).sum()
                if (1 + as_strange) / (1 + len(known)) > error_rate:
                    kept.append(name)
            found.append(tuple(kept))
        return found

    def said(self, possible: Sequence[Options], value: float | None) -> str:
        return possible[0][0]

    def headline(self, answer: str, chances: Chances, value: float | None, interval: Interval | None) -> str:
        top = int(chances.argmax())
        return f"{answer}; {self.classes[top]}: {chances[top]:.3f}"

    def one_vs_rest(self, truth: Truth, values: Floats) -> list[tuple[str, NDArray[np.int64], Floats]]:
        whole = truth.astype(np.int64)
        return [(name, whole[:, i], values[:, i]) for i, name in enumerate(self.classes)]

    # Learning

    def soften(self, truth: Truth) -> Floats:
        """Truth a little less than certain, or patients that can be told apart without fault would ask for infinite logits.

        As if half a patient of each class had been answered wrongly (Jeffreys' prior, docs/decisions.md).
        Source, with a whole one: Platt, "Probabilistic outputs for support vector machines", 1999.
        """
        positives = truth.sum(0, dtype=np.float64)
        negatives, more = len(truth) - positives, SOFTENED
        return np.asarray(
            truth * (positives + more) / (positives + 2 * more) + (1 - truth) * more / (negatives + 2 * more), np.float64
        )

    def drawn_truth(self, values: Floats, chance: np.random.Generator) -> Truth:
        """Truth (n, C) of patients with these probabilities, drawn by them. Of several labels, those that can come together."""
        return (chance.random((len(values), 1)) < values).astype(np.float32)

    def log_loss(self, logits: Floats, soft: Floats) -> float:
        return float(np.mean(np.logaddexp(0, logits) - soft * logits))

    def fit_scaling(self, logits: Floats, truth: Truth) -> tuple[float, Floats]:
        """Temperature and shift (C,) with the least log loss of `logits / temperature + shift`."""
        soft = self.soften(truth)
        return fit_scaling(logits, lambda scaled: self.log_loss(scaled, soft))

    def scaling(self, logits: Floats, truth: Truth, centre: float, scale: float) -> Calibration:
        temperature, shift = self.fit_scaling(logits, truth)
        return Calibration(temperature, tuple(float(s) for s in shift), patients=len(logits))

    def say_calibration(self, found: Calibration) -> str:
        counted = ", ".join(str(n) for n in found.hot_patients)
        return (
            f"temperature {found.temperature:.3f}, shift {', '.join(f'{s:.3f}' for s in found.shift)}. "
            "Tile score 0.5 is the evidence that at most 5 % of patients without the class are expected to reach anywhere; it was found on "
            f"{counted} such patients (fewer than 19 cannot promise it: it is then the highest that they reached)."
        )

    def calibrate(self, scaled: Calibration, logits: Floats, truth: Truth, hottest: Floats) -> Calibration:
        hot, counted = [], []
        for column in range(self.outputs):
            without = hottest[truth[:, column] == 0, column]
            hot.append(upper_quantile(without, HOT_RATE) if np.isfinite(without).any() else 0.0)
            counted.append(len(without))
        chances, found = self.probabilities(logits), []
        for question, options in enumerate(self.questions()):
            chance, right = self.question(question, chances, truth)
            found.append(tuple(thin(1 - chance[right == option, option]) for option in range(len(options))))
        return replace(scaled, hot=tuple(hot), hot_patients=tuple(counted), conformity=tuple(found))

    def calibrated_loss(self, logits: Floats, truth: Truth) -> float:
        """Log loss at the best temperature and shift: how good an answer is once it is calibrated."""
        temperature, shift = self.fit_scaling(logits, truth)
        return self.log_loss(logits / temperature + shift, self.soften(truth))

    def weight_of(self, truth: Tensor, weights: Tensor) -> Tensor:
        """Weight of each class of a patient, of weights (2, C) without and with it."""
        import torch

        return torch.where(truth > 0, weights[1], weights[0])

    def bag_loss(self, logits: Tensor, truth: Tensor, smoothing: float, weight: Tensor) -> Tensor:
        from torch.nn import functional

        goal = smooth(truth, smoothing)
        return (weight * functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")).mean()

    def tile_margins(self, logits: Tensor) -> Tensor:
        """(N, C) log-odds of each class against all others."""
        return logits

    def part_loss(self, logits: Tensor, truth: Truth, centre: float, scale: float) -> float:
        return self.calibrated_loss(logits.numpy().astype(np.float64), truth)

    def class_weights(self, truth: Truth) -> Floats:
        truth = truth[:, : self.outputs]
        counts = np.stack([(len(truth) - truth.sum(0)).clip(1), truth.sum(0).clip(1)])
        return np.asarray(len(truth) / (2 * counts))

    # How good answers are

    def mean_over_classes(self, metric: Callable[[NDArray[np.int64], Floats], float], truth: Truth, values: Floats) -> float:
        """Not a number where a class has no patient, or all."""
        found = [metric(t, p) if 0 < t.sum() < len(t) else np.nan for _, t, p in self.one_vs_rest(truth, values)]
        return float(np.mean(found))

    def auroc(self, truth: Truth, values: Floats) -> float:
        return self.mean_over_classes(auroc, truth, values)

    def auprc(self, truth: Truth, values: Floats) -> float:
        return self.mean_over_classes(auprc, truth, values)

    def sensitivity(self, truth: Truth, values: Floats) -> float:
        return self.mean_over_classes(sensitivity, truth, values)

    @abstractmethod
    def balanced_accuracy(self, truth: Truth, values: Floats) -> float: ...

    def brier(self, truth: Truth, values: Floats) -> float:
        """Mean squared distance of probability and truth, over patients and classes."""
        return float(np.mean([((p - t) ** 2).mean() for _, t, p in self.one_vs_rest(truth, values)]))

    def ece(self, truth: Truth, values: Floats) -> float:
        """Expected calibration error: ten equal bins of the probability."""
        return float(np.mean([calibration_error(t, p) for _, t, p in self.one_vs_rest(truth, values)]))


def smooth(truth: Tensor, share: float) -> Tensor:
    """Truth a little less than certain: scores that saturate draw no graded map."""
    return truth * (1 - share) + share / 2


RESERVED = ("unsure", "outside", "map")  # answers that name no class (outputs/records.py)


def refuse_reserved(names: Iterable[str]) -> None:
    """Raises SettingsError for classes that are called as answers are which name no class."""
    if taken := [name for name in names if spelling(name) in RESERVED]:
        raise SettingsError(
            f"A class cannot be called {taken[0]!r}: that is what answers say which name no class. Call it otherwise, as {taken[0]}_."
        )


class NamedClasses(Classes):
    """Classes that one column names."""

    @classmethod
    def class_names(cls, columns: Options, cells: Cells, positive: str | None) -> Options:
        names = sorted(set(one_spelling(value[0] for value in cells.values()).values()))
        refuse_reserved(names)
        if len(names) < 2:
            raise SettingsError(f"All slides have one label ({', '.join(names)}); at least two classes are needed.")
        cls.refuse_names(columns[0], names)
        if positive is not None:
            last = next((name for name in names if spelling(name) == spelling(positive)), None)
            if last is None:
                raise SettingsError(f"--positive {positive!r} is not a label of the table: {', '.join(names)}.")
            names = [*(name for name in names if name != last), last]
        return tuple(names)

    @classmethod
    def refuse_names(cls, column: str, names: Sequence[str]) -> None:
        """Raises SettingsError where there are more than such a target has."""

    def drawn_truth(self, values: Floats, chance: np.random.Generator) -> Truth:
        drawn = (np.cumsum(values, 1) < chance.random((len(values), 1))).sum(1).clip(max=len(self.classes) - 1)
        return np.asarray(np.eye(len(self.classes))[drawn][:, -self.outputs :], np.float32)

    def index(self, line: int, values: Options) -> int:
        known = {spelling(name): index for index, name in enumerate(self.classes)}
        found = known.get(spelling(values[0]))
        if found is None:
            raise SettingsError(f"Line {line}: {self.columns[0]} is {values[0]!r}; the model knows {', '.join(self.classes)}.")
        return found

    def require_spread(self, truth: Truth) -> None:
        """Two classes were found."""

    def said_of(self, cells: Sequence[Options]) -> list[str]:
        """The classes found with their rows, and the spellings that were taken for one."""
        column, classes = self.columns[0], {spelling(name): name for name in self.classes}
        found = [cell for (cell,) in cells if cell]
        counts = Counter(classes[spelling(cell)] for cell in found)
        listed = ", ".join(f"{name} ({counts[name]})" for name in self.classes)
        said = [f"classes found in column {column}: {listed}"]
        ways: dict[str, set[str]] = defaultdict(set)
        for cell in found:
            ways[classes[spelling(cell)]].add(cell)
        for name, spelled in ways.items():
            if others := sorted(spelled - {name}):
                said.append(f"{column}: {', '.join(others)} read as {name}")
        return said

    def questions(self) -> list[Options]:
        return [self.classes]

    def chances_of(self, question: int, chances: Floats) -> Floats:
        return chances

    def balanced_accuracy(self, truth: Truth, values: Floats) -> float:
        from sklearn.metrics import balanced_accuracy_score

        named = self.strata(truth)
        if len(np.unique(named)) < values.shape[1]:
            return float("nan")
        return float(balanced_accuracy_score(named, values.argmax(1)))

    def option(self, question: int, truth: Truth) -> str:
        return self.classes[int(self.strata(truth[None])[0])]

    def question(self, question: int, chances: Floats, truth: Truth) -> tuple[Floats, NDArray[np.int64]]:
        return chances, self.strata(truth)
