"""Two processes train as one: with DDP and with FSDP2, the same weights, the same masks, at the same perturbed weights."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import flatsparse as fs
from flatsparse.common.distributed import full_tensor
from flatsparse.common.errors import InputError

from .processes import together

STEPS, EVERY, RHO = 8, 2, 0.1
CLOSE = 1e-6  # gradients of two halves are added in another order than those of one batch
KINDS = {"none": None, "sam": fs.SAM, "s2sam": fs.S2SAM}


def net():
    """Its layers do not divide evenly between two processes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 15), nn.Tanh(), nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, 5))


def batches():
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(24, 12, generator=source), torch.randint(0, 5, (24,), generator=source)) for _ in range(STEPS)]


def parallel(model, wrapper):
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if wrapper.startswith("fsdp"):
        shard(model, layers=model if wrapper == "fsdp" else ())
    return model


def shard(model, layers=()):
    """Each layer by itself and the rest, or the whole at once: then all is gathered before the model's first layer runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def optimizer_for(model, kind, base="sgd", **options):
    plain = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if base == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=0.01)
    )
    return plain if KINDS[kind] is None else KINDS[kind](plain, rho=RHO, **options)


def sparse(model, optimizer, method="rigl", **options):
    options = {"sparsity": None if method == "chex" else 0.5, "steps": STEPS, **options}
    options |= {} if method == "static" else {"every": EVERY}
    return fs.sparsify(model, optimizer, method, **options)


def train(model, optimizer, rank=0, world=1, steps=range(STEPS)):
    for step in steps:
        inputs, targets = (part[rank::world] for part in batches()[step])

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        if isinstance(optimizer, fs.SAM):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def plain_tensors(named):
    """By plain names, whole, and owned by nobody."""
    return {name.removeprefix("module."): full_tensor(t).detach().clone() for name, t in named.items()}


def outcome(rank, wrapper, kind, method, base, world, **options):
    model = parallel(net(), wrapper)
    optimizer = optimizer_for(model, kind, base)
    training = sparse(model, optimizer, method, **options)
    train(model, optimizer, rank, world)
    return plain_tensors(model.state_dict()), plain_tensors(training.masks)


def distance(ours, theirs):
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def equal(ours, theirs):
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp at once"])
@pytest.mark.parametrize(
    ("kind", "method", "base"),
    [("s2sam", "rigl", "sgd"), ("s2sam", "gmp", "adamw"), ("sam", "set", "sgd"), ("none", "rigl", "adamw")],
)
def test_two_processes_end_where_one_does(wrapper, kind, method, base):
    alone, masks = outcome(0, "none", kind, method, base, 1)
    answers = together(outcome, wrapper, kind, method, base, 2)
    assert equal(answers[0][0], answers[1][0])
    for theirs, their_masks in answers:
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE
        assert all((theirs[name][~mask] == 0).all() for name, mask in masks.items())
    if kind != "none":  # and that is not where the base optimizer alone would end
        assert distance(outcome(0, "none", "none", method, base, 1)[0], alone) > 100 * CLOSE


def outcome_of_pull(rank, wrapper, world):
    return outcome(rank, wrapper, "s2sam", "safe", "sgd", world, penalty=1.0)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_weights_are_pulled_to_one_sparse_copy_in_two_processes(wrapper):
    alone, masks = outcome_of_pull(0, "none", 1)
    for theirs, their_masks in together(outcome_of_pull, wrapper, 2):
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE
    unpulled, _ = outcome(0, "none", "s2sam", "safe", "sgd", 1, penalty=0.0)
    assert distance(unpulled, alone) > 100 * CLOSE


def outcome_of_frozen(rank, wrapper, method, base, world):
    return outcome(rank, wrapper, "s2sam", method, base, world, outside="frozen")


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize(("method", "base"), [("rigl", "sgd"), ("static", "adamw")])
def test_what_is_frozen_outside_stays_in_two_processes(wrapper, method, base):
    alone, masks = outcome_of_frozen(0, "none", method, base, 1)
    before = net().state_dict()
    for theirs, their_masks in together(outcome_of_frozen, wrapper, method, base, 2):
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE
        if method == "static":
            assert all(torch.equal(theirs[name][~mask], before[name][~mask]) for name, mask in masks.items())


def outcome_of_blocks(rank, wrapper, method, world):
    return outcome(rank, wrapper, "s2sam", method, "sgd", world, pattern=fs.Block(5, 1), exclude=["2"])


@pytest.mark.parametrize(("wrapper", "method"), [("ddp", "rigl"), ("fsdp", "rigl"), ("fsdp", "gmp")])
def test_blocks_are_whole_and_alike_in_two_processes(wrapper, method):
    _, masks = outcome_of_blocks(0, "none", method, 1)
    for _, theirs in together(outcome_of_blocks, wrapper, method, 2):
        assert equal(theirs, masks)
        for mask in theirs.values():
            blocks = mask.unflatten(0, (-1, 5))
            assert torch.equal(blocks.all(1), blocks.any(1))


@pytest.mark.parametrize("method", ["chex", "chase"])
def test_channels_go_alike_in_two_processes(method):
    alone, masks = outcome(0, "none", "s2sam", method, "sgd", 1)
    assert not all(mask.all() for mask in masks.values())
    for theirs, their_masks in together(outcome, "ddp", "s2sam", method, "sgd", 2):
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE


def sharded_channels(rank):
    model = parallel(net(), "fsdp")
    with pytest.raises(fs.InputError, match="channels cannot be scored where weights are sharded"):
        sparse(model, optimizer_for(model, "s2sam"), "chex")


def test_sharded_weights_are_refused_by_methods_that_remove_channels():
    together(sharded_channels)


def test_three_processes_end_where_one_does():
    alone, masks = outcome(0, "none", "s2sam", "rigl", "sgd", 1)
    for theirs, their_masks in together(outcome, "fsdp", "s2sam", "rigl", "sgd", 3, world=3):
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE


def accumulated(rank, kind):
    model = parallel(net(), "ddp")
    optimizer = optimizer_for(model, kind)
    training = sparse(model, optimizer)
    for inputs, targets in batches():
        for micro, quiet in ((slice(0, 12), model.no_sync), (slice(12, 24), contextlib.nullcontext)):
            with quiet():
                loss = F.cross_entropy(model(inputs[micro][rank::2]), targets[micro][rank::2]) / 2
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return plain_tensors(model.state_dict()), plain_tensors(training.masks)


def test_gradients_gathered_without_sync_are_those_of_the_whole_batch():
    alone, masks = outcome(0, "none", "s2sam", "rigl", "sgd", 1)
    for theirs, their_masks in together(accumulated, "s2sam"):
        assert equal(their_masks, masks)
        assert distance(alone, theirs) < CLOSE


# -- sharded checkpoints ----------------------------------------------------------------------------------------------


def saved_and_loaded(rank, folder):
    from torch.distributed import checkpoint

    def make():
        model = parallel(net(), "fsdp")
        optimizer = optimizer_for(model, "s2sam")
        return model, optimizer, sparse(model, optimizer)

    def state(model, optimizer, training):
        of_model, of_optimizer = get_state_dict(model, optimizer)
        return {"model": of_model, "optimizer": of_optimizer, "training": training.state_dict()}

    model, optimizer, training = make()
    train(model, optimizer, rank, 2, range(5))
    checkpoint.save(state(model, optimizer, training), checkpoint_id=folder)
    train(model, optimizer, rank, 2, range(5, STEPS))
    whole = plain_tensors(model.state_dict()), plain_tensors(training.masks)

    model, optimizer, training = make()
    loaded = state(model, optimizer, training)
    checkpoint.load(loaded, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    training.load_state_dict(loaded["training"])
    train(model, optimizer, rank, 2, range(5, STEPS))
    return whole, (plain_tensors(model.state_dict()), plain_tensors(training.masks))


def test_a_sharded_checkpoint_goes_on_as_if_it_had_not_been_left(tmp_path):
    for whole, resumed in together(saved_and_loaded, str(tmp_path / "checkpoint")):
        assert equal(whole[0], resumed[0])
        assert equal(whole[1], resumed[1])


# -- what goes wrong silently elsewhere -------------------------------------------------------------------------------


def of_different_seeds(rank):
    model = parallel(net(), "ddp")
    optimizer = optimizer_for(model, "s2sam")
    sparse(model, optimizer, seed=rank)
    try:
        train(model, optimizer, rank, 2)
    except InputError as problem:
        return str(problem)
    return "nothing"


def test_masks_that_differ_between_processes_stop_the_first_step():
    for said in together(of_different_seeds):
        assert "differ between processes at step 1 (ranks [1] from rank 0)" in said


def of_different_seeds_without_the_wrapper(rank, order):
    """Made sparse by the model within DistributedDataParallel, or before it is wrapped."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(12, 15), nn.Tanh(), nn.Linear(15, 5))
    wrapped = parallel(model, "ddp") if order == "wrapped before" else None
    optimizer = optimizer_for(model, "s2sam")
    training = sparse(model, optimizer, seed=rank)
    try:
        train(wrapped or parallel(model, "ddp"), optimizer, rank, 2)
    except InputError as problem:
        return str(problem)
    return plain_tensors(training.masks)


