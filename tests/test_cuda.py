"""What holds on a CPU holds on a GPU; for machines that have one."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsparse as fs
from flatsparse.measure.flops import cost
from flatsparse.models.transformer import DecoderCache
from tests.helpers import Joined, batch, close, norm, same, shift, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "capturable adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, capturable=True),
}


def net(device="cuda", dtype=torch.float32):
    torch.manual_seed(0)
    # Smooth, and no batch norm: of a unit without inputs it would make the sign of a rounding error.
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).to(device, dtype)


def loss(model, step):
    inputs, targets = batch(step, dtype=next(model.parameters()).dtype)
    device = next(model.parameters()).device
    return F.cross_entropy(model(inputs.to(device)), targets.to(device))


def take(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        if isinstance(optimizer, fs.SAM):

            def closure(step=step):
                optimizer.zero_grad()
                value = loss(model, step)
                value.backward()
                return value

            optimizer.step(closure)
        else:
            loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()


def sharpness(name, base, **options):
    return {
        "none": lambda b: b,
        "s2sam": lambda b: fs.S2SAM(b, rho=0.5, **options),
        "sam": lambda b: fs.SAM(b, rho=0.5),
    }[name](base)


def sparse(device="cuda", base="sgd", aware="s2sam", method="rigl", dtype=torch.float32, **sharp):
    model = net(device, dtype)
    optimizer = sharpness(aware, BASES[base](model.parameters()), **sharp)
    options = {"every": 4} if method == "mest" else {"every": 4, "until": 30}
    training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=40, **options)
    return model, optimizer, training


@pytest.mark.parametrize("aware", ["none", "s2sam", "sam"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["rigl", "set", "mest", "snfs", "dsr"])
def test_a_gpu_trains_as_a_cpu_does(method, base, aware):
    here, there = (sparse(device, base, aware, method, torch.float64) for device in ("cpu", "cuda"))
    take(*here[:2], 30)
    take(*there[:2], 30)
    for name, mask in here[2].masks.items():
        assert torch.equal(mask, there[2].masks[name].cpu())
    for a, b in zip(weights(here[0]), weights(there[0]), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"in_place": True}, {"adaptive": True}], ids=str)
def test_perturbations_are_rho_long_and_leave_the_weights_bit_for_bit(base, options):
    model, optimizer, _ = sparse(base=base, **options)
    take(model, optimizer, 6)
    true = weights(model)
    loss(model, 6)
    if "adaptive" not in options:
        assert norm(shift(model, true)) == close(0.5)
    with torch.no_grad():
        model.eval()(batch()[0].cuda())
    optimizer.eval()
    assert same(weights(model), true)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"in_place": True}, {"adaptive": True}], ids=str)
def test_no_step_between_updates_waits_for_the_gpu(base, options):
    model, optimizer, _ = sparse(base=base, **options)
    take(model, optimizer, 9)  # updates at 4 and 8; the eighth step is inspected too
    inputs, targets = (t.cuda() for t in batch())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("base", BASES)
def test_a_resumed_run_is_the_run_that_never_stopped(base):
    whole = sparse(base=base)
    take(*whole[:2], 10)
    files = copy.deepcopy([part.state_dict() for part in whole])
    take(*whole[:2], 10, start=10)
    again = sparse(base=base)
    take(*again[:2], 3)
    for part, file in zip(again, files, strict=True):
        part.load_state_dict(file)
    take(*again[:2], 10, start=10)
    assert same(weights(whole[0]), weights(again[0]))
    assert same(dict(whole[2].masks), dict(again[2].masks))


@pytest.mark.parametrize("base", ["adamw", "fused adamw", "capturable adamw"])
def test_a_grown_weight_steps_as_under_a_new_optimizer(base):
    model = nn.Linear(10, 12, bias=False).cuda()
    optimizer = BASES[base](model.parameters())
    training = fs.sparsify(model, optimizer, "set", sparsity=0.5, steps=79, every=40, until=1.0)
    before = training.masks["weight"].clone()
    source = torch.Generator("cuda").manual_seed(0)
    gradient = lambda: torch.randn(12, 10, device="cuda", generator=source)  # noqa: E731
    for _ in range(40):
        model.weight.grad = gradient()
        optimizer.step()
    grown = training.masks["weight"] & ~before
    alone = nn.Parameter(torch.zeros(int(grown.sum()), device="cuda"))
    new = BASES[base]([alone])
    for _ in range(10):
        model.weight.grad = gradient()
        alone.grad = model.weight.grad[grown]
        new.step()
        optimizer.step()
        torch.testing.assert_close(model.weight.detach()[grown], alone.detach(), rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e20, 1e25])
def test_a_perturbation_has_its_length_whatever_the_gradients_are(size):
    model = nn.Linear(8, 4).cuda()
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.05)
    for p in model.parameters():
        p.grad = torch.full_like(p, size)
    optimizer.step()
    true = weights(model)
    with optimizer.perturbed():
        assert norm(shift(model, true)) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_spoils_the_perturbation_of_its_own_entries_alone(value):
    w = nn.Parameter(torch.arange(4.0, device="cuda"))
    optimizer = fs.S2SAM(torch.optim.SGD([w], lr=0.0), rho=0.5)
    w.grad = torch.tensor([1.0, value, -2.0, 0.0], device="cuda")
    optimizer.step()
    w.data.copy_(torch.arange(4.0))  # without a trace
    with optimizer.perturbed():
        assert not w[1].isfinite()
        assert w[[0, 2, 3]].tolist() == [0.0, 2.0, 3.0]


def test_a_step_that_a_gradient_scaler_skips_moves_nothing():
    model, optimizer, training = sparse()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    inputs, targets = (t.cuda() for t in batch())
    for step in range(12):
        with torch.autocast("cuda", torch.float16):
            value = F.cross_entropy(model(inputs), targets) * (float("inf") if step == 6 else 1.0)
        before, taken = weights(model), training.steps_taken
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step == 6:
            assert training.steps_taken == taken
            optimizer.eval()
        else:
            assert training.steps_taken == taken + 1
        assert all(p.isfinite().all() for p in model.parameters()), before
    for name, mask in training.masks.items():
        assert not dict(model.named_parameters())[name][~mask].any()


def test_a_captured_forward_is_told_of_or_perturbed_in_place():
    def moved(in_place):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).cuda()
        plain = copy.deepcopy(model)
        optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, in_place=in_place)
        inputs, targets = (t.cuda() for t in batch())
        torch.cuda.make_graphed_callables(model, (inputs,))
        optimizer.follow(model)
        for _ in range(3):
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        reference = fs.S2SAM(torch.optim.SGD(plain.parameters(), lr=0.1), rho=0.5).follow(plain)
        for _ in range(3):
            F.cross_entropy(plain(inputs), targets).backward()
            reference.step()
            reference.zero_grad()
        return [(a - b).abs().max().item() for a, b in zip(weights(model), weights(plain), strict=True)]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="S2SAM")
        assert max(moved(in_place=True)) < 1e-5
    with pytest.warns(UserWarning, match="in_place=True"):
        moved(in_place=False)


def test_a_model_that_is_moved_after_it_was_made_sparse_stays_sparse():
    model, optimizer, training = sparse("cpu")
    model.cuda()
    take(model, optimizer, 12)
    for name, mask in training.masks.items():
        assert not dict(model.named_parameters())[name][~mask.cuda()].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_tiny_32", "gpt2_tiny", "transformer_tiny"])
def test_models_cost_and_compute_on_a_gpu_what_they_do_on_a_cpu(name, dtype):
    torch.manual_seed(0)
    make, inputs = {
        "efficientnet_b0": (fs.models.efficientnet_b0, torch.randn(4, 3, 64, 64, dtype=dtype)),
        "vit_tiny_32": (fs.models.vit_tiny_32, torch.randn(4, 3, 32, 32, dtype=dtype)),
        "gpt2_tiny": (lambda: fs.models.gpt2_tiny(50, 16), torch.randint(50, (4, 16))),
        "transformer_tiny": (lambda: Joined(fs.models.transformer_tiny(50), 9), torch.randint(1, 50, (4, 16))),
    }[name]
    if name == "transformer_tiny":
        inputs[1, 5:9] = 0  # a shorter source
    model = make().eval().to(dtype)
    wanted, counted = model(inputs), cost(model, inputs)
    model, inputs = model.cuda(), inputs.cuda()
    assert cost(model, inputs) == counted
    found = model(inputs)
    assert (found.cpu() - wanted).abs().max() < (0.1 if dtype == torch.bfloat16 else 0.01) * wanted.abs().max()
    model.train()(inputs).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_a_cache_decodes_on_a_gpu_what_decoding_at_once_does():
    torch.manual_seed(0)
    model = fs.models.transformer_tiny(50).eval().cuda()
    source, target = torch.randint(1, 50, (3, 7), device="cuda"), torch.randint(1, 50, (3, 6), device="cuda")
    source[0, 3:] = 0
    memory, cache = model.encode(source), DecoderCache(model)
    parts = [model.decode(target[:, start:end], memory, cache) for start, end in [(0, 1), (1, 4), (4, 6)]]
    assert torch.allclose(torch.cat(parts, 1), model(source, target), atol=1e-3)
