import hashlib
import json
import os
import re

import numpy as np
import pytest
import torch

from flatsparse.errors import InputError
from flatsparse.storage import (
    load_masks,
    load_state,
    load_tensors,
    read_json,
    read_json_lines,
    save_masks,
    save_state,
    save_tensors,
    sealed,
    write_json,
    write_whole,
)

STATE = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "name": "x", "list": [1.0, 2.0], "none": None}
MASKS = {"b.weight": torch.arange(35).view(5, 7) % 3 == 0, "a.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)}


def lines(file):
    write_whole(file, b"".join(json.dumps(sealed({"epoch": i, "loss": i / 3})).encode() + b"\n" for i in range(4)))


KINDS = {
    "json": (lambda file: write_json(file, {"a": [1, 2.5, None], "b": {"c": "é"}}), read_json),
    "lines": (lines, read_json_lines),
    "tensors": (
        lambda file: save_tensors(file, {"w": torch.randn(4, 5), "n": torch.tensor(3)}, {"x": "y"}),
        load_tensors,
    ),
    "masks": (lambda file: save_masks(file, MASKS, method="rigl", step=7), load_masks),
    "state": (lambda file: save_state(file, STATE), load_state),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_every_flipped_byte_is_found(tmp_path, kind):
    write, load = kind
    file = tmp_path / "file"
    write(file)
    load(file)
    whole = file.read_bytes()
    source = np.random.default_rng(0)
    places = range(len(whole)) if len(whole) < 300 else source.choice(len(whole), 150, replace=False)
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(source.integers(8))
        file.write_bytes(spoilt)
        if load in (read_json, read_json_lines) and chr(whole[place]).isspace() and chr(spoilt[place]).isspace():
            continue  # white space between values says nothing
        with pytest.raises(InputError, match=re.escape(str(file))) as caught:
            load(file)
        assert "\n" not in str(caught.value)


def test_every_truncation_is_found(tmp_path, kind):
    write, load = kind
    file = tmp_path / "file"
    write(file)
    whole = file.read_bytes()
    for length in {0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 2}:
        file.write_bytes(whole[:length])
        if load is read_json_lines and (length == 0 or whole[:length].endswith(b"\n")):
            continue  # a shorter curve; whoever reads it knows how many epochs there were
        with pytest.raises(InputError, match="damaged"):
            load(file)


def test_a_missing_file_is_named(tmp_path, kind):
    with pytest.raises(InputError, match="absent"):
        kind[1](tmp_path / "absent")


def test_a_checkpoint_comes_back_and_torch_reads_it_alone(tmp_path):
    save_state(tmp_path / "c.pt", STATE)
    for state in (load_state(tmp_path / "c.pt"), torch.load(tmp_path / "c.pt", weights_only=True)):
        assert torch.equal(state["model"]["w"], STATE["model"]["w"])
        assert {k: v for k, v in state.items() if k != "model"} == {k: v for k, v in STATE.items() if k != "model"}


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    save_state(tmp_path / "c.pt", {"x": Evil()})
    with pytest.raises(InputError, match="more than tensors"):
        load_state(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


def test_masks_come_back_with_where_they_are_from(tmp_path):
    save_masks(tmp_path / "m.safetensors", MASKS, method="rigl", step=7)
    masks, about = load_masks(tmp_path / "m.safetensors")
    assert list(masks) == list(MASKS)
    assert all(torch.equal(masks[name], MASKS[name]) for name in MASKS)
    assert (about["method"], about["step"]) == ("rigl", "7")


def test_masks_take_one_bit_a_weight_in_the_documented_order(tmp_path):
    mask = torch.rand(1001, generator=torch.Generator().manual_seed(0)) < 0.5
    save_masks(tmp_path / "m.safetensors", {"w": mask})
    packed, _ = load_tensors(tmp_path / "m.safetensors")
    assert packed["w"].numel() == 126
    assert all(bool(packed["w"][i // 8] >> (i % 8) & 1) == bool(mask[i]) for i in range(1001))


def test_tensors_of_another_format_are_no_masks(tmp_path):
    save_tensors(tmp_path / "m.safetensors", {"w": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(InputError, match="flatsparse-masks-1"):
        load_masks(tmp_path / "m.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_half(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_whole(file, b"new")
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match="gone"):
        write_whole(tmp_path / "gone" / "file", b"x")


def test_the_checksum_is_that_of_the_documents_own_content(tmp_path):
    write_json(tmp_path / "v.json", {"b": 1, "a": 2})
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["sha256"] == hashlib.sha256(b'{"a": 2, "b": 1}').hexdigest()


@pytest.mark.parametrize("shapes", ["{}x", '{"a": [3, 4]}', '{"b": [2, 2]}', '{"a": [1000]}', '{"a": ["x"]}', "[1]"])
def test_a_mask_file_whose_shapes_do_not_fit_gets_one_line(tmp_path, shapes):
    file = tmp_path / "masks.safetensors"
    save_tensors(file, {"a": torch.zeros(1, dtype=torch.uint8)}, {"format": "flatsparse-masks-1", "shapes": shapes})
    with pytest.raises(InputError, match="damaged") as caught:
        load_masks(file)
    assert "\n" not in str(caught.value)
