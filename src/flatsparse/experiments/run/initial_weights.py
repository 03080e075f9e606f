"""Weights that a run starts from in place of random ones: those of a finished run, or of a tensor file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor, nn

from flatsparse.common.errors import InputError, first_line
from flatsparse.common.files import read
from flatsparse.common.tensor_files import load_any_tensors, load_tensors
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.folder import CONFIG, RESULT, WEIGHTS, check_goes_with, read_result

CHOICE = "give the folder of a finished run, or a .safetensors file of the model's own keys"


def weights_file(init: Path) -> Path:
    """Return the file of the weights that ``--init`` names: a finished run's folder, or the file itself.

    Raises: InputError for what is neither, and for a run that is not finished or whose weights are another's.
    """
    if not init.exists():
        raise InputError(f"--init '{init}' is not there: {CHOICE}")
    if not init.is_dir():
        if init.suffix != ".safetensors":
            raise InputError(f"--init '{init}' is no file of weights: {CHOICE}")
        return init
    if not (init / CONFIG).is_file():
        raise InputError(f"--init '{init}' is no run's folder: {CHOICE}")
    if not (init / RESULT).is_file():
        raise InputError(f"--init '{init}' holds an unfinished run: finish it with flatsparse train --resume")
    check_goes_with(read_result(init), init / WEIGHTS)
    return init / WEIGHTS


def hash_of(init: Path) -> str:
    """Return the SHA-256 of the file of the weights to start from. Raises InputError as ``weights_file`` does."""
    return hashlib.sha256(read(weights_file(init))).hexdigest()


def load_initial(run: ResolvedRun, model: nn.Module) -> None:
    """Load the weights that a run starts from into its new model, buffers included; nothing where it starts from random ones.

    Raises: InputError when they do not fit the model, name for name and shape for shape, are not finite or damaged, or have
        changed since the run was resolved.
    """
    if run.init is None:
        return
    file = weights_file(run.init)
    tensors = load_tensors(file)[0] if run.init.is_dir() else load_any_tensors(file)
    if run.init_sha256 != hash_of(run.init):
        raise InputError(f"--init '{run.init}' changed while it was read: begin again")
    _check_fits(tensors, model, file)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as problem:  # of a module with an opinion of its own
        raise InputError(f"--init '{file}' does not fit the model: {first_line(problem)}") from None


def _check_fits(tensors: dict[str, Tensor], model: nn.Module, file: Path) -> None:
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    own = {name: tuple(t.shape) for name, t in state.items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if own != given:
        odd = next(name for name in [*own, *sorted(given)] if own.get(name) != given.get(name))
        raise InputError(
            f"--init '{file}' does not fit the model: '{odd}' is {given.get(odd, 'absent')} there and"
            f" {own.get(odd, 'absent')} here; give weights of this very network"
        )
    floats = [name for name, t in state.items() if t.is_floating_point()]
    if odd := next((name for name in floats if not tensors[name].is_floating_point()), ""):
        raise InputError(
            f"--init '{file}' does not fit the model: '{odd}' is {tensors[odd].dtype} there and {state[odd].dtype} here; give"
            " weights that are not quantized"
        )
    # In the model's own type: a larger number may be infinite there, and torch cannot say it of every type.
    if odd := next((name for name, t in tensors.items() if not bool(t.to(state[name].dtype).isfinite().all())), ""):
        raise InputError(f"--init '{file}' has weights that are not finite, the first in '{odd}': give others")
