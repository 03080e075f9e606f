"""flatsparse: train sparse neural networks, and find flat minima while you do, at no extra cost."""

from flatsparse import export, methods, models, schedules
from flatsparse.errors import InputError
from flatsparse.flops import estimate
from flatsparse.methods import METHODS
from flatsparse.pruned import masks_from
from flatsparse.sharpness import S2SAM, SAM
from flatsparse.shrinking import narrow, shrink
from flatsparse.sparsifier import rounds, sparsify
from flatsparse.storage import load_masks, save_masks
from flatsparse.training import SparseTraining

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "S2SAM",
    "SAM",
    "InputError",
    "SparseTraining",
    "estimate",
    "export",
    "load_masks",
    "masks_from",
    "methods",
    "models",
    "narrow",
    "rounds",
    "save_masks",
    "schedules",
    "shrink",
    "sparsify",
]
