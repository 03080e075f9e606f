"""The sentences of a comparison and of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flatsparse.experiments.compared import ComparedRow, ComparedTable
from flatsparse.experiments.comparison_table import Table
from flatsparse.experiments.labels import label, scores_text
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.run.records import RunResult

UNLEARNED = (
    "No net does better than always naming the commonest class, so nothing was learned and nothing can be compared: give more"
    " --epochs, another --lr or less --sparsity."
)


def comparison_sentences(table: Table) -> list[str]:
    """A comparison's table in sentences."""
    if not table.learned:
        return [UNLEARNED, *_failed(table)]
    return differences_in_words(table, lambda row: _edge(row, table))


def differences_in_words(table: ComparedTable, aside: Callable[[Any], str] = lambda row: "") -> list[str]:
    """Any comparison's differences, control and failures in sentences; ``aside`` is said behind a row's difference."""
    compared = [row for row in table.rows if row.difference is not None]
    of_rows = [
        _sentence(row, table.metric) + ruled_out(row, table.metric) + aside(row) + _unpaired(row) for row in compared
    ]
    return of_rows + _control(table) + _failed(table)


def _failed(table: ComparedTable) -> list[str]:
    return [f"Failed: {failure}." for failure in table.failures]


def _sentence(row: ComparedRow, metric: Metric) -> str:
    d = row.difference
    assert d is not None
    each = row.gradients_per_step
    cost = "" if each is None else f"; {each:g} gradient{'s' if each != 1 else ''} a step"
    name, difference = f"{label(row.sharpness)} (ρ = {row.rho:g})", metric.difference(d.mean)
    if d.n < 2:
        return f"{name}: {difference} with one seed, so nothing can be said{cost}."
    return f"{name} {_verb(row)}: {difference}, 95 % interval {d.bounds(metric.signed)}{cost}."


def ruled_out(row: ComparedRow, metric: Metric) -> str:
    """What difference is ruled out, as a sentence to be added, where that says more than the verdict."""
    found = row.equivalence
    if found is None or len(row.gaps) < 2:
        return ""
    if found.excluded is None:
        size = f"{found.margin:g} {metric.unit}".rstrip()
        return f" Neither a gain nor a loss of {size} is ruled out."
    known = {"helps": "loss", "hurts": "gain"}.get(row.verdict or "")
    text = found.text(metric.unit)
    return "" if found.excluded == known else f" {text[0].upper()}{text[1:]}, with 95 % confidence."


def _edge(row: ComparedRow, table: Table) -> str:
    grid = [float(rho) for rho in table.tried.get(row.sharpness, ())]
    if len(grid) > 1 and row.rho in (min(grid), max(grid)):
        return f" Its ρ is the {'smallest' if row.rho == min(grid) else 'largest'} tried, so a better one may exist outside."
    return ""


def _unpaired(row: ComparedRow) -> str:
    return f" Without {row.unpaired} seed{'' if row.unpaired == 1 else 's'} that failed." if row.unpaired else ""


def _control(table: ComparedTable) -> list[str]:
    d, metric = table.over_random, table.metric
    if d is None or d.n < 2:
        return []
    meaning = {
        "helps": "so the direction matters, not just its length",
        "hurts": "so a random direction is the better one",
        "within noise": "so its direction cannot be distinguished from a random one here",
    }
    bounds = d.bounds(metric.signed)
    return [f"S²-SAM against a random direction: {metric.difference(d.mean)} ({bounds}), {meaning[metric.verdict(d)]}."]


def _verb(row: ComparedRow) -> str:
    return {"helps": "helps", "hurts": "hurts", "within noise": "is within noise"}[row.verdict or ""]


def run_sentences(result: RunResult) -> list[str]:
    """A finished run in sentences."""
    flops, seconds, ball = result.flops, result.seconds, result.ball
    return [
        _scores(result),
        f"{round(result.gradient_evaluations, 2):.10g} gradients in {result.steps} steps; {seconds.train:.1f} s of training,"
        f" {1000 * seconds.step_median:.1f} ms a step (median), {result.images_per_second:.0f} {result.unit} a second.",
        f"Training cost {flops.train_share:.1%} of dense training's FLOPs, inference"
        f" {flops.inference_share:.1%} of dense inference's,"
        " by count: masked weights are still multiplied.",
        f"The loss rises by {ball.increase:.4f} within a radius of {ball.radius:g}.",
        *topology_sentences(result),
        "One run says nothing about whether sharpness awareness helps; flatsparse compare does.",
    ]


def _scores(result: RunResult) -> str:
    if result.scores and result.train_scores:
        return (
            f"Test {scores_text(result.scores)}, read once at the end; training {scores_text(result.train_scores)};"
            f" {result.better} {result.metric} is better."
        )
    return (
        f"Test accuracy {result.test_accuracy:.2f} %, read once at the end;"
        f" training accuracy {result.train_accuracy:.2f} %."
    )


def topology_sentences(result: RunResult) -> list[str]:
    """A finished run's topology in sentences."""
    health = result.health
    moved = (
        "Masks never moved" if health.churn is None else f"An update changed {health.churn:.1%} of the active weights"
    )
    sentences = [
        f"{moved}; {result.exploration:.1%} of the prunable weights were active at some time,"
        f" {health.dead_filters} of {health.filters} filters have none at the end."
    ]
    if health.collapsed:
        sentences.append(f"Collapsed, with nearly all filters dead: {', '.join(health.collapsed)}.")
    return sentences
