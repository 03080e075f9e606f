"""The records of a run: its result, and one for each epoch; dataclasses, and the JSON that its folder keeps of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_type_hints

from flatsparse.common.schema import POSITIVE, NotRequired
from flatsparse.measure.flops import share

Record = TypeVar("Record", bound="JsonRecord")
SOME = (float, None)
DATA_SET = (None, dict.fromkeys(("name", "source", "fingerprint"), str))
# The form that JSON must have to be read as a result or an epoch. What it leaves out is younger than some files.
RESULT_FORM: dict[str, Any] = {
    **dict.fromkeys(("method", "sharpness", "model", "data"), str),
    **dict.fromkeys(("seed", "epochs"), int),
    "steps": POSITIVE,
    **dict.fromkeys(("test_accuracy", "test_loss", "train_accuracy", "train_loss", "generalization_gap"), SOME),
    **dict.fromkeys(("validation_accuracy", "validation_loss", "gradient_cosine"), SOME),
    **dict.fromkeys(("gradient_evaluations", "rho", "exploration", "images_per_second"), float),
    "macro": (None, {str: SOME}),
    "data_set": NotRequired(DATA_SET),
    "above_chance": NotRequired((None, bool)),
    "rounds": NotRequired(int),
    "channels": NotRequired(SOME),
    "files": NotRequired({str: str}),
    "task": NotRequired(str),
    "signature": NotRequired(str),
    "better": NotRequired({"higher", "lower"}),
    **dict.fromkeys(("scores", "train_scores", "validation_scores"), NotRequired({str: float})),
    "steps_to": {str: SOME},
    "ball": {"radius": float, "increase": SOME},
    "sparsity": {"prunable": float, "overall": float},
    "health": {"churn": SOME, "dead_filters": int, "filters": int, "collapsed": {str: float}},
    "flops": dict.fromkeys(("train", "train_dense", "inference", "inference_dense"), float),
    "seconds": {"train": float, "step_median": POSITIVE},
}
EPOCH_FORM: dict[str, Any] = {
    **dict.fromkeys(("epoch", "step", "updates"), int),
    **dict.fromkeys(("train_loss", "lr", "sparsity", "exploration", "dead_filters"), float),
    **dict.fromkeys(("train_accuracy", "validation_loss", "validation_accuracy", "churn"), SOME),
    "round": NotRequired((int, None)),
    "validation_scores": NotRequired({str: float}),
    "images_per_second": NotRequired(float),
    "collapsed": {str: float},
}


class JsonRecord:
    """A dataclass that is kept as a JSON object, one key for each field."""

    absent: tuple[str, ...] = ()  # fields that have no key where they are None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]  # each subclass is a dataclass
        return {name: value for name, value in fields.items() if value is not None or name not in self.absent}

    @classmethod
    def from_json(cls: type[Record], values: dict[str, Any]) -> Record:
        """Return the record of a JSON object. Keys of later versions are left out; missing ones need a default."""
        record: Record = _from_json(cls, values)
        return record


def _from_json(kind: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    given = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
    nested = {name for name in given if dataclasses.is_dataclass(hints[name])}
    return kind(**{name: _from_json(hints[name], v) if name in nested else v for name, v in given.items()})


@dataclass(frozen=True)
class WorstCase:
    """The sharpness of the final weights: the largest increase of the training loss found within a radius."""

    radius: float
    increase: float | None


@dataclass(frozen=True)
class Sparsity:
    """The fraction of weights that are zero: of the prunable ones, and of all matrices."""

    prunable: float
    overall: float


@dataclass(frozen=True)
class TopologyHealth:
    """The state of the masks at the end.

    Attributes:
        churn: the share of active weights that an update replaced, on average; None without updates.
        dead_filters: filters without an active weight, of all ``filters``.
        collapsed: of each layer that has lost nearly all filters, the share it lost.
    """

    churn: float | None
    dead_filters: int
    filters: int
    collapsed: dict[str, float]


@dataclass(frozen=True)
class Flops:
    """FLOPs of the whole run, and of one sample's forward pass; and what a dense net would take."""

    train: float
    train_dense: float
    inference: float
    inference_dense: float

    @property
    def train_share(self) -> float:
        """Training as a share of the dense net's."""
        return share(self.train, self.train_dense)

    @property
    def inference_share(self) -> float:
        """Inference as a share of the dense net's."""
        return share(self.inference, self.inference_dense)


