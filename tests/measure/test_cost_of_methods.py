"""What each method costs, against the plain formulas of its paper and the figures that were published.

f_S and f_D are a forward pass of the sparse and of the dense net; a step of dense training is 3 f_D (Evci et al. 2020,
app. H). Runs are on the first net below; the published figures are of ResNet-50 at 224x224 and of ResNet-32.
"""

import dataclasses
import statistics

import pytest
import torch

import flatsparse as fs
from flatsparse.experiments.run import loop as loop
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.measure.estimate import estimate
from flatsparse.measure.flops import cost
from tests.helpers import conv_net, sgd

STEPS, SPARSITY = 400, 0.8


def small(method, **options):
    model = conv_net()
    found = estimate(model, torch.zeros(1, 6), method, **{"sparsity": SPARSITY, "steps": STEPS, **options})
    dense = found.inference_dense
    return found, dense


def forwards(sparsities):
    """Forward passes of the small net with every layer at a sparsity, by the masks that a uniform start has."""
    masks = {}
    for sparsity in set(sparsities):
        model = conv_net()
        training = fs.sparsify(
            model, sgd(model.parameters()), "static", sparsity=sparsity, steps=1, distribution="uniform"
        )
        masks[sparsity] = cost(model, torch.zeros(1, 6)).forward(training.masks)
    return [masks[sparsity] for sparsity in sparsities]


def test_dense_is_three_forward_passes_and_sam_six():
    found, dense = small("dense", sparsity=0.0)
    assert found.step == 3 * dense
    assert small("dense", sparsity=0.0, passes=2)[0].step == 6 * dense


@pytest.mark.parametrize("method", ["static", "snip", "grasp", "set", "set-original", "set-itop", "dsr", "mest"])
def test_methods_that_stay_at_the_target_cost_three_sparse_forward_passes(method):
    options = {"every": 20} if method == "set-itop" else {}
    found, dense = small(method, **options)
    assert found.step == pytest.approx(3 * found.inference)
    assert found.inference < 0.4 * dense


@pytest.mark.parametrize("every", [10, 100])
def test_rigl_pays_a_dense_product_once_in_its_period(every):
    found, dense = small("rigl", every=every, until=1.0)
    sparse = found.inference
    period = (3 * sparse * (every - 1) + 2 * sparse + dense) / every  # the update takes the place of a step
    assert found.step == pytest.approx(period)
    itop, _ = small("rigl-itop", every=every)
    assert itop.step == pytest.approx(period - (dense - sparse) / STEPS)  # nothing grows at the last step


def test_snfs_pays_a_dense_product_at_every_step():
    found, dense = small("snfs")
    assert found.step == pytest.approx(2 * found.inference + dense)


def test_gradual_pruning_pays_for_what_is_live_at_each_step():
    found, _ = small("gmp", every=30, until=0.75)
    at, sparsity = [], 0.0
    for step in range(1, STEPS + 1):
        at.append(sparsity)  # pruned after the step
        if step % 30 == 0 and step <= 300:
            sparsity = SPARSITY * (1 - (1 - step / 300) ** 3)
    assert found.step == pytest.approx(3 * statistics.fmean(forwards(at)))