@pytest.mark.parametrize("order", ["wrapped before", "wrapped after"])
def test_masks_of_a_model_within_the_wrapper_that_differ_stop_the_first_step(order):
    for said in together(of_different_seeds_without_the_wrapper, order):
        assert "masks differ between processes at step 1 (ranks [1] from rank 0) in '0.weight' and 1 more" in said


def of_one_layer(rank, kind):
    model = parallel(net(), "ddp")
    optimizer = optimizer_for(model, "none")
    training = sparse(model, optimizer)
    train(model, optimizer, rank, 2, range(3))
    state = training.state_dict()
    if rank == 1 and kind == "masks":
        mask = state["masks"]["2.weight"]
        live, dead = mask.nonzero()[0], (~mask).nonzero()[0]
        mask[tuple(live)], mask[tuple(dead)] = False, True
    elif rank == 1:
        with torch.no_grad():
            model.module[4].weight.mul_(1.0001)
    training.load_state_dict(state)
    try:
        train(model, optimizer, rank, 2, range(3, 4))
    except InputError as problem:
        return str(problem)
    return "nothing"


@pytest.mark.parametrize(("kind", "layer"), [("masks", "2.weight"), ("weights", "4.weight")])
def test_what_differs_after_a_load_is_named(kind, layer):
    for said in together(of_one_layer, kind):
        assert f"{kind} differ between processes at step 4 (ranks [1] from rank 0) in '{layer}'" in said