@dataclass(frozen=True)
class Seconds:
    """Seconds of training in all, and of a step (median)."""

    train: float
    step_median: float


@dataclass(frozen=True, kw_only=True)
class RunResult(JsonRecord):
    """The result of a run: ``result.json``. Accuracies in percent; docs/run-folder.md describes every key.

    Attributes:
        data_set, above_chance: None in results that are older than these.
        channels: the fraction of channels removed, of a method that removes some.
        task: a user's.
        better, scores, train_scores, validation_scores: of a task that is no classification, in place of accuracies; the
            first score is the one compared.
        signature: how BLEU was counted, of a translation.
        files: a hash of the content of each file that it goes with, by name; None in results that are older.
    """

    absent = ("files", "channels", "task", "better", "scores", "train_scores", "validation_scores", "signature")

    method: str
    sharpness: str
    rho: float
    model: str
    data: str
    data_set: dict[str, str] | None = None
    task: str | None = None
    better: Literal["higher", "lower"] | None = None
    scores: dict[str, float] | None = None
    train_scores: dict[str, float] | None = None
    validation_scores: dict[str, float] | None = None
    signature: str | None = None
    seed: int
    test_accuracy: float | None
    test_loss: float | None
    macro: dict[str, float] | None
    above_chance: bool | None = None
    train_accuracy: float | None
    train_loss: float
    generalization_gap: float | None
    validation_accuracy: float | None
    validation_loss: float | None
    epochs: int
    rounds: int = 1
    steps: int
    gradient_evaluations: float
    steps_to: dict[str, int | None]
    gradient_cosine: float | None
    ball: WorstCase
    sparsity: Sparsity
    channels: float | None = None
    exploration: float
    health: TopologyHealth
    flops: Flops
    seconds: Seconds
    images_per_second: float
    files: dict[str, str] | None = None

    @property
    def scored(self) -> bool:
        """Return if it has scores by name, in place of accuracies."""
        return self.train_scores is not None

    @property
    def was_tested(self) -> bool:
        """Return if the run was tested; one that a choice is made by is not."""
        return self.test_loss is not None

    @property
    def unit(self) -> str:
        """The word for samples: images, or samples of a task."""
        return "samples" if self.scored else "images"

    @property
    def metric(self) -> str:
        """The name of what is compared."""
        return next(iter(self.train_scores)) if self.train_scores else "test accuracy, %"

    @property
    def value(self) -> float:
        """The value that is compared: the first score of a task, else the test accuracy; of a run that was tested."""
        value = next(iter(self.scores.values())) if self.scores else self.test_accuracy
        assert value is not None
        return value

    @property
    def train_value(self) -> float:
        """The same on the training samples."""
        value = next(iter(self.train_scores.values())) if self.train_scores else self.train_accuracy
        assert value is not None
        return value

    @property
    def validation_value(self) -> float | None:
        """The same on the validation samples; None without such."""
        return next(iter(self.validation_scores.values())) if self.validation_scores else self.validation_accuracy

    @property
    def worst_case_increase(self) -> float:
        """The worst-case sharpness (``ball``), of a run that was tested."""
        assert self.ball.increase is not None
        return self.ball.increase


@dataclass(frozen=True, kw_only=True)
class EpochRecord(JsonRecord):
    """An epoch of a run: a line of ``metrics.jsonl``. Accuracies in percent.

    Attributes:
        round: counted from 0; None for a run of one round.
        train_accuracy: None for a task without one.
        validation_loss, validation_accuracy, validation_scores: None for an epoch without an evaluation.
        updates: of the masks, in this epoch; ``churn`` is their mean share of replaced weights.
        dead_filters: as a share of all filters.
    """

    absent = ("round", "validation_scores")

    epoch: int
    round: int | None = None
    step: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    validation_scores: dict[str, float] | None = None
    lr: float
    sparsity: float
    updates: int
    churn: float | None
    exploration: float
    dead_filters: float
    collapsed: dict[str, float]
    images_per_second: float = 0.0

    @property
    def validation_score(self) -> float | None:
        """The first score of a task on the validation samples; None without one."""
        return next(iter(self.validation_scores.values())) if self.validation_scores else None

    @property
    def validation_metric(self) -> str | None:
        """Its name."""
        return next(iter(self.validation_scores)) if self.validation_scores else None
