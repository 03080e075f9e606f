import pytest
import torch
from torch import nn

from flatsparse.measure.directions import directional_increases, mean_increases
from flatsparse.measure.sharpness import worst_case_sharpness


class Bowl(nn.Module):
    """A quadratic ``½ Σ aᵢ wᵢ²`` whose largest value in a ball is known."""

    def __init__(self, curvature, at):
        super().__init__()
        self.curvature = torch.tensor(curvature)
        self.w = nn.Parameter(torch.tensor(at))

    def value(self):
        return float((self.curvature * self.w.square()).sum() / 2)

    def gradient(self):
        self.zero_grad()
        loss = (self.curvature * self.w.square()).sum() / 2
        loss.backward()
        return float(loss.detach())


def test_the_known_maximum_of_a_round_bowl_is_found():
    bowl = Bowl([2.0, 2.0], [0.3, 0.4])
    found = worst_case_sharpness(bowl, {}, bowl.gradient, radius=0.1)
    assert found == pytest.approx(0.6**2 - 0.5**2, rel=1e-4)


def test_what_is_found_is_never_more_than_the_maximum():
    bowl = Bowl([10.0, 1.0, 0.1], [0.01, 0.5, 0.5])
    start = bowl.gradient()
    sphere = nn.functional.normalize(torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 0.2
    most = float((bowl.curvature * (bowl.w.detach() + sphere).square()).sum(1).max()) / 2 - start
    found = worst_case_sharpness(bowl, {}, bowl.gradient, radius=0.2)
    assert 0.5 * most < found <= most * (1 + 1e-4)


def test_the_weights_come_back_bit_for_bit_and_masked_ones_never_move():
    bowl = Bowl([2.0, 2.0, 2.0], [0.3, 0.0, 0.4])
    mask = torch.tensor([True, False, True])
    seen = []

    def gradient():
        seen.append(bowl.w.detach().clone())
        loss = bowl.gradient()
        bowl.w.grad[1] = 5.0  # a dense gradient, as a masked layer has
        return loss

    before = bowl.w.detach().clone()
    worst_case_sharpness(bowl, {bowl.w: lambda t: t.mul_(mask)}, gradient, radius=0.1)
    assert torch.equal(bowl.w, before)
    assert all(w[1] == 0 for w in seen)
    assert all((w - before).norm() <= 0.1 * (1 + 1e-5) for w in seen)


def test_a_flat_loss_rises_by_nothing():
    bowl = Bowl([0.0], [1.0])
    assert worst_case_sharpness(bowl, {}, bowl.gradient, radius=0.1) == 0.0


def test_the_worst_case_is_that_of_each_batch_by_itself():
    """Two batches that pull against each other: their mean loss is flat, each batch's is not."""
    net = nn.Linear(1, 1, bias=False)
    batches = [(torch.ones(1, 1), torch.tensor([[slope]])) for slope in (3.0, -3.0)]
    source = torch.Generator().manual_seed(0)
    means = mean_increases(net, batches, lambda model, batch: (model(batch[0]) * batch[1]).mean(), {}, 0.1, source)
    assert means["gain"]["worst"] == pytest.approx(0.3, rel=1e-4)
    assert means["gain"]["sam"] == pytest.approx(0.3, rel=1e-4)
    assert means["gain"]["previous"] == pytest.approx(-0.3, rel=1e-4)
    assert means["cosine"] == pytest.approx(-1)


def test_directional_increases_are_those_of_steps_of_the_same_length():
    bowl = Bowl([2.0, 8.0], [3.0, 4.0])
    before = bowl.w.detach().clone()
    along = {"up": [torch.tensor([7.0, 0.0])], "down": [torch.tensor([0.0, -0.1])], "nowhere": [torch.zeros(2)]}
    found = directional_increases(bowl, along, bowl.value, radius=0.5)
    assert found["up"] == pytest.approx(3.5**2 - 3**2, rel=1e-5)
    assert found["down"] == pytest.approx(4 * 3.5**2 - 4 * 4**2, rel=1e-5)
    assert found["nowhere"] == 0
    assert torch.equal(bowl.w, before)
    assert bowl.w.grad is None


def test_weights_are_restored_when_the_loss_fails_on_the_way():
    bowl = Bowl([2.0, 8.0], [3.0, 4.0])
    before = bowl.w.detach().clone()
    calls = []

    def gradient():
        calls.append(bowl.w.detach().clone())
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return bowl.gradient()

    with pytest.raises(RuntimeError):
        worst_case_sharpness(bowl, {}, gradient, radius=0.1)
    assert not torch.equal(calls[-1], before)
    assert torch.equal(bowl.w, before)