def drifting(rank):
    model = parallel(net(), "ddp")
    optimizer = optimizer_for(model, "none")
    sparse(model, optimizer)
    train(model, optimizer, rank, 2, range(2))
    if rank == 1:
        with torch.no_grad():
            model.module[0].weight.mul_(1.0001)
    try:
        train(model, optimizer, rank, 2, range(2, 4))
    except InputError as problem:
        return str(problem)
    return "nothing"


def test_weights_that_drift_apart_stop_the_next_update():
    for said in together(drifting):
        assert "at step 4" in said


def followed_too_early(rank):
    model = net()
    optimizer = optimizer_for(model, "s2sam").follow(model)
    shard(model)
    said = []
    for attempt in (lambda: model(batches()[0][0]), lambda: optimizer_for(net(), "s2sam").follow(model)):
        try:
            attempt()
        except InputError as problem:
            said.append(str(problem))
    return said, optimizer.is_perturbed


def test_following_before_sharding_is_refused():
    for (early, foreign), _ in together(followed_too_early):
        assert "after fully_shard" in early
        assert "none of the parameters" in foreign


def inside(rank, wrapper):
    model = parallel(net(), wrapper)
    optimizer = optimizer_for(model, "s2sam")
    sparse(model, optimizer)
    train(model, optimizer, rank, 2, range(3))
    true = plain_tensors(model.state_dict())
    perturbed = [plain_tensors({"u": entry["perturbed"]}) for entry in optimizer.state_dict()["state"].values()]
    loss = F.cross_entropy(model(batches()[3][0]), batches()[3][1])
    still = [plain_tensors({"u": entry["perturbed"]}) for entry in optimizer.state_dict()["state"].values()]
    shown = plain_tensors(dict(model.named_parameters()))
    saved = plain_tensors(model.state_dict())
    loss.backward()
    optimizer.eval()
    return {
        "was open": distance(shown, true) > 0,
        "radius": sum((shown[name] - true[name]).square().sum() for name in true).sqrt().item(),
        "state_dict shows w": equal(saved, true),
        "optimizer state is the same": all(torch.equal(a["u"], b["u"]) for a, b in zip(perturbed, still, strict=True)),
        "eval gives w back": equal(plain_tensors(dict(model.named_parameters())), true),
    }


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp at once"])
def test_a_perturbation_over_processes_is_what_it_is_in_one(wrapper):
    for answer in together(inside, wrapper):
        assert answer.pop("radius") == pytest.approx(RHO, rel=1e-4)
        assert all(answer.values()), answer


