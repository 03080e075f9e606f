"""The layers of a model: the choice of those to make sparse, and the checks of their weights."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from flatsparse.common.errors import InputError, nearest
from flatsparse.common.names import plain_names
from flatsparse.common.weight_layout import is_conv1d

# Layers whose matrices are prunable by default. Embeddings and norms are not: no paper here prunes them.
PRUNABLE = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
# Layers whose matrices stay dense without a warning.
DENSE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
NOTICED = 0.1  # the share of all from which on there is a warning of other matrices that stay dense (ours)

LayerSelector = str | type[nn.Module]  # a shell pattern of names, or a kind of layer
Modules = Mapping[str, nn.Module]  # the layers that have a weight, by the weight's plain name, in the model's order
LeftDense = Callable[[Modules], set[str]]  # names the weights that a convention leaves dense


def first_convolution(modules: Modules) -> set[str]:
    """Return the convolution that comes first in the model."""
    return set(list(_convolutions(modules))[:1])


def shortcuts(modules: Modules) -> set[str]:
    """Return the 1x1 convolutions around the blocks of a residual net.

    Ours, by structure: a 1x1 convolution that does not take as many channels as the convolution before it gives, but
    gives as many, and so goes around it. Where the counts do not tell, its name may: ``shortcut`` or ``downsample``.
    """
    names, before = set(), None
    for name, conv in _convolutions(modules).items():
        around = before is not None and conv.in_channels != before.out_channels == conv.out_channels
        if max(conv.kernel_size) == 1 and (around or "shortcut" in name or "downsample" in name):
            names.add(name)
        before = conv
    return names


def classifier(modules: Modules) -> set[str]:
    """Return the linear layer that comes last in the model."""
    return set([name for name, module in modules.items() if isinstance(module, nn.Linear)][-1:])


def prunable(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Module]]:
    """Return every matrix of a model by its plain name, with the module that owns it.

    A weight that several modules share goes by its first name; an embedding among them owns it, and stays dense by
    default, or else a layer that is made sparse. What has no entries is no matrix, nor are biases of any shape and the
    lengths of a weight normalization.

    Raises: InputError for a lazy layer, whose weight has no shape yet.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for module in model.modules():
        for leaf, p in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(p), []).append((leaf, module))
    named = list(model.named_parameters())
    plain = plain_names([name for name, _ in named])
    if lazy := [name for name, (_, p) in zip(plain, named, strict=True) if is_lazy(p)]:
        raise InputError(f"'{lazy[0]}' has no shape yet: run one batch through the model before it is made sparse")
    matrices = {}
    for name, (_, p) in zip(plain, named, strict=True):
        if p.ndim >= 2 and p.numel() and not any(_is_vector(*owner) for owner in owners[id(p)]):
            matrices[name] = p, min(owners[id(p)], key=lambda o: (not isinstance(o[1], DENSE), not by_default(*o)))[1]
    return matrices


def by_default(name: str, module: nn.Module) -> bool:
    """True if the matrix of this name that a module owns is made sparse when no layers are named."""
    return (isinstance(module, PRUNABLE) or is_conv1d(module)) and not _is_normed(name, module)


def chosen(
    modules: Modules,
    left_dense: Sequence[LeftDense] = (),
    include: Sequence[LayerSelector] = (),
    exclude: Sequence[LayerSelector] = (),
) -> set[str]:
    """Return the names of the weights to make sparse.

    Args:
        modules: of every matrix; see ``prunable``.
        left_dense: each names layers that stay dense, such as ``first_convolution``.
        include: names or kinds of what is made sparse instead of every layer that is by default.
        exclude: names or kinds of what is left dense besides.

    Raises: InputError for a pattern that matches nothing.
    """
    default = {name: module for name, module in modules.items() if by_default(name, module)}
    names = matching(include, modules, "include") if include else set(default)
    for dense in left_dense:
        names -= dense(default)
    return names - matching(exclude, modules, "exclude")


def _convolutions(modules: Modules) -> dict[str, nn.modules.conv._ConvNd]:
    return {name: module for name, module in modules.items() if isinstance(module, nn.modules.conv._ConvNd)}


