"""Accuracies on corrupted images as a table, with the means and errors of Hendrycks & Dietterich (ICLR 2019)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corruptions.names import CATEGORIES, EXTRA, MAIN, SEVERITIES

Errors = Mapping[str, Sequence[float]]  # of each corruption, by severity; or one number, their mean


@dataclass(frozen=True)
class Reference:
    """The errors that a corruption error is divided by.

    Attributes:
        name: of the model or run, for tables.
        errors: of each corruption, fractions; by severity, or one number for their mean.
        clean: on clean images.
    """

    name: str
    errors: Errors
    clean: float


# Errors: ``ALEXNET_ERR`` of google-research/augmix, imagenet.py (Hendrycks et al. 2020), who have them from the authors of
# ImageNet-C. Clean: Hendrycks & Dietterich 2019, Table 1.
ALEXNET = Reference(
    "AlexNet",
    dict(
        zip(
            MAIN,
            (
                *((0.886428,), (0.894468,), (0.922640,)),
                *((0.819880,), (0.826268,), (0.785948,), (0.798360,)),
                *((0.866816,), (0.826572,), (0.819324,), (0.564592,)),
                *((0.853204,), (0.646056,), (0.717840,), (0.606500,)),
            ),
            strict=True,
        )
    ),
    0.435,
)


def corruption_error(errors: Sequence[float], reference: Sequence[float]) -> float:
    """Return the corruption error of one corruption, in percent.

    Hendrycks & Dietterich 2019, Section 4: ``CE = Σ_s E_s / Σ_s E_s of the reference``; either may be given by its mean.

    Raises: InputError for a reference without errors.

    >>> corruption_error([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.6, 0.6, 0.7])
    50.0
    """
    return 100 * _ratio(statistics.fmean(errors), statistics.fmean(reference))


def mean_corruption_error(errors: Errors, reference: Errors) -> float:
    """Return the mean corruption error (mCE) over the fifteen corruptions, in percent; others are left out.

    Hendrycks & Dietterich 2019, Section 4.

    Args:
        errors: fractions by severity, of each corruption.
        reference: the same of AlexNet, as in the paper, or of another model.

    Raises: InputError when one of the fifteen is missing, and for a reference without errors.
    """
    _check_all(errors, "the errors")
    _check_all(reference, "the reference")
    return statistics.fmean(corruption_error(errors[name], reference[name]) for name in MAIN)


def relative_mean_corruption_error(errors: Errors, clean: float, reference: Errors, reference_clean: float) -> float:
    """Return the mean over the fifteen corruptions of the rise of the error over that of the reference, in percent.

    Hendrycks & Dietterich 2019, Section 4: ``Σ_s (E_s - E_clean) / Σ_s (E_s - E_clean) of the reference``.

    Raises: InputError when one of the fifteen is missing, and for a reference that no corruption makes worse.
    """
    _check_all(errors, "the errors")
    _check_all(reference, "the reference")
    return 100 * statistics.fmean(
        _ratio(statistics.fmean(errors[name]) - clean, statistics.fmean(reference[name]) - reference_clean)
        for name in MAIN
    )


@dataclass(frozen=True)
class RobustnessTable:
    """Accuracies on clean and corrupted images, in percent.

    Attributes:
        clean: on the images as they are.
        by: from severity 1 to 5, of each corruption.
        source: where the corrupted images are from; tables of different sources do not compare.
    """

    clean: float
    by: Mapping[str, Sequence[float]]
    source: str

    def __post_init__(self) -> None:
        for name, accuracies in self.by.items():
            if len(accuracies) != len(SEVERITIES):
                raise InputError(f"'{name}' has {len(accuracies)} accuracies: give five, from severity 1 to 5")
        if not self.by:
            raise InputError("a table of robustness needs a corruption: give the accuracies of at least one")

    @property
    def lacking(self) -> tuple[str, ...]:
        """The corruptions among the fifteen averaged ones that are not measured."""
        return tuple(name for name in MAIN if name not in self.by)

    @property
    def mean(self) -> float:
        """The mean over all corruptions and severities that are measured."""
        return self._mean(self.by)

    @property
    def mean_of_main(self) -> float | None:
        """The mean over the fifteen corruptions that the literature averages; None when one is lacking."""
        return None if self.lacking else self._mean(MAIN)

    @property
    def categories(self) -> dict[str, float]:
        """The mean of each category over those of its corruptions among the fifteen; a category that lacks one is left out."""
        main = {kind: [name for name in names if name in MAIN] for kind, names in CATEGORIES.items()}
        return {kind: self._mean(names) for kind, names in main.items() if all(name in self.by for name in names)}

    @property
    def errors(self) -> dict[str, tuple[float, ...]]:
        """The errors by severity of each corruption, as fractions."""
        return {name: tuple(1 - accuracy / 100 for accuracy in row) for name, row in self.by.items()}

    def as_reference(self, name: str) -> Reference:
        """Return these errors as those that another table's are divided by."""
        return Reference(name, self.errors, 1 - self.clean / 100)

    def as_dict(self, reference: Reference | None = None) -> dict[str, Any]:
        """Return all as JSON has it; with a reference the mean corruption errors too, if none of the fifteen is lacking.

        An error is None where the reference's is 0, or is not above that on clean images.
        """
        record = {
            "source": self.source,
            "clean": self.clean,
            "mean": self.mean,
            "mean_of_main": self.mean_of_main,
            "categories": self.categories,
            "by": {name: list(row) for name, row in self.by.items()},
            "lacking": list(self.lacking),
        }
        if reference is None or self.lacking:
            return record
        own = self.as_reference("")
        return record | {
            "reference": reference.name,
            "mce": _if_defined(mean_corruption_error, own.errors, reference.errors),
            "relative_mce": _if_defined(
                relative_mean_corruption_error, own.errors, own.clean, reference.errors, reference.clean
            ),
        }

    def head(self, reference: Reference | None = None) -> list[str]:
        """Return the headings of the columns of ``rows``."""
        compared = [f"CE, {reference.name}"] if reference else []
        return ["corruption", *map(str, SEVERITIES), "mean", "below clean", *compared]

    def rows(self, reference: Reference | None = None) -> list[list[str]]:
        """Return a row for each corruption, with its severities, mean, drop and corruption error, and those of the means."""
        record = self.as_dict(reference)
        errors = {} if reference is None else reference.errors
        blank, last = [""] * len(SEVERITIES), [""] if reference else []
        lines = [["clean", *blank, f"{self.clean:.2f}", "", *last]]
        for name in (*MAIN, *EXTRA):
            if name in self.by:
                error = _if_defined(corruption_error, self.errors[name], errors[name]) if name in errors else None
                cells = [*(f"{accuracy:.2f}" for accuracy in self.by[name]), *self._summary(self._mean([name]))]
                lines.append([name, *cells, *([_shown(error)] if reference else [])])
        for kind, mean in self.categories.items():
            lines.append([f"mean, {kind}", *blank, *self._summary(mean), *last])
        if self.mean_of_main is not None:
            error = record.get("mce")
            lines.append(
                ["mean of 15", *blank, *self._summary(self.mean_of_main), *([_shown(error)] if reference else [])]
            )
        if len(self.by) != len(MAIN) or self.lacking:
            lines.append([f"mean of {len(self.by)}", *blank, *self._summary(self.mean), *last])
        return lines

    def markdown(self, reference: Reference | None = None) -> str:
        """Return the rows as a table in Markdown."""
        head = self.head(reference)
        rule = ["---", *["---:"] * (len(head) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *self.rows(reference)))

    def _summary(self, mean: float) -> tuple[str, str]:
        return f"{mean:.2f}", f"{self.clean - mean:.2f}"

    def _mean(self, names: Iterable[str]) -> float:
        return statistics.fmean(accuracy for name in names for accuracy in self.by[name])


def _if_defined(error: Callable[..., float], *values: Any) -> float | None:
    """Return a corruption error; None where nothing can be divided by that of the reference."""
    try:
        return error(*values)
    except InputError:
        return None


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1f}"


def _ratio(value: float, reference: float) -> float:
    if not reference > 0:
        raise InputError(
            f"the reference's error is {reference:g}, which nothing can be divided by: give another reference"
        )
    return value / reference


def _check_all(errors: Errors, whose: str) -> None:
    if missing := [name for name in MAIN if name not in errors]:
        raise InputError(f"{whose} lack {', '.join(missing)}: the mean is over all fifteen corruptions")