def spoiled(rank, wrapper):
    """A NaN in the last row of a gradient, which one process alone may hold, at an update of the masks."""
    model = parallel(net(), wrapper)
    optimizer = optimizer_for(model, "s2sam")
    training = sparse(model, optimizer)
    for step in range(EVERY):
        inputs, targets = batches()[step]
        F.cross_entropy(model(inputs[rank::2]), targets[rank::2]).backward()
        if step == EVERY - 1:
            before = plain_tensors(training.masks), plain_tensors(model.state_dict())
            grad = getattr(model, "module", model)[0].weight.grad
            local = grad._local_tensor if hasattr(grad, "_local_tensor") else grad
            if local is grad or rank == 1:
                local[-1] = float("nan")
        optimizer.step()
        optimizer.zero_grad()
    after = plain_tensors(training.masks), plain_tensors(model.state_dict())
    name = next(iter(before[0]))
    with optimizer.perturbed():
        finite = all(bool(full_tensor(p.detach()).isfinite().all()) for p in model.parameters())
    return {
        "its mask stays": torch.equal(before[0][name], after[0][name]),
        "others move": not equal(before[0], after[0]),
        "weights stay": torch.equal(before[1][name], after[1][name]) if name in after[1] else True,
        "nothing else is spoiled": finite,
    }


@pytest.mark.filterwarnings("ignore:a gradient is not finite")
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_gradient_that_is_not_finite_in_one_process_chooses_no_weights_in_any(wrapper):
    for answer in together(spoiled, wrapper):
        assert all(answer.values()), answer


def looked_at_between_steps(rank, wrapper, look):
    model = parallel(net(), wrapper)
    optimizer = optimizer_for(model, "s2sam")
    sparse(model, optimizer)
    seen = []
    for step in range(STEPS):
        inputs, targets = (part[rank::2] for part in batches()[step])
        if look:
            model.eval()
            with torch.no_grad():
                model(inputs)
            model.train()
        loss = F.cross_entropy(model(inputs), targets)
        if look:
            with torch.no_grad():  # while perturbed, where w is asked for
                seen.append((F.cross_entropy(model(inputs), targets) - loss).abs().item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return plain_tensors(model.state_dict()), seen


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp at once"])
def test_looks_between_and_inside_steps_change_nothing_and_see_w(wrapper):
    quiet = together(looked_at_between_steps, wrapper, False)
    for (ours, _), (theirs, seen) in zip(quiet, together(looked_at_between_steps, wrapper, True), strict=True):
        assert equal(ours, theirs)
        assert seen[0] == 0  # the first step is unperturbed
        assert min(seen[1:]) > 1e-4  # the others' loss at u is not that at w


def rounds_with_looks(rank):
    model = parallel(net(), "fsdp at once")
    optimizer = optimizer_for(model, "s2sam")
    training = fs.sparsify(model, optimizer, "lth", sparsity=0.5, steps=2, drop_fraction=0.3)
    for _ in fs.rounds(training):
        train(model, optimizer, rank, 2, range(2))
        with torch.no_grad():
            model(batches()[0][0])
    return training.sparsity, training.exploration


def test_rounds_of_a_sharded_model_rewind_after_an_evaluation():
    for sparsity, exploration in together(rounds_with_looks):
        assert sparsity == pytest.approx(0.5, abs=1e-3)
        assert exploration == 1.0


def refused(rank):
    from flatsparse.experiments.run.ddp import DistContext

    def fail():
        raise InputError("no such place")

    try:
        DistContext(rank, 2).on_main(fail)
    except InputError as problem:
        return str(problem)
    return "nothing"


def test_what_stops_the_leader_stops_all():
    assert together(refused) == ["no such place"] * 2
