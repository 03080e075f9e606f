"""The time that sparsity saves: with channels removed, channels only masked, and single weights in CSR form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from flatsparse.api import sparsify
from flatsparse.common.seeds import generator
from flatsparse.experiments.bench.cases import Batch, Case, loss
from flatsparse.experiments.bench.results import Table, Tell, ratio_json, ratio_text
from flatsparse.experiments.bench.timing import interleaved, wall_ratio
from flatsparse.experiments.bench.trainer import FOREVER, Timing
from flatsparse.experiments.bench.variants import fused_sgd
from flatsparse.experiments.clock import clock
from flatsparse.experiments.stats import Interval
from flatsparse.export import to_csr
from flatsparse.graph.groups import channel_groups
from flatsparse.graph.shrink import shrink
from flatsparse.methods import FIXED
from flatsparse.sparse.layers import prunable
from flatsparse.sparse.topk import keep_top

DENSE, CONTROL, MASKED, SMALL, CSR = "dense", "dense again", "channels masked", "channels gone", "CSR"
TARGET = 1.6  # times as fast without half of the channels
RUNS = (("inference", (DENSE, CONTROL, MASKED, SMALL, CSR)), ("training", (DENSE, CONTROL, MASKED, SMALL)))


@dataclass(frozen=True)
class Thinned:
    """A network and the channels it is to lose.

    Attributes:
        model: of the ordinary width.
        masks: bool by weight; they leave out whole channels.
        channels: the fraction of channels that go.
        accuracy: returns a network's test accuracy in percent; None where nothing is trained.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    channels: float
    accuracy: Callable[[nn.Module], float] | None = None


def _agreement(accuracies: tuple[float, float]) -> str:
    masked, small = accuracies
    same = "the same" if masked == small else f"{small - masked:+.2f} points"
    return f"Test accuracy: masked {masked:.2f} %, without the channels {small:.2f} %: {same}."


def channels_table(
    name: str, case: Case, thinned: Thinned, *, sparsity: float, rounds: int, device: str, tell: Tell
) -> Table:
    """The speed of the others over the dense net, in inference and in a training step with SGD.

    Args:
        name, case: the network and what it is fed.
        thinned: which of its channels go.
        sparsity: of the net in CSR form, which is only run, not trained; 0 leaves it out.
        rounds, device, tell: as for the other tables. The number of threads is torch's current one.
    """
    dense, masks, channels = thinned.model.to(device), thinned.masks, thinned.channels
    sample = case.batch(generator(0, "outputs"))[0].to(device)
    apart = _apart(dense, masks, sample)
    threads = torch.get_num_threads()
    rows, record = [], {}
    ratios: dict[str, dict[str, Interval]] = {}
    for kind, every in RUNS:
        forms = [form for form in every if form != CSR or sparsity]
        runners = {form: _runner(kind, form, dense, masks, sparsity, device) for form in forms}
        timings = interleaved(runners, case, rounds, tell=tell)
        against = {form: wall_ratio(timings[DENSE], timings[form]) for form in forms if form != DENSE}
        for form in forms:
            label = f"{sparsity:.0%} sparse, CSR" if form == CSR else form
            milliseconds = f"{1000 * median(timing.step for timing in timings[form]):.2f}"
            rows.append((f"{kind}, {label}", milliseconds, ratio_text(against.get(form))))
            if form != DENSE:
                ratios.setdefault(label, {})[kind] = against[form]
        record[kind] = {
            form: {"speed": ratio_json(against.get(form)), "seconds": [timing.step for timing in timings[form]]}
            for form in forms
        }
    small = shrink(dense, masks).eval()
    counts = {form: sum(p.numel() for p in net.parameters()) for form, net in ((DENSE, dense), (SMALL, small))}
    accuracies = None if thinned.accuracy is None else (thinned.accuracy(dense.eval()), thinned.accuracy(small))
    sentences = [verdict(kind, ratios[SMALL][kind], channels, case.targets.get(SMALL)) for kind, _ in RUNS]
    sentences += [
        f"Outputs without the channels differ from the masked net's by {apart:.1e} of the largest at most.",
        *([] if accuracies is None else [_agreement(accuracies)]),
        f"Noise: a second, identical dense net is {ratio_text(ratios[CONTROL]['inference'])} and"
        f" {ratio_text(ratios[CONTROL]['training'])} times as fast; differences of that size say nothing.",
    ]
    return Table(
        title=f"{case.title}, {threads} thread{'' if threads == 1 else 's'}: {channels:.0%} of the channels gone,"
        f" {counts[DENSE] / 1e6:.2f}M to {counts[SMALL] / 1e6:.2f}M parameters",
        head=("", "ms", "times as fast"),
        rows=rows,
        sentences=sentences,
        ratios=ratios,
        record={
            "case": name,
            "title": case.title,
            "threads": threads,
            "channels": channels,
            "sparsity": sparsity,
            "parameters": counts,
            "outputs_apart": apart,
            "test_accuracy": None if accuracies is None else {MASKED: accuracies[0], SMALL: accuracies[1]},
            "target": case.targets.get(SMALL),
            "runs": record,
        },
    )


