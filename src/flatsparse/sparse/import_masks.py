"""Masks of already pruned models: by torch's own tools, in a checkpoint, or in a file of ours."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError, nearest
from flatsparse.common.files import corrupt_file, read
from flatsparse.common.masks_file import MASK_FORMAT, load_masks
from flatsparse.common.names import plain_names
from flatsparse.common.tensor_files import load_tensors
from flatsparse.sparse.layers import prunable

INDEX = "model.safetensors.index.json"  # what Hugging Face calls the list of a checkpoint's parts
USUAL = ("state_dict", "model_state_dict", "model")  # where a checkpoint's weights are, before any other key
DEPTH = 5  # of what is looked into for them; a file may hold itself


def masks_from(source: nn.Module | Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    """Return the masks of something pruned, for ``sparsify(…, masks=…)``.

    Ours, because a pruned net is often all there is. A matrix that ``torch.nn.utils.prune`` holds has its own mask; of any
    other matrix the zeros are masked, and one without a zero is left out, so that it stays dense. Zeros cannot tell a pruned
    weight from one that happens to be zero: where there are masks, give those. Only of a model's embedding is it known that a
    row is padding, and zero for that. Masks of biases and norms are left out, with a warning.

    Args:
        source: a model, its state dict or a checkpoint that holds one under any key, or the path of one: a ``.safetensors``
            file, the folder of a Hugging Face checkpoint (in one part or several), what ``torch.save`` wrote, a
            ``masks.safetensors`` or a run's folder.

    Returns: bool tensors by parameter name, without what wrappers put before it.
    Raises: InputError when nothing is pruned there, a checkpoint holds several state dicts, or a file is damaged or of no
    known kind.

    >>> model = nn.Linear(4, 2)
    >>> from torch.nn.utils import prune
    >>> _ = prune.l1_unstructured(model, "weight", amount=6)
    >>> int(masks_from(model)["weight"].sum())
    2
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if (saved := _saved_masks(path)) is not None:
            return saved
        masks = _masks(_in_files(path))
    elif isinstance(source, nn.Module):
        weights = {name for name, _ in source.named_parameters(remove_duplicate=False)}  # a buffer's zeros are its own
        masks = _masks((n, t) for n, t in source.state_dict().items() if n in weights or n.endswith("_mask"))
        masks = _without_padding(masks, source)
    elif isinstance(source, Mapping):
        masks = _masks(iter(_state_dict(source, "this checkpoint").items()))
    else:
        raise InputError(f"masks_from got {type(source).__name__}: give a model, its state dict or the path of one")
    if not masks:
        what = f"'{source}'" if isinstance(source, (str, Path)) else f"this {type(source).__name__}"
        raise InputError(f"nothing is pruned in {what}: no matrix has a mask or a zero, so there is nothing to keep")
    for name, mask in masks.items():
        if not mask.any():
            warnings.warn(f"'{name}' is zero throughout and would stay so: delete its mask to train it", stacklevel=2)
    return masks


