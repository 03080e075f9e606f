"""flatsparse: train sparse neural networks, and find flat minima while you do, at no extra cost."""

from flatsparse.common.importing import no_collections

with no_collections():
    from flatsparse import export, methods, models, schedules
    from flatsparse.acceleration.accelerate import accelerate
    from flatsparse.api import rounds, sparsify
    from flatsparse.common.errors import InputError
    from flatsparse.common.masks_file import load_masks, save_masks
    from flatsparse.comparison import compare
    from flatsparse.diagnosis.doctor import doctor
    from flatsparse.diagnosis.finding import Finding
    from flatsparse.diagnosis.loop.watch import watching
    from flatsparse.graph.shrink import narrow, shrink
    from flatsparse.measure.estimate import estimate
    from flatsparse.methods import METHODS
    from flatsparse.sam.optimizers import S2SAM, SAM
    from flatsparse.sparse.adapters import mask_adapters
    from flatsparse.sparse.block import Block
    from flatsparse.sparse.import_masks import masks_from
    from flatsparse.sparse.training import SparseTraining
    from flatsparse.task import Task

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "S2SAM",
    "SAM",
    "Block",
    "Finding",
    "InputError",
    "SparseTraining",
    "Task",
    "accelerate",
    "compare",
    "doctor",
    "estimate",
    "export",
    "load_masks",
    "mask_adapters",
    "masks_from",
    "methods",
    "models",
    "narrow",
    "rounds",
    "save_masks",
    "schedules",
    "shrink",
    "sparsify",
    "watching",
]