def without_channels(model: nn.Module, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Masks of all prunable weights that leave out a share of each group's channels, at least one kept, drawn at random."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, (p, _) in prunable(model).items()}
    for index, group in enumerate(channel_groups(model)):
        if group.why_kept is None:
            count = min(group.size - 1, round(share * group.size))
            removed = keep_top(torch.rand(group.size, generator=generator(seed, "channels", index)), count)
            for slot in (*group.writes, *group.reads):
                if slot.name in masks:
                    indices = removed.repeat_interleave(slot.block).nonzero().squeeze(1) + slot.offset
                    masks[slot.name].index_fill_(slot.dim, indices.to(masks[slot.name].device), False)
    return masks


def csr(model: nn.Module, sparsity: float) -> nn.Module:
    """A copy with random static masks (ERK) that multiplies by active weights alone."""
    sparse = copy.deepcopy(model)
    training = sparsify(sparse, fused_sgd(sparse), FIXED, sparsity=sparsity, steps=FOREVER)
    with warnings.catch_warnings():  # that CSR tensors are in beta
        warnings.simplefilter("ignore", UserWarning)
        return to_csr(sparse, training.masks)


class Runner:
    """A net whose forward passes, or training steps with SGD, are timed; with masks, they are kept true.

    Attributes:
        device: where it runs.
    """

    def __init__(
        self, model: nn.Module, device: str, *, trains: bool, masks: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, self.device, self.trains = model.train(trains), device, trains
        self.optimizer = fused_sgd(model)
        if masks is not None:
            training = sparsify(model, self.optimizer, FIXED, sparsity=0.0, steps=FOREVER)
            training.load_state_dict({**training.state_dict(), "masks": dict(masks)})
            self._training = training  # keeps the hooks that hold the masks alive

    def step(self, batch: Batch) -> Timing:
        """Run one batch and time it."""
        inputs, targets = batch
        began = clock(self.device)
        if self.trains:
            self.optimizer.zero_grad()
            loss(self.model(inputs), targets).backward()
            self.optimizer.step()
        else:
            with torch.inference_mode():
                self.model(inputs)
        return Timing(clock(self.device) - began, None)


def _runner(
    kind: str, form: str, dense: nn.Module, masks: Mapping[str, Tensor], sparsity: float, device: str
) -> Runner:
    make = {CSR: lambda: csr(dense, sparsity), SMALL: lambda: shrink(dense, masks)}
    model = make.get(form, lambda: copy.deepcopy(dense))()
    return Runner(model, device, trains=kind == "training", masks=masks if form == MASKED else None)


def _apart(dense: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor) -> float:
    """The largest difference of the shrunk net's outputs from the masked one's, relative to the largest of those."""
    masked = Runner(copy.deepcopy(dense), str(inputs.device), trains=False, masks=masks).model
    with torch.inference_mode():
        wanted, outputs = masked(inputs), shrink(dense, masks).eval()(inputs)
    return float((outputs - wanted).abs().max() / wanted.abs().max())


def verdict(kind: str, speed: Interval, channels: float, target: float | None) -> str:
    """A speed in a sentence, with what its interval says of a target."""
    text = f"Without {channels:.0%} of the channels {kind} is {ratio_text(speed)} times as fast"
    if target is None:
        return f"{text}."
    if speed.low < target <= speed.high:
        return f"{text}; target at least {target:g}: open, the interval holds it."
    return f"{text}; target at least {target:g}: {'met' if speed.low >= target else 'missed'}."
