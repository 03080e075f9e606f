"""The change of a model as a file: exact for its base, small, and refused for any other base or damage."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.export import apply_delta, save_delta
from tests.helpers import adamw, copied, mlp, same, sgd, train_steps

KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]


def trained(method="static", sparsity=0.9, base=sgd, steps=8):
    """A net whose support was trained with S²-SAM, and what it was before."""
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.1)
    options = {} if method == "static" else {"every": 5}
    training = fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=20, outside="frozen", **options)
    train_steps(model, optimizer, steps)
    return model, before, training, optimizer


def fresh(before):
    model = mlp(5)
    model.load_state_dict(before)
    return model


@pytest.mark.parametrize("base", [sgd, adamw])
@pytest.mark.parametrize("method", ["static", "rigl", "set"])
def test_the_base_and_its_delta_are_the_trained_model_bit_for_bit(tmp_path, method, base):
    model, before, training, _ = trained(method, base=base, steps=20)
    size = save_delta(tmp_path / "delta.safetensors", model, before)
    twin = fresh(before)
    assert apply_delta(tmp_path / "delta.safetensors", twin) is twin
    assert same(twin.state_dict(), model.state_dict())
    assert size.bytes == (tmp_path / "delta.safetensors").stat().st_size
    tensors, _ = load_tensors(tmp_path / "delta.safetensors")
    live = sum(int(mask.sum()) for mask in training.masks.values())
    others = size.total - sum(mask.numel() for mask in training.masks.values())
    values = sum(t.numel() for name, t in tensors.items() if name.startswith("values."))
    assert values == size.changed
    assert live * 0.9 < size.changed <= (live + others if method == "static" else size.total)


def test_within_a_window_it_is_the_true_weights(tmp_path):
    model, before, _, optimizer = trained()
    true = copied(dict(model.named_parameters()))
    model(torch.randn(8, 6))
    assert optimizer.is_perturbed
    save_delta(tmp_path / "delta.safetensors", model, before)
    twin = apply_delta(tmp_path / "delta.safetensors", fresh(before))
    assert same(copied(dict(twin.named_parameters())), true)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2, 1.0])
def test_the_file_is_smaller_than_its_dense_form_by_what_did_not_change(tmp_path, share):
    model = nn.Linear(400, 500, bias=False)
    base = copy.deepcopy(model)
    count = int(share * model.weight.numel())
    with torch.no_grad():
        model.weight.view(-1)[torch.randperm(model.weight.numel())[:count]] += 1
    size = save_delta(tmp_path / "d", model, base)
    assert size.changed == count
    entry = 4 if share == 1.0 else min(4 + 4, 4 + 1 / 8 / share)  # of a float, by itself, with an index or with bits
    assert size.bytes == pytest.approx(count * entry, abs=1000)
    assert f"{count:,} of 200,000 numbers changed" in str(size)
    assert same(apply_delta(tmp_path / "d", base).state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_and_every_bit(tmp_path, kind):
    model = nn.Module()
    model.register_buffer("scalar", torch.tensor(1).to(kind))
    model.register_buffer("image", torch.randint(0, 2, (2, 3, 4, 5)).to(kind).to(memory_format=torch.channels_last))
    base = copy.deepcopy(model)
    model.scalar.zero_()
    if kind.is_floating_point:
        base.image[0, 0, 0, :2] = 0.0
        model.image[0, 0, 0, :2] = torch.tensor([-0.0, float("nan")])
    else:
        model.image[0, 0, 0, :2] = ~base.image[0, 0, 0, :2] if kind == torch.bool else 7
    assert save_delta(tmp_path / "d", model, base).changed == 3
    assert same(dict(apply_delta(tmp_path / "d", base).state_dict()), dict(model.state_dict()))


def test_tied_weights_are_written_once(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(50, 40), "head": nn.Linear(40, 50, bias=False)})
    model["head"].weight = model["embed"].weight
    base = copy.deepcopy(model)
    with torch.no_grad():
        model["embed"].weight.mul_(2)
    size = save_delta(tmp_path / "d", model, base)
    assert size.bytes < 50 * 40 * 4 * 1.2
    assert same(apply_delta(tmp_path / "d", base).state_dict(), model.state_dict())


def test_wrappers_are_passed_over(tmp_path):
    model, before, _, _ = trained()
    save_delta(tmp_path / "d", nn.DataParallel(model), before)
    twin = nn.DataParallel(fresh(before))
    assert same(apply_delta(tmp_path / "d", twin).module.state_dict(), model.state_dict())


def refused(match, call):
    with pytest.raises(fs.InputError, match=match) as problem:
        call()
    assert "\n" not in str(problem.value)


def test_another_base_is_refused_and_unchanged(tmp_path):
    model, before, _, _ = trained()
    file = tmp_path / "d"
    save_delta(file, model, before)
    nearly = fresh(before)
    with torch.no_grad():
        nearly[0].weight[0, 0] = torch.nextafter(nearly[0].weight[0, 0], torch.tensor(9.0))
    for other in (mlp(7), nearly, model, fresh(before).double(), nn.Linear(2, 2)):
        state = copied(other.state_dict())
        refused("change of another base", lambda other=other: apply_delta(file, other))
        assert same(copied(other.state_dict()), state)


def test_what_is_no_change_is_refused(tmp_path):
    model, before, _, _ = trained()
    refused("nothing differs", lambda: save_delta(tmp_path / "d", model, model))
    refused("nothing differs", lambda: save_delta(tmp_path / "d", model, model.state_dict()))
    refused("another model: '0.weight' is", lambda: save_delta(tmp_path / "d", model, mlp().double()))
    refused("another model: '1.weight' is absent there", lambda: save_delta(tmp_path / "d", model, mlp(norm=False)))
    odd = nn.Module()
    odd.register_buffer("phase", torch.zeros(3, dtype=torch.complex128))
    refused("'phase' is torch.complex128", lambda: save_delta(tmp_path / "d", odd, odd.state_dict()))
    refused("got list", lambda: save_delta(tmp_path / "d", model, [1]))
    refused("no tensor", lambda: save_delta(tmp_path / "d", model, {**before, "0.weight": 3}))
    assert not (tmp_path / "d").exists()


def test_a_damaged_file_and_one_of_another_kind_are_refused(tmp_path):
    model, before, training, _ = trained()
    file, other = tmp_path / "delta.safetensors", tmp_path / "masks.safetensors"
    save_delta(file, model, before)
    content = file.read_bytes()
    for position in range(0, len(content), 37):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        refused(str(file), lambda: apply_delta(file, fresh(before)))
        file.write_bytes(content[:position])
        refused(str(file), lambda: apply_delta(file, fresh(before)))
    fs.save_masks(other, training.masks)
    refused("holds 'flatsparse-masks-1'", lambda: apply_delta(other, fresh(before)))
    refused("cannot read", lambda: apply_delta(tmp_path / "nothing", fresh(before)))


def tampered():
    """What a stranger may write with a right checksum: a name, and the entry's or the tensors' new content."""
    weight, places, values = "0.weight", "places.0.weight", "values.0.weight"
    entry = {"form": "bits", "shape": [16, 6]}
    index = {"form": "indices", "shape": [16, 6]}
    yield from (
        ("tensors", text, {}) for text in ("", "[]", "3", "null", "{", '{"0.weight": 1}', '{"no": {"form": "all"}}')
    )
    for own in (
        {},
        {**entry, "form": "all"},
        {**entry, "form": 3},
        {**entry, "shape": [6, 16]},
        {"same_as": "1"},
        {"same_as": []},
    ):
        yield weight, own, {}
    yield weight, entry, {places: torch.zeros(1, dtype=torch.uint8)}
    yield weight, entry, {places: torch.zeros(12, dtype=torch.int32)}
    yield weight, entry, {places: torch.zeros(12, dtype=torch.uint8)}
    yield weight, entry, {values: torch.zeros(3)}
    yield weight, entry, {values: torch.zeros(3, 3)}
    for flat in ([0, 96], [-1, 3], [3, 3], [4, 3], [[3]]):
        yield weight, index, {places: torch.tensor(flat, dtype=torch.int32), values: torch.zeros(len(flat))}
    yield weight, index, {places: torch.tensor([0.0, 1.0]), values: torch.zeros(2)}
    yield weight, index, {places: torch.tensor([0, 1]), values: torch.zeros(2, dtype=torch.float64)}


@pytest.mark.parametrize("number", range(len(list(tampered()))))
def test_a_strangers_file_is_refused_in_one_line(tmp_path, number):
    name, content, tensors = next(itertools.islice(tampered(), number, None))
    model, before, _, _ = trained()
    file = tmp_path / "d"
    save_delta(file, model, before)
    own, about = load_tensors(file)
    if name == "tensors":
        about["tensors"] = content
    else:
        about["tensors"] = json.dumps({**json.loads(about["tensors"]), name: content})
    save_tensors(file, {**own, **tensors}, about)
    twin = fresh(before)
    refused("is damaged .its values do not fit their places", lambda: apply_delta(file, twin))
    assert same(twin.state_dict(), before)


def test_numpy_reads_what_the_page_says_of_the_file(tmp_path):
    model, before, _, _ = trained()
    save_delta(tmp_path / "d", model, before)
    tensors, about = load_tensors(tmp_path / "d")
    for name, entry in json.loads(about["tensors"]).items():
        new = before[name].numpy().reshape(-1).copy()
        values = tensors[f"values.{name}"].numpy()
        if entry["form"] == "all":
            new[:] = values
        elif entry["form"] == "bits":
            new[np.unpackbits(tensors[f"places.{name}"].numpy(), count=new.size, bitorder="little").astype(bool)] = (
                values
            )
        else:
            new[tensors[f"places.{name}"].numpy()] = values
        assert np.array_equal(new.reshape(entry["shape"]), model.state_dict()[name].numpy())
