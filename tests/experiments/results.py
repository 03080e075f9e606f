"""Results of runs that were never trained."""

from flatsparse.experiments.run.records import Flops, RunResult, Seconds, Sparsity, TopologyHealth, WorstCase


def run_result(accuracy, **values):
    """A result with a test accuracy, and whatever else is given."""
    usual = {
        "method": "rigl", "sharpness": "none", "rho": 0.0, "model": "digitnet", "data": "digits", "seed": 0,
        "test_loss": 0.5, "macro": {"precision": 1.0, "recall": 1.0, "f1": 1.0}, "train_accuracy": 100.0, "train_loss": 0.1,
        "generalization_gap": 100.0 - accuracy, "validation_accuracy": 90.0, "validation_loss": 0.4, "epochs": 1, "steps": 10,
        "gradient_evaluations": 10, "steps_to": {"50": None}, "gradient_cosine": 0.1, "ball": WorstCase(0.1, 0.2),
        "sparsity": Sparsity(0.9, 0.9), "exploration": 0.1, "health": TopologyHealth(None, 0, 8, {}),
        "flops": Flops(1.0, 2.0, 1.0, 2.0), "seconds": Seconds(1.0, 0.01), "images_per_second": 1.0,
    }  # fmt: skip
    return RunResult(**{**usual, "test_accuracy": accuracy, **values})
