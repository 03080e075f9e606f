"""Presets of layers: the layers that a method's paper leaves dense besides biases, norms and embeddings."""

from __future__ import annotations

from flatsparse.common.errors import unknown
from flatsparse.sparse.layers import LeftDense, classifier, first_convolution, shortcuts

PRESETS: dict[str, tuple[LeftDense, ...]] = {
    "all": (),  # also of ERK: Evci et al. 2020, app. B
    "grasp": (),  # and of SNIP: Wang et al. 2020, Lee et al. 2019
    "rigl": (first_convolution,),  # with uniform sparsity: Evci et al. 2020, sec. 3
    "dsr": (first_convolution, shortcuts),  # the published code of Mostafa & Wang 2019
    "mest": (first_convolution, shortcuts, classifier),  # the published code of Yuan et al. 2021; Ji et al. 2024
}


def left_dense_by(preset: str) -> tuple[LeftDense, ...]:
    """Return the functions that name the layers a preset leaves dense.

    Raises: InputError for an unknown preset.
    """
    if preset not in PRESETS:
        raise unknown("choice of layers", preset, PRESETS)
    return PRESETS[preset]
