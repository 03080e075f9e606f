"""skorch, which makes optimizers of classes and hands ``step`` a closure: two lines in ``initialize_optimizer``."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import assert_zero_outside, copied, same

skorch = pytest.importorskip("skorch")
model_selection = pytest.importorskip("sklearn.model_selection")

EPOCHS, BATCHES = 3, 4
STEPS = 2 * EPOCHS * BATCHES  # of a fit and a partial fit
OPTIONS = {"rigl": {"every": 5, "until": STEPS, "drop_fraction": 0.5}, "static": {}}
SOURCE = np.random.RandomState(0)
INPUTS = SOURCE.randn(8 * BATCHES, 6).astype("float32")
LABELS = (INPUTS[:, 0] > 0).astype("int64")
pytestmark = pytest.mark.filterwarnings("error")


class Net(nn.Sequential):
    """A small net with a batch norm."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


class Sparse(skorch.NeuralNetClassifier):
    """The two lines.

    Attributes:
        seen: of every forward since ``initialize``, whether it was in training mode and whether at w + e.
    """

    kind: Any = fs.S2SAM
    method = "rigl"
    watched = True

    def initialize_optimizer(self, *args: Any) -> Any:
        super().initialize_optimizer(*args)
        self.optimizer_ = self.kind(self.optimizer_, rho=0.05)
        options = {"sparsity": 0.8, "steps": STEPS, **OPTIONS[self.method]}
        self.sparse_ = fs.sparsify(self.module_, self.optimizer_, self.method, **options)
        self.seen = []
        if self.watched:
            self.module_[0].register_forward_pre_hook(self.note)
        return self

    def note(self, module: nn.Module, args: Any) -> None:
        self.seen.append((module.training, self.optimizer_.is_perturbed))


class Static(Sparse):
    """One whose masks stay."""

    method = "static"


class Unwatched(Sparse):
    """One whose net holds no hook of the test, so that it can be pickled."""

    watched = False


class WithSAM(Sparse):
    """One that takes two gradients a step."""

    kind = fs.SAM


kinds = pytest.mark.parametrize("kind", [Sparse, Static, WithSAM])


def net(kind: Any = Sparse, **options: Any) -> Any:
    torch.manual_seed(3)
    loop = {"max_epochs": EPOCHS, "batch_size": 8, "train_split": None, "verbose": 0}
    plain = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": 0.01}
    return kind(Net, **plain, **{**loop, **options})


def everything(trained: Any) -> Any:
    parts = (trained.module_, trained.optimizer_, trained.sparse_)
    return copy.deepcopy([part.state_dict() for part in parts])


@kinds
def test_a_net_that_is_loaded_goes_on_as_the_one_that_never_stopped(tmp_path, kind):
    whole = net(kind).fit(INPUTS, LABELS)
    files = {f"f_{part}": str(tmp_path / part) for part in ("params", "optimizer", "history")}
    whole.save_params(**files)
    masks = copied(whole.sparse_.masks)
    again = net(kind).initialize()
    again.load_params(**files)
    assert same(everything(again), everything(whole))
    for each in (whole, again):
        each.partial_fit(INPUTS, LABELS)
        assert each.sparse_.steps_taken == STEPS
    assert same(everything(again), everything(whole))
    assert same(masks, copied(again.sparse_.masks)) == (kind is Static)
    assert_zero_outside(again.module_, again.sparse_, again.optimizer_)
    pairs = [False, True] * STEPS if kind is WithSAM else [False] + [True] * (STEPS - 1)
    assert [at for _, at in whole.seen] == pairs
    assert [at for _, at in again.seen] == pairs[len(pairs) // 2 :]


def test_a_fit_is_the_plain_loop():
    trained = net().fit(INPUTS, LABELS)
    torch.manual_seed(3)
    model = Net()
    optimizer = fs.S2SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.05)
    fs.sparsify(model, optimizer, "rigl", sparsity=0.8, steps=STEPS, **OPTIONS["rigl"])
    inputs, labels = torch.tensor(INPUTS), torch.tensor(LABELS)
    for _ in range(EPOCHS):
        for indices in torch.arange(len(inputs)).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[indices]), labels[indices]).backward()
            optimizer.step()
    assert same(dict(trained.module_.state_dict()), dict(model.state_dict()))