def _fits(pattern: LayerSelector, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    texts = name, name.rpartition(".")[0], type(module).__name__
    return any(fnmatch.fnmatchcase(text, pattern) for text in texts)


def check_exact(name: str, module: nn.Module) -> None:
    """Raise InputError when zeros of a matrix are not zeros of the weight that its parametrization makes of it.

    Tried out: with every other entry of a copy at 0, and its first row and column, the made weight must be 0 there and
    finite.
    """
    leaf = name.rpartition(".")[2]
    if _is_normed(leaf, module):
        exact = False
    elif not isinstance(module, ParametrizationList) or (tensor := getattr(module, leaf)).is_meta:
        return
    else:
        twin = copy.deepcopy(module).eval()
        mask = (torch.arange(tensor.numel(), device=tensor.device) % 2 == 0).view(tensor.shape)
        mask[0], mask[:, 0], mask.view(-1)[-1] = False, False, True  # a layer keeps a weight
        with torch.no_grad():
            getattr(twin, leaf).copy_(torch.where(mask, tensor, 0))
            made = twin()
        exact = made.shape == tensor.shape and bool((made.isfinite() & (mask | (made == 0))).all())
    if not exact:
        raise InputError(
            f"'{name}' is no weight but what a parametrization makes one of, and zeros in it are not zeros of the weight"
            " (a row of zeros may be NaN): remove the parametrization first (torch.nn.utils.remove_weight_norm, or"
            " parametrize.remove_parametrizations)"
        )


def warn_of_dense(matrices: Mapping[str, tuple[nn.Parameter, nn.Module]], dense: Iterable[str]) -> None:
    """Warn once of matrices that stay dense although not excluded.

    These are what parametrizations own, and matrices of unknown kinds that are ``NOTICED`` of all.

    Args:
        matrices: see ``prunable``.
        dense: the names of those that are trained and were neither chosen nor left out by name.
    """
    owned = [name for name in dense if _is_owned(name, matrices[name][1])]
    other = [
        name
        for name in dense
        if name not in owned and not isinstance(matrices[name][1], DENSE) and not by_default(name, matrices[name][1])
    ]
    whole = sum(p.numel() for p, _ in matrices.values())
    if sum(matrices[name][0].numel() for name in other) < NOTICED * whole:
        other = []
    if not owned + other:
        return
    share = sum(matrices[name][0].numel() for name in owned + other) / whole
    why = [
        f"a parametrization owns {_listed(owned)} (one that keeps zeros, such as spectral_norm, may stay; remove others,"
        " such as weight_norm, first)"
    ] * bool(owned)
    why += [f"{_listed(other)} are of no kind that is made sparse by default"] * bool(other)
    warnings.warn(
        f"{share:.1%} of the weights of all matrices stay dense: {'; '.join(why)}. Name them in include=, with all other"
        " layers to make sparse, or in exclude= to leave them dense without this warning",
        stacklevel=4,
    )


def kinds(modules: Modules) -> str:
    """Return the kinds of layers that own matrices, and the number of each, as a phrase."""
    owned = "owned by a parametrization"
    counts = Counter(owned if _is_owned(name, m) else f"of {type(m).__name__}" for name, m in modules.items())
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def matching(patterns: Sequence[LayerSelector] | LayerSelector, modules: Modules, argument: str) -> set[str]:
    """Return the names of the weights that at least one of some patterns fits.

    Raises: InputError, which names the argument, for a pattern that fits none.
    """
    names: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, (str, type)) else patterns:
        hits = {name for name, module in modules.items() if _fits(pattern, name, module)}
        if not hits:
            known: Iterable[str] = [name.rpartition(".")[0] for name in modules]
            shown = pattern if isinstance(pattern, str) else pattern.__name__
            raise InputError(f"{argument} pattern '{shown}' matches no layer ({nearest(shown, known)})")
        names |= hits
    return names


def _is_vector(leaf: str, module: nn.Module) -> bool:
    """True if a parameter is none of a layer's matrices, whatever its shape."""
    if leaf == "bias" or (isinstance(module, nn.MultiheadAttention) and leaf in ("bias_k", "bias_v")):
        return True
    if isinstance(module, ParametrizationList):
        return leaf == "original0" and type(module[0]).__name__ == "_WeightNorm"
    return leaf.endswith("_g") and _is_normed(leaf, module)


def _is_normed(name: str, module: nn.Module) -> bool:
    """True if ``torch.nn.utils.weight_norm`` owns a parameter of a layer."""
    leaf = name.rpartition(".")[2]
    normed = [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
    return leaf in [f"{own}_{part}" for own in normed for part in "gv"]


def _is_owned(name: str, module: nn.Module) -> bool:
    return isinstance(module, ParametrizationList) or _is_normed(name, module)


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
