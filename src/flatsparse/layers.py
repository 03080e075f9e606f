"""Which layers of a model are made sparse: by kind, by name, and by what the literature leaves dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from flatsparse.errors import InputError, nearest, unknown

# Layers whose matrices are prunable by default. Embeddings and norms are not: no paper here prunes them.
PRUNABLE = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)

Pattern = str | type[nn.Module]  # a shell pattern of names, or a kind of layer
Modules = Mapping[str, nn.Module]  # the layers that have a weight, by the weight's plain name, in the model's order


def first_convolution(modules: Modules) -> set[str]:
    """The convolution that comes first in the model."""
    return set(list(_convolutions(modules))[:1])


def shortcuts(modules: Modules) -> set[str]:
    """The 1x1 convolutions around the blocks of a residual net.

    Ours, by structure: a 1x1 convolution that does not take as many channels as the convolution before it gives, but
    gives as many, and so goes around it. Where the counts do not tell, its name may: ``shortcut`` or ``downsample``.
    """
    found, before = set(), None
    for name, conv in _convolutions(modules).items():
        around = before is not None and conv.in_channels != before.out_channels == conv.out_channels
        if max(conv.kernel_size) == 1 and (around or "shortcut" in name or "downsample" in name):
            found.add(name)
        before = conv
    return found


def classifier(modules: Modules) -> set[str]:
    """The linear layer that comes last in the model."""
    return set([name for name, module in modules.items() if isinstance(module, nn.Linear)][-1:])


# What is left dense beside biases, norms and embeddings, by whose convention.
PRESETS: dict[str, tuple[Callable[[Modules], set[str]], ...]] = {
    "all": (),  # also of ERK: Evci et al. 2020, app. B
    "grasp": (),  # and of SNIP: Wang et al. 2020, Lee et al. 2019
    "rigl": (first_convolution,),  # with uniform sparsity: Evci et al. 2020, sec. 3
    "dsr": (first_convolution, shortcuts),  # the published code of Mostafa & Wang 2019
    "mest": (first_convolution, shortcuts, classifier),  # the published code of Yuan et al. 2021; Ji et al. 2024
}


def prunable(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Module]]:
    """Every matrix of a model by its plain name, with the module that owns it; made sparse by default are ``PRUNABLE``."""
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    named = list(model.named_parameters())  # a tied weight goes by its first name
    plain = plain_names([name for name, _ in named])
    return {short: (p, owners[name]) for short, (name, p) in zip(plain, named, strict=True) if p.ndim >= 2}


def chosen(
    modules: Modules, layers: str = "all", include: Sequence[Pattern] = (), exclude: Sequence[Pattern] = ()
) -> set[str]:
    """The names of the weights that shall be made sparse.

    Args:
        modules: of every matrix; see ``prunable``.
        layers: a name in ``PRESETS``, for what is left dense.
        include: names or kinds of what is made sparse instead of every ``PRUNABLE`` layer.
        exclude: names or kinds of what is left dense besides.

    Raises: InputError for an unknown preset, and for a pattern that matches nothing.
    """
    if layers not in PRESETS:
        raise unknown("choice of layers", layers, PRESETS)
    default = {name: module for name, module in modules.items() if isinstance(module, PRUNABLE)}
    names = _matching(include, modules, "include") if include else set(default)
    for left_dense in PRESETS[layers]:
        names -= left_dense(default)
    return names - _matching(exclude, modules, "exclude")


def plain_names(names: Sequence[str]) -> list[str]:
    """A model's names without what ``torch.compile`` and data-parallel wrappers put before them.

    A ``module.`` that only some names have is the model's own.
    """
    names = [name.replace("_orig_mod.", "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _convolutions(modules: Modules) -> dict[str, nn.modules.conv._ConvNd]:
    return {name: module for name, module in modules.items() if isinstance(module, nn.modules.conv._ConvNd)}


def _matching(patterns: Sequence[Pattern] | Pattern, modules: Modules, argument: str) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, (str, type)) else patterns:
        hits = {name for name, module in modules.items() if _fits(pattern, name, module)}
        if not hits:
            known: Iterable[str] = [name.rpartition(".")[0] for name in modules]
            shown = pattern if isinstance(pattern, str) else pattern.__name__
            raise InputError(f"{argument} pattern '{shown}' matches no layer ({nearest(shown, known)})")
        found |= hits
    return found


def _fits(pattern: Pattern, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    told = name, name.rpartition(".")[0], type(module).__name__
    return any(fnmatch.fnmatchcase(text, pattern) for text in told)
