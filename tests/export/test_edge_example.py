"""examples/edge.py: what it trains is 2:4 sparse without a warning, and it says what was compiled."""

import importlib.util
from pathlib import Path

import pytest
import torch

from flatsparse.export.semi_structured import check_two_four

FILE = Path(__file__).parents[2] / "examples" / "edge.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("edge_example", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EPOCHS", 4)
    return module


@pytest.mark.filterwarnings("error::UserWarning")
def test_it_trains_two_of_four_from_a_dense_net(example):
    torch.manual_seed(0)
    images, labels, *_ = example.data()
    model = example.network()
    assert example.train(model, images[:256], labels[:256], lr=0.1, sparse=False) == {}
    masks = example.train(model, images[:256], labels[:256], lr=0.05, sparse=True)
    assert list(masks) == ["3.weight", "6.weight", "11.weight"]
    check_two_four(masks, model)
    state = model.state_dict()
    assert all(state[name].count_nonzero() == state[name].numel() // 2 == mask.sum() for name, mask in masks.items())
    example.network().load_state_dict(state)  # its own keys


@pytest.mark.slow
def test_it_compiles_and_says_what_is_saved(example, tmp_path, capsys):
    pytest.importorskip("executorch", reason="the extra edge is not installed")
    example.main(tmp_path)
    dense, sparse = capsys.readouterr().out.splitlines()
    assert dense.startswith("dense: ")
    assert sparse.startswith("2:4: ")
    numbers = [int(line.split("; ")[1].split(" ")[0].replace(",", "")) for line in (dense, sparse)]
    assert numbers[1] < 0.6 * numbers[0]  # multiplications
    assert {file.name for file in tmp_path.iterdir()} == {"dense.pte", "2of4.pte"}
