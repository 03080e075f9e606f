"""The sentences of a comparison and of a run."""

from __future__ import annotations

from flatsparse.experiments.comparison_table import Row, Table
from flatsparse.experiments.labels import label, scores_text
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.stats import Interval

UNLEARNED = (
    "No net does better than always naming the commonest class, so nothing was learned and nothing can be compared: give more"
    " --epochs, another --lr or less --sparsity."
)


def setting(table: Table) -> str:
    """The setting of a table in a few words."""
    return f"{table.label_noise:.0%} wrong labels" if table.label_noise else "clean labels"


def comparison_sentences(table: Table) -> list[str]:
    """A comparison's table in sentences."""
    failed = [f"Failed: {failure}." for failure in table.failures]
    if not table.learned:
        return [UNLEARNED, *failed]
    of_rows = [_sentence(row) + _edge(row, table) + _unpaired(row) for row in table.rows if row.difference is not None]
    return of_rows + _control(table) + failed


def _sentence(row: Row) -> str:
    d = row.difference
    assert d is not None
    cost = f"{row.gradients_per_step:g} gradient{'s' if row.gradients_per_step != 1 else ''} a step"
    if d.n < 2:
        return f"{label(row.sharpness)} (ρ = {row.rho:g}): {d.mean:+.2f} points with one seed, so nothing can be said; {cost}."
    return f"{label(row.sharpness)} (ρ = {row.rho:g}) {_verb(d)}: {d.mean:+.2f} points, 95 % interval {d.bounds()}; {cost}."


def _edge(row: Row, table: Table) -> str:
    grid = [float(rho) for rho in table.tried.get(row.sharpness, ())]
    if len(grid) > 1 and row.rho in (min(grid), max(grid)):
        return f" Its ρ is the {'smallest' if row.rho == min(grid) else 'largest'} tried, so a better one may exist outside."
    return ""


def _unpaired(row: Row) -> str:
    return f" Without {row.unpaired} seed{'' if row.unpaired == 1 else 's'} that failed." if row.unpaired else ""


def _control(table: Table) -> list[str]:
    d = table.over_random
    if d is None or d.n < 2:
        return []
    meaning = {
        "helps": "so the direction matters, not just its length",
        "hurts": "so a random direction is the better one",
        "within noise": "so its direction cannot be distinguished from a random one here",
    }
    return [f"S²-SAM against a random direction: {d.mean:+.2f} points ({d.bounds()}), {meaning[d.verdict]}."]


def _verb(d: Interval) -> str:
    return {"helps": "helps", "hurts": "hurts", "within noise": "is within noise"}[d.verdict]


def run_sentences(result: RunResult) -> list[str]:
    """A finished run in sentences."""
    flops, seconds, ball = result.flops, result.seconds, result.ball
    return [
        _scores(result),
        f"{result.gradient_evaluations} gradients in {result.steps} steps; {seconds.train:.1f} s of training,"
        f" {1000 * seconds.step_median:.1f} ms a step (median), {result.images_per_second:.0f} {result.unit} a second.",
        f"Training cost {flops.train / flops.train_dense:.1%} of dense training's FLOPs, inference"
        f" {flops.inference / flops.inference_dense:.1%} of dense inference's,"
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