@kinds
def test_predictions_and_validation_are_at_w(kind, tmp_path):
    trained = net(kind, train_split=skorch.dataset.ValidSplit(4)).fit(INPUTS, LABELS)
    checks = [at for training, at in trained.seen if not training]
    assert checks
    assert not any(checks)
    trained.save_params(f_params=str(tmp_path / "params"))
    plain = Net()
    plain.load_state_dict(torch.load(tmp_path / "params", weights_only=True))
    with torch.no_grad():
        expected = plain.eval()(torch.tensor(INPUTS)).softmax(1).numpy()
    assert np.array_equal(trained.predict_proba(INPUTS), expected)


def test_an_earlier_best_net_that_is_loaded_by_itself_predicts_as_it_did(tmp_path):
    """The masks have moved since ``Checkpoint`` saved it."""
    trained = net().fit(INPUTS, LABELS)
    file = str(tmp_path / "params")
    trained.save_params(f_params=file)
    best, before = copied(trained.module_.state_dict()), trained.predict_proba(INPUTS)
    trained.partial_fit(INPUTS, LABELS)
    assert any(best[name][~mask].count_nonzero() for name, mask in trained.sparse_.masks.items())
    trained.load_params(f_params=file)
    assert np.array_equal(trained.predict_proba(INPUTS), before)
    with pytest.warns(UserWarning, match="have moved there"):
        trained.partial_fit(INPUTS, LABELS)


def test_scikit_learn_clones_searches_and_sets_parameters():
    search = model_selection.GridSearchCV(net(), {"lr": [0.01, 0.1]}, cv=2, error_score="raise").fit(INPUTS, LABELS)
    best = search.best_estimator_
    assert best.sparse_.steps_taken == EPOCHS * BATCHES
    assert_zero_outside(best.module_, best.sparse_, best.optimizer_)
    best.set_params(lr=0.123)  # skorch writes it to the groups, which are the base's
    assert best.optimizer_.base.param_groups[0]["lr"] == 0.123
    before = best.sparse_
    best.fit(INPUTS, LABELS)  # anew, with a new net
    assert best.sparse_ is not before
    assert best.sparse_.steps_taken == EPOCHS * BATCHES
    assert_zero_outside(best.module_, best.sparse_, best.optimizer_)


def test_a_net_that_holds_its_training_is_not_pickled_and_one_that_does_not_is():
    trained = net(Unwatched).fit(INPUTS, LABELS)
    with pytest.raises(fs.InputError, match="cannot be copied or pickled"):
        pickle.dumps(trained)
    expected, trained.sparse_ = trained.predict_proba(INPUTS), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skorch's own, of torch's loading
        again = pickle.loads(pickle.dumps(trained))
    assert np.array_equal(again.predict_proba(INPUTS), expected)


def test_an_optimizer_from_a_function_is_made_sparse_between_initialize_and_partial_fit():
    def s2sam(groups: Any, lr: float) -> fs.S2SAM:
        return fs.S2SAM(torch.optim.AdamW(groups, lr=lr), rho=0.05)

    torch.manual_seed(3)
    options = {"lr": 0.01, "max_epochs": EPOCHS, "batch_size": 8, "train_split": None, "verbose": 0}
    plain = skorch.NeuralNetClassifier(Net, criterion=nn.CrossEntropyLoss, optimizer=s2sam, **options).initialize()
    fs.sparsify(plain.module_, plain.optimizer_, "rigl", sparsity=0.8, steps=STEPS, **OPTIONS["rigl"])
    plain.partial_fit(INPUTS, LABELS)
    assert same(dict(plain.module_.state_dict()), dict(net().fit(INPUTS, LABELS).module_.state_dict()))