def test_acdc_pays_for_its_dense_phases():
    found, _ = small("acdc", distribution="uniform")
    prune, restore = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85), (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
    at, sparsity = [], 0.0
    for step in range(1, STEPS + 1):
        at.append(sparsity)
        sparsity = SPARSITY if step / STEPS in prune else 0.0 if step / STEPS in restore else sparsity
    assert found.step == pytest.approx(3 * statistics.fmean(forwards(at)))


def test_safe_is_dense_until_it_prunes():
    found, _ = small("safe", distribution="uniform")
    assert found.step == pytest.approx(3 * statistics.fmean(forwards([0.0] * 300 + [SPARSITY] * 100)))
    assert found.inference == pytest.approx(forwards([SPARSITY])[0])


def test_mest_with_a_soft_bound_pays_for_each_phase_at_its_density():
    found, _ = small("mest-ems")
    phases = [SPARSITY - 0.05] * 250 + [SPARSITY - 0.025] * 75 + [SPARSITY] * 75
    # The first phase ends at the last mutation before or at its end; the steps between train as before.
    exact = 3 * statistics.fmean(forwards(phases))
    assert found.step == pytest.approx(exact, rel=0.02)
    assert found.step > small("mest", sparsity=SPARSITY)[0].step


@pytest.mark.parametrize("method", ["lth", "lrr"])
def test_rounds_pay_for_each_at_its_density(method):
    model, sample = fs.models.digitnet(), torch.zeros(1, 1, 8, 8)
    found = estimate(model, sample, method, sparsity=0.488, steps=10)
    assert found.steps == 40
    alike = [
        estimate(model, sample, "static", sparsity=sparsity, steps=10, distribution="uniform").step
        for sparsity in (0.0, 0.2, 0.36, 0.488)
    ]
    assert found.step == pytest.approx(
        statistics.fmean(alike), rel=0.01
    )  # ranked by chance, layers are pruned nearly alike


@pytest.mark.parametrize("method", ["rigl", "set", "gmp", "safe", "mest", "mest-ems", "static", "rigl-itop"])
@pytest.mark.parametrize("sharpness", ["none", "sam", "s2sam"])
def test_what_is_told_before_a_run_is_what_the_run_counts(tmp_path, method, sharpness):
    run = RunConfig.of(
        train_size=64, validation_size=0, batch_size=16, epochs=6, method=method, sharpness=sharpness, sparsity=0.8
    )
    options = {"distribution": "uniform"} if method != "rigl" else {}
    counted = loop.train(change(run, **options), tmp_path / "run", test=False).flops
    period = {"every": 2} if method not in ("mest", "mest-ems", "static") else {}
    passes = 2 if sharpness == "sam" else 1
    model, sample = fs.models.digitnet(), torch.zeros(1, 1, 8, 8)
    told = estimate(model, sample, method, sparsity=0.8, steps=24, passes=passes, **options, **period)
    assert counted.train == pytest.approx(told.train(batch_size=16), rel=1e-6)
    assert counted.inference == pytest.approx(told.inference, rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Hungry:
    """A made-up method that grows by gradient at every second step."""

    def plan(self, sparsity, steps):
        rigl = fs.methods.RigL(every=2, until=1.0, weight_step=True).plan(sparsity, steps)
        return dataclasses.replace(rigl, momentum=0.5)


def test_the_count_reads_what_a_method_declares_not_its_name():
    found, dense = small(Hungry())
    assert found.step == pytest.approx(2 * found.inference + dense)  # the average wants dense gradients at every step


def test_an_estimate_leaves_the_model_alone():
    model = conv_net()
    before = [p.clone() for p in model.parameters()]
    estimate(model, torch.zeros(1, 6), "rigl", sparsity=SPARSITY, steps=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# -- published figures ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return fs.models.resnet50(), torch.empty(1, 3, 224, 224)


# Uniform sparsity leaves the first convolution dense, ERK prunes every layer (Evci et al. 2020, sec. 3 and app. B).
UNIFORM, ERK = {"distribution": "uniform", "layers": "rigl"}, {"distribution": "erk"}


@pytest.mark.parametrize(
    ("choice", "sparsity", "ratio", "dense_layers"),
    [
        (UNIFORM, 0.8, 0.223, 0),
        (UNIFORM, 0.9, 0.126, 0),
        (UNIFORM, 0.95, 0.077, 0),
        (ERK, 0.8, 0.414, 8),
        (ERK, 0.9, 0.242, 1),
        (ERK, 0.95, 0.122, 0),
    ],
)
def test_inference_of_resnet50(resnet50, choice, sparsity, ratio, dense_layers):
    found = estimate(*resnet50, "static", sparsity=sparsity, steps=1, **choice)
    assert found.inference_ratio == pytest.approx(ratio, abs=5e-4)
    assert sum(layer.chosen and layer.sparsity == 0 for layer in found.layers) == dense_layers


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.9, 0.175), (0.95, 0.088), (0.98, 0.035)])
def test_inference_of_resnet32(sparsity, ratio):
    with torch.device("meta"):
        model, sample = fs.models.resnet32(), torch.empty(1, 3, 32, 32)
    found = estimate(model, sample, "rigl", sparsity=sparsity, steps=1000)
    assert found.inference_ratio == pytest.approx(ratio, abs=5e-4)


def test_dense_training_of_resnet50_on_imagenet_for_100_epochs(resnet50):
    images = 1_281_167
    found = estimate(*resnet50, "dense", sparsity=0.0, steps=100, elementwise=True)
    assert found.train(batch_size=images) == pytest.approx(3.15e18, rel=2e-3)


@pytest.mark.parametrize(
    ("choice", "sparsity", "published"),
    [(UNIFORM, 0.8, 1.14), (UNIFORM, 0.9, 0.66), (ERK, 0.8, 2.09), (ERK, 0.9, 1.23)],
)
def test_rigl_trained_five_times_as_long_costs_what_its_authors_print(resnet50, choice, sparsity, published):
    # Their formula has updates to the end of training, and their net's batch norms and ReLUs are in the count.
    found = estimate(*resnet50, "rigl", sparsity=sparsity, steps=5 * 32_000, until=1.0, elementwise=True, **choice)
    assert round(5 * found.step_ratio, 2) == published