def fitting(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The masks by the names that the model's matrices have now; a tied matrix has its first, and a buffer's is left out.

    A layer that ``torch.nn.utils.prune`` still holds calls its weight ``weight_orig``. A name that all masks share at their
    front, as ``net.`` in a checkpoint of Lightning, is passed over where none of them fits otherwise.

    Raises: InputError for a name or a shape that the model does not have, for what is no mask and for no active weight.
    """
    every = prunable(model)
    first = {id(p): name for name, (p, _) in every.items()}
    named = list(model.named_parameters(remove_duplicate=False))
    names = {
        name: first[id(p)]
        for plain, (wrapped, p) in zip(plain_names([name for name, _ in named]), named, strict=True)
        for name in (plain, wrapped)
        if id(p) in first
    }
    buffers = set(plain_names([name for name, _ in model.named_buffers()]))
    fitting = {}
    known = {*buffers, *names, *(name.removesuffix("_orig") for name in names)}
    for name, mask in _without_front(masks, known).items():
        own = names.get(name, names.get(f"{name}_orig"))
        if own is None and name in buffers:  # a checkpoint does not say which of its matrices are weights
            continue
        if own is None:
            raise InputError(
                f"masks do not fit the model: it has no weight '{name}' ({nearest(name, every)}); where its names are not those"
                " of the file, as in some Hugging Face models, give masks_from(model) once it is loaded"
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != every[own][0].shape:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(
                f"the mask of '{name}' is {got}: give a bool tensor of the shape {tuple(every[own][0].shape)}"
            )
        fitting[own] = mask
    if not any(bool(mask.any()) for mask in fitting.values()):
        raise InputError("the masks leave no weight active: nothing would be trained")
    return fitting


def _without_front(masks: Mapping[str, Tensor], known: set[str]) -> Mapping[str, Tensor]:
    """The masks without the names before their own, where the model knows all of them then and none as they are."""
    inner = masks
    while known.isdisjoint(inner) and all("." in name for name in inner):
        if len({name.partition(".")[0] for name in inner}) != 1:
            break
        inner = {name.partition(".")[2]: mask for name, mask in inner.items()}
    return inner if known.issuperset(inner) else masks


def _masks(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    held: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}
    named: list[str] = []
    for name, tensor in tensors:
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{name!r} names no tensor but {type(tensor).__name__}: give a model's state dict")
        if tensor.is_floating_point():  # a wrapper's own count of steps has no prefix
            named += [name, name.removesuffix("_orig")]
        if name.endswith("_mask"):
            held[name.removesuffix("_mask")] = _nonzero(name, tensor)
        elif tensor.ndim >= 2 and tensor.is_floating_point():
            zeros[name] = _nonzero(name, tensor)
    orig = {name.removesuffix("_orig") for name in zeros if name.endswith("_orig")}
    if left := [name for name in named if name in held and f"{name}_orig" in named and name not in orig]:
        warnings.warn(
            f"masks of biases and norms are left out, and what they hold will be trained: {', '.join(sorted(set(left)))}",
            stacklevel=3,
        )
    masks = {}
    for name, nonzero in zeros.items():
        plain = name.removesuffix("_orig")
        if plain in orig and plain in held:
            masks[plain] = held[plain]
        elif not nonzero.all():
            masks[name] = nonzero
    return {plain: masks[name] for plain, name in zip(plain_names(named), named, strict=True) if name in masks}


def _without_padding(masks: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The masks with the rows of padding tokens true, which embeddings begin with as zeros; without those that mask no more."""
    padded = {
        id(module.weight): module.padding_idx
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None
    }
    named = list(model.named_parameters(remove_duplicate=False))
    for plain, (_, p) in zip(plain_names([name for name, _ in named]), named, strict=True):
        if plain in masks and id(p) in padded:
            masks[plain][padded[id(p)]] = True
            if masks[plain].all():
                del masks[plain]
    return masks


def _nonzero(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise InputError(f"'{name}' is on the device meta, without values: load the model's weights first")
    try:
        return (tensor if tensor.layout == torch.strided else tensor.to_dense()) != 0
    except NotImplementedError:  # types that pack two numbers into a byte
        raise InputError(
            f"'{name}' is {tensor.dtype}, which torch cannot compare with 0: give it in another type"
        ) from None


def _saved_masks(path: Path) -> dict[str, Tensor] | None:
    """The masks of a file of ours or of a run's folder, if it is one."""
    file = path / "masks.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file() or _about(file).get("format") != MASK_FORMAT:
        return None
    return load_masks(file)[0]


def _in_files(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint, one at a time where its kind allows."""
    if path.is_dir():
        if (path / INDEX).is_file():
            for part in _parts(path / INDEX):
                yield from _in_safetensors(path / part)
            return
        path = path / "model.safetensors"
        if not path.is_file():
            raise InputError(f"'{path.parent}' has neither {INDEX} nor model.safetensors: give a checkpoint's folder")
    if path.suffix == ".safetensors":
        yield from _in_safetensors(path)
        return
    read(path)  # says what is wrong with a path in one line
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # of what is damaged torch may trip over anything
        why = str(problem).splitlines()[0] if str(problem) else "it ends early"
        raise InputError(
            f"'{path}' is no state dict that can be read safely ({why}): save model.state_dict() with torch.save"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"'{path}' holds {type(value).__name__}, no state dict: save model.state_dict()")
    yield from _state_dict(value, f"'{path}'").items()


def _state_dict(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The one state dict in a checkpoint, itself or under any key. Raises InputError where there are several, or none."""
    for _ in range(DEPTH):
        inner = [
            key
            for key, part in value.items()
            if isinstance(part, Mapping) and "optim" not in str(key) and _leads_to_matrix(part)
        ]
        usual = [key for key in USUAL if key in inner]
        if not inner:
            break
        if len(inner) > 1 and not usual:
            raise InputError(f"{where} holds several state dicts, {', '.join(map(repr, inner))}: give one of them")
        value = value[(usual or inner)[0]]
    if value and not any(isinstance(part, Tensor) for part in value.values()):
        keys = ", ".join(map(repr, list(value)[:10]))
        raise InputError(f"{where} holds no state dict; its keys are {keys}: give a model's state dict")
    return value


def _leads_to_matrix(value: object, depth: int = DEPTH) -> bool:
    """True if a matrix with a name is nested somewhere within; an optimizer's state has numbers for names."""
    if isinstance(value, Tensor):
        return value.ndim >= 2 and value.is_floating_point()
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return named and depth > 0 and any(_leads_to_matrix(part, depth - 1) for part in value.values())  # type: ignore[attr-defined]


def _in_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    about = _about(file)
    if "sha256" in about and "format" in about:  # ours, of which the whole content is checked
        yield from load_tensors(file)[0].items()
        return
    with safetensors.safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a mapping
            try:
                tensor = tensors.get_tensor(name)
            except safetensors.SafetensorError as problem:
                raise InputError(f"cannot read '{name}' of '{file}' ({problem}): give it in another type") from None
            yield name, tensor


def _about(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise InputError(f"there is no file '{file}': give a checkpoint that is whole")
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            return tensors.metadata() or {}
    except safetensors.SafetensorError as problem:
        raise corrupt_file(file, str(problem)) from None


def _parts(index: Path) -> list[str]:
    try:
        parts = sorted(set(json.loads(read(index))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise corrupt_file(index, "it has no weight_map") from None
    if outside := [part for part in parts if not isinstance(part, str) or Path(part).name != part]:
        raise InputError(f"'{index}' names '{outside[0]}' outside its folder: give a checkpoint's own index")
    return parts
