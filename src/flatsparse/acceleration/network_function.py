"""A program as a differentiable function of its input and its layers' parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flatsparse.acceleration.conv_index import ConvIndex, convolution_index
from flatsparse.acceleration.conv_kernels import Combined
from flatsparse.acceleration.conv_layout import LANES
from flatsparse.acceleration.kernels import threads
from flatsparse.acceleration.linear import check_form
from flatsparse.acceleration.network_gradients import Pass, Wanted
from flatsparse.acceleration.network_program import Geometry, Program, program_geometry
from flatsparse.acceleration.network_run import Activations, BranchState, folded, outputs, run_evaluation, run_forward
from flatsparse.common.tensors import Version, version


class Runner:
    """Runs a program, and keeps the layouts and indices that its last calls needed.

    Args:
        program: what it runs.
        mask: the mask of a weight, None for a dense one.
        dense_gradients: whether this step needs the gradients of all weights, not of the live ones only.
    """

    def __init__(
        self, program: Program, mask: Callable[[Tensor], Tensor | None], dense_gradients: Callable[[], bool]
    ) -> None:
        self.program, self.mask, self.dense_gradients = program, mask, dense_gradients
        self._geometries: dict[tuple[int, ...], Geometry | None] = {}
        self._indices: dict[tuple[int, ...], list[tuple[Version | None, ConvIndex]]] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the program's outputs for a float32 (N, C, H, W) input that its geometry takes."""
        if not torch.is_grad_enabled() and self._folds():
            return self._evaluate(images)
        return _Run.apply(self, images, *self.parameters())

    def _evaluate(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs; some images pass all layers before the next do, so that they stay in the cache."""
        _, indices = self.prepared(images)
        branches = [folded(branch, index) for branch, index in zip(self.program.branches(), indices, strict=True)]
        results = []
        for some in images.split(LANES * threads()):
            geometry = self.geometry(some)
            assert geometry is not None
            results.append(run_evaluation(self.program, geometry, branches, some))
        return results[0] if len(results) == 1 else tuple(map(torch.cat, zip(*results, strict=True)))

    def _folds(self) -> bool:
        norms = [branch.norm for branch in self.program.branches() if branch.norm is not None]
        return not any(norm.training or norm.running_mean is None for norm in norms)

    def parameters(self) -> list[Tensor | None]:
        """Return the parameters of the branches: weight, bias, norm's weight and bias of each."""
        result: list[Tensor | None] = []
        for branch in self.program.branches():
            norm = branch.norm
            result += [branch.conv.weight, branch.conv.bias]
            result += [None, None] if norm is None else [norm.weight, norm.bias]
        return result

    def tensors(self) -> list[Tensor]:
        """Return all that kernels read: parameters, running statistics and masks."""
        norms = [branch.norm for branch in self.program.branches() if branch.norm is not None]
        every: list[Tensor | None] = [*self.parameters(), *(norm.running_mean for norm in norms)]
        every += [*(norm.running_var for norm in norms), *(self.mask(b.conv.weight) for b in self.program.branches())]
        return [tensor for tensor in every if tensor is not None]

    def saved_by_torch(self) -> list[Tensor | None]:
        """Return what torch's own convolutions and batch norms save, to raise in a backward where it was written to since."""
        norms = [branch.norm for branch in self.program.branches() if branch.norm is not None]
        result: list[Tensor | None] = [branch.conv.weight for branch in self.program.branches()]
        for norm in norms:
            result += [norm.weight, norm.running_mean, norm.running_var]
        return result

    def geometry(self, images: Tensor) -> Geometry | None:
        """Return the layouts for an input, None where the program cannot take it."""
        n, c, h, w = images.shape
        shape = n, c, h, w
        if shape not in self._geometries:
            if len(self._geometries) > 8:  # batches of many sizes
                self._geometries.clear()
            self._geometries[shape] = program_geometry(self.program, shape)
        return self._geometries[shape]

    def prepared(self, images: Tensor) -> tuple[Geometry, list[ConvIndex]]:
        """Return the layouts and indices for an input; an index is made again after its mask has changed."""
        geometry = self.geometry(images)
        assert geometry is not None
        key = tuple(images.shape[1:])  # strides do not depend on the size of the batch
        branches = self.program.branches()
        known: Sequence[tuple[Version | None, ConvIndex | None]] = self._indices.get(key) or [(None, None)] * len(
            branches
        )
        if key not in self._indices and len(self._indices) > 2:
            self._indices.clear()
        result = []
        for branch, where, (mark, index) in zip(branches, geometry.branches, known, strict=True):
            mask = self.mask(branch.conv.weight)
            now = None if mask is None else version(mask)
            if index is None or now != mark:
                live = torch.ones_like(branch.conv.weight, dtype=torch.bool) if mask is None else mask
                index = convolution_index(live, where)
            result.append((now, index))
        self._indices[key] = result
        return geometry, [index for _, index in result]


def _with(activations: Activations, tensor: Callable[[Any], Any]) -> Activations:
    """The activations with others in the place of their tensors."""
    values = [
        _combined_with(value, tensor) if isinstance(value, Combined) else tensor(value) for value in activations.values
    ]
    states = [BranchState(tensor(s.values), tensor(s.y), tensor(s.normed), s.fixed) for s in activations.states]
    return Activations(values, states)


def _combined_with(value: Combined, tensor: Callable[[Any], Any]) -> Combined:
    (x, layout), second = value.x, value.x2
    x2 = None if second is None else (tensor(second[0]), second[1])
    scale2 = tensor(value.scale2)
    return Combined(
        value.layout, (tensor(x), layout), tensor(value.scale), tensor(value.shift), x2, scale2, value.rectify
    )


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runner: Runner, images: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        geometry, indices = runner.prepared(images)
        activations = run_forward(runner.program, geometry, indices, images)
        # As torch's own saved tensors they are freed by a backward, and there for another where the graph is retained.
        tensors: list[Tensor | None] = []

        def place(tensor: Tensor | None) -> int:
            tensors.append(tensor)
            return len(tensors) - 1

        ctx.state = (runner, geometry, indices, _with(activations, place))
        ctx.shapes = [weight.shape for weight in parameters[::4]]
        ctx.save_for_backward(*tensors, *runner.saved_by_torch())
        ctx.set_materialize_grads(False)
        return outputs(runner.program, geometry, activations.values)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        # Not once_differentiable: its error comes from a node that autograd.grad leaves out where only some inputs are asked for.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "second derivatives through accelerated convolutions are not computed: call restore() first"
            )
        runner, geometry, indices, places = ctx.state
        activations = _with(places, ctx.saved_tensors.__getitem__)
        for shape, branch in zip(ctx.shapes, runner.program.branches(), strict=True):
            check_form(shape, branch.conv.weight)
        needed = ctx.needs_input_grad
        wanted = Wanted(needed[1], list(needed[2::4]), runner.dense_gradients())
        images, gradients = Pass(runner.program, geometry, indices, activations, wanted).run(given)
        result: list[Tensor | None] = [None, images]
        for one in gradients:
            result += [one.weight, one.bias, one.norm_weight, one.norm_bias]
        return tuple(
            tensor if tensor is not None and is_needed else None
            for tensor, is_needed in zip(result, needed, strict=True)
        )
