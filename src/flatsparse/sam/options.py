"""The options of a perturbation."""

from __future__ import annotations

from dataclasses import dataclass

from flatsparse.common.errors import InputError, check_finite


@dataclass(frozen=True)
class Options:
    """The options of a perturbation; see ``SharpnessAware`` for what each means."""

    adaptive: bool = False
    eta: float = 0.01
    mask_perturbation: bool = True
    compact: bool = False
    in_place: bool = False

    def __post_init__(self) -> None:
        check_finite("eta", self.eta)
        if self.compact and not self.mask_perturbation:
            raise InputError(
                "compact keeps the perturbed values of active weights only: it cannot go with mask_perturbation=False"
            )
