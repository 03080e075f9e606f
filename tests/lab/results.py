"""Results of runs that nobody trained."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.run.records import Flops, RunResult, Seconds, Sparsity, TopologyHealth, WorstCase


def made_up_result(accuracy: float, **changes: Any) -> RunResult:
    """Return a result with some test accuracy in percent, and other fields as given."""
    usual = {
        "method": "rigl",
        "sharpness": "none",
        "rho": 0.0,
        "model": "digitnet",
        "data": "digits",
        "seed": 0,
        "test_accuracy": accuracy,
        "test_loss": 0.5,
        "macro": {"precision": 1.0, "recall": 1.0, "f1": 1.0},
        "train_accuracy": 100.0,
        "train_loss": 0.1,
        "generalization_gap": 100.0 - accuracy,
        "validation_accuracy": 90.0,
        "validation_loss": 0.4,
        "epochs": 1,
        "steps": 10,
        "gradient_evaluations": 10,
        "steps_to": {"50": None},
        "gradient_cosine": 0.1,
        "ball": WorstCase(radius=0.1, increase=0.2),
        "sparsity": Sparsity(prunable=0.9, overall=0.9),
        "exploration": 0.1,
        "health": TopologyHealth(churn=None, dead_filters=0, filters=10, collapsed={}),
        "flops": Flops(train=1.0, train_dense=2.0, inference=1.0, inference_dense=2.0),
        "seconds": Seconds(train=1.0, step_median=0.01),
        "images_per_second": 100.0,
    }
    return RunResult(**{**usual, **changes})
