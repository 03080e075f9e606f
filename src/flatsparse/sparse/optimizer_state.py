"""The state that optimizers keep for each weight, for weights that are pruned or have just grown.

A grown weight shall find the state that a new optimizer would give it. Most state begins as 0; some does not, and 8-bit
state is codes. Adam and its kin also correct their averages by one step count for the whole tensor, so a weight that
grows late would take steps several times too long (SMET, arXiv 2606.00888, names them as a cause of spikes in the loss).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import PLAIN, is_sharded, local_tensor
from flatsparse.common.errors import InputError
from flatsparse.sam.state_entry import PERTURBED
from flatsparse.sparse.masks import MaskedWeight

# Optimizers that treat every entry by itself: with a masked gradient and zero state they leave a zero weight at zero.
# Any other kind (Muon mixes rows and columns) has its weights masked after the step as well.
ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop, torch.optim.ASGD, torch.optim.Rprop),
)

Group = Mapping[str, Any]

# State that does not begin as 0: of which optimizers, under which key, and as what.
BEGINNINGS: tuple[tuple[type[Optimizer], str, Callable[[Group], float]], ...] = (
    (torch.optim.Rprop, "step_size", lambda group: float(group["lr"])),
    (torch.optim.Adagrad, "sum", lambda group: float(group["initial_accumulator_value"])),
)
# Integer state: codes, and under which key the number that each of them stands for (bitsandbytes).
CODES = {"state1": "qmap1", "state2": "qmap2"}
# State that holds the weights themselves, moved or averaged; outside a mask it is what they are there.
OF_WEIGHTS: tuple[tuple[type[Optimizer], str], ...] = ((Optimizer, PERTURBED), (torch.optim.ASGD, "ax"))


def groups_by_parameter(optimizer: Optimizer) -> dict[nn.Parameter, Group]:
    """Return the group of each parameter."""
    return {p: group for group in optimizer.param_groups for p in group["params"]}


@torch.no_grad()
def begin_outside(weights: Iterable[MaskedWeight], optimizer: Optimizer, *, leave: str | None = None) -> None:
    """Set all state of a masked weight's shape, outside its mask, to what a new optimizer would make it.

    By shape, so that few optimizers need be named: momentum, Adam's moments and S²-SAM's perturbed weights alike.

    Args:
        leave: the key of state to leave alone.

    Raises: InputError for state of a kind in which that value cannot be written.
    """
    groups = groups_by_parameter(optimizer)
    for w in weights:
        for key, value in optimizer.state.get(w.weight, {}).items():
            if isinstance(value, Tensor) and value.shape == w.weight.shape and key != leave:
                _begin(key, value, w, optimizer, groups.get(w.weight, {}))


def beginning(key: str, optimizer: Optimizer, group: Group) -> float:
    """Return what a new optimizer would make each entry of a floating-point state."""
    return next((begin(group) for kind, name, begin in BEGINNINGS if name == key and isinstance(optimizer, kind)), 0.0)


def holds_weights(key: str, optimizer: Optimizer) -> bool:
    """Return whether a state holds weights: ``OF_WEIGHTS``, and the z of schedule-free optimizers, known by their modes."""
    if key == "z":
        return hasattr(optimizer, "train") and hasattr(optimizer, "eval")
    return any(key == name and isinstance(optimizer, kind) for kind, name in OF_WEIGHTS)


def reaches_outside(optimizer: Optimizer) -> bool:
    """Return whether a step changes state where the gradient is 0 but the weight is not, as weight decay does in a gradient."""
    if type(optimizer) not in ELEMENTWISE:
        return True
    coupled = (group.get("weight_decay") and decay_factor(optimizer, group) == 1 for group in optimizer.param_groups)
    return isinstance(optimizer, torch.optim.ASGD) or any(coupled)


def _begin(key: str, value: Tensor, w: MaskedWeight, optimizer: Optimizer, group: Group) -> None:
    if type(value) not in PLAIN and not is_sharded(value):
        raise _unwritable(key, f"as a {type(value).__name__}", optimizer)
    if w.keeps_outside and holds_weights(key, optimizer):
        local_tensor(value).copy_(
            torch.where(local_tensor(w.mask), local_tensor(value), local_tensor(w.weight.detach()))
        )
        return
    first = beginning(key, optimizer, group)
    if not (value.is_floating_point() or value.is_complex()) and value.dtype != torch.bool:
        meanings = optimizer.state[w.weight].get(CODES.get(key, ""))
        if meanings is None:
            raise _unwritable(key, f"of {value.dtype}", optimizer)
        local_tensor(value).masked_fill_(~local_tensor(w.mask), int(meanings.abs().argmin()))
    elif first != 0:
        local_tensor(value).masked_fill_(~local_tensor(w.mask), first)
    else:
        w.zero_outside(value)


def _unwritable(key: str, kind: str, optimizer: Optimizer) -> InputError:
    return InputError(
        f"{type(optimizer).__name__} keeps '{key}' {kind}, in which no 0 can be written for pruned weights: use an"
        " optimizer that keeps its state as plain floating-point tensors"
    )


def correction(optimizer: Optimizer, group: Group, state: Mapping[str, Any], step: float) -> float | None:
    """Return the factor of the quotient of an optimizer's averages at a step that makes up for their start at 0.

    Adam's averages are divided by ``1 − β^t``. A weight that has grown since takes its own age for t, and so a step that is
    multiplied by the quotient of the two. NAdam weights its first average by step too: for it the second's part alone is
    given, which keeps steps about as short as a new one's. RAdam's first steps, which it takes without the second average,
    count as the first that has it.

    Args:
        state: the optimizer's of one weight, after its first step.

    Returns: None for an optimizer that corrects nothing.
    """
    betas = group.get("betas")
    if (
        betas is None
        or len(betas) < 2
        or group.get("bias_correction") is False
        or not ("step" in state or "step" in group)
    ):
        return None
    beta1, beta2 = map(float, betas[:2])
    first = 1 / (1 - beta1**step)
    if isinstance(optimizer, torch.optim.Adamax):
        return first
    if not any(one in state and two in state for one, two in (("exp_avg", "exp_avg_sq"), ("state1", "state2"))):
        return None
    if isinstance(optimizer, torch.optim.NAdam):
        return math.sqrt(1 - beta2**step)
    if isinstance(optimizer, torch.optim.RAdam):
        return first * _rectified(step, beta2)
    return first * math.sqrt(1 - beta2**step)


def _rectified(step: float, beta2: float) -> float:
    """Return the second average's part in RAdam (Liu et al. 2020, Alg. 2), from the step on that knows its variance."""
    most = 2 / (1 - beta2) - 1
    if most <= 5:
        return 1.0

    def length(step: float) -> float:
        return most - 2 * step * beta2**step / (1 - beta2**step)

    while length(step) <= 5:
        step += 1
    n = length(step)
    return math.sqrt((n - 4) * (n - 2) * most / ((most - 4) * (most - 2) * n) * (1 - beta2**step))


def settling_age(group: Group) -> float:
    """Return the age from which on a correction would be within a thousandth of 1, and is no longer made."""
    slowest = max(map(float, group["betas"][:2]))
    return math.log(0.002) / math.log(slowest) if slowest > 0 else 1.0


def decay_factor(optimizer: Optimizer, group: Group) -> float:
    """Return the factor of weights before an optimizer takes its step (decoupled weight decay)."""
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    return 1 - float(group["lr"]) * float(group.get("weight_decay", 0.0)) if decoupled else 1.0
