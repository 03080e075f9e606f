import errno
import hashlib
import json
import os
import re
import signal
import stat

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from flatsparse.common.checkpoints import load_state, save_state
from flatsparse.common.errors import InputError
from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum, write_json
from flatsparse.common.masks_file import load_masks, save_masks
from flatsparse.common.schema import POSITIVE, schema_error
from flatsparse.common.tensor_files import load_tensors, save_tensors, tensor_digest

STATE = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3, "name": "x", "list": [1.0, 2.0], "none": None}
MASKS = {"b.weight": torch.arange(35).view(5, 7) % 3 == 0, "a.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)}


def lines(file):
    write_atomic(
        file, b"".join(json.dumps(with_checksum({"epoch": i, "loss": i / 3})).encode() + b"\n" for i in range(4))
    )


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


@pytest.mark.parametrize("shapes", ["[" * 3000 + "]" * 3000, "[]", '{"w": [1e400]}', '{"w": [[2]]}', "{"])
def test_masks_whose_shapes_are_of_another_form_are_damaged(tmp_path, shapes):
    packed = {"w": torch.ones(1, dtype=torch.uint8)}
    about = {"format": "flatsparse-masks-1", "method": "", "step": "0", "shapes": '{"w": [2]}'}
    save_tensors(tmp_path / "m.safetensors", packed, about)
    load_masks(tmp_path / "m.safetensors")
    save_tensors(tmp_path / "m.safetensors", packed, {**about, "shapes": shapes})
    with pytest.raises(InputError, match="damaged") as caught:
        load_masks(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_half(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_atomic(file, b"new")
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the locks of Windows are others")


@needs_fork
def test_what_a_kill_leaves_goes_with_the_next_write_of_the_file(tmp_path):
    for _ in range(2):
        if not (child := os.fork()):
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            write_atomic(tmp_path / "file", b"half")
        os.waitpid(child, 0)
        (left,) = tmp_path.iterdir()
        assert left.name.endswith(".half")
    write_atomic(tmp_path / "file", b"whole")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"whole")]


@needs_fork
@pytest.mark.parametrize("locks", [True, False])
def test_two_who_write_a_file_at_once_each_write_a_whole_one(tmp_path, monkeypatch, locks):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_atomic(tmp_path / "file", b"the second")
        assert len(list(tmp_path.iterdir())) == 2
        assert (tmp_path / "file").read_bytes() == b"the second"

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", meanwhile)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", none)
    write_atomic(tmp_path / "file", b"the first")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"the first")]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(InputError, match="gone"):
        write_atomic(tmp_path / "gone" / "file", b"x")


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


def test_equal_contents_give_equal_files_whatever_their_order(tmp_path):
    tensors = {f"t{n}": torch.randn(3, n + 1).to((torch.float32, torch.float16, torch.int64)[n % 3]) for n in range(9)}
    about = {f"key{n}": "é" * n for n in range(9)}
    written = set()
    for turn in range(5):
        for number, what in enumerate((tensors, about)):
            names = list(what)
            what = {name: what[name] for name in names[turn:] + names[:turn]}
            tensors, about = (what, about) if number == 0 else (tensors, what)
        save_tensors(tmp_path / "t", tensors, about)
        save_masks(tmp_path / "m", MASKS, method="rigl", step=turn // 9)
        save_state(tmp_path / "s", STATE)
        written.add(tuple((tmp_path / name).read_bytes() for name in "tms"))
    assert len(written) == 1
    header = int.from_bytes((tmp_path / "t").read_bytes()[:8], "little")
    assert header % 8 == 0  # readers map the numbers as they lie
    assert all(torch.equal(tensors[name], read) for name, read in load_file(tmp_path / "t").items())
    with safetensors.safe_open(tmp_path / "t", "pt") as file:
        assert {k: v for k, v in file.metadata().items() if k != "sha256"} == about


def test_a_digest_is_of_contents(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bool)}
    digest = tensor_digest(tensors, {"x": "1", "y": "2"})
    assert digest == tensor_digest(dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    for other in ({**tensors, "a": torch.arange(4.0) + 1}, {**tensors, "a": torch.arange(4)}, {"a": tensors["a"]}):
        assert digest != tensor_digest(other, {"x": "1", "y": "2"})


def tied(kind):
    """A net with a weight that two layers share."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    if kind == "parameter":
        net[1].weight = net[0].weight
    elif kind == "data":
        net[1].weight.data = net[0].weight.data
    elif kind == "turned":
        net[1].weight.data = net[0].weight.data.t()
    else:
        both = torch.randn(6, 4)
        net[0].weight.data, net[1].weight.data = both[:4], both[2:]
    return net


@pytest.mark.parametrize("kind", ["parameter", "data", "turned", "overlapping"])
def test_weights_that_share_memory_are_saved_and_loaded_under_each_name(tmp_path, kind):
    net, other = tied(kind), tied(kind)
    wanted = {name: value.clone() for name, value in net.state_dict().items()}
    save_tensors(tmp_path / "t", net.state_dict(), {"format": "pt"})
    for found in (load_tensors(tmp_path / "t")[0], load_file(tmp_path / "t")):
        other.load_state_dict(found)
        assert all(torch.equal(wanted[name], value) for name, value in other.state_dict().items())
    assert other[0].weight.untyped_storage().data_ptr() == other[1].weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
        (tmp_path / "plain").write_bytes(b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "plain")]
    assert modes[0] == modes[1] == 0o666 & ~umask


def test_a_name_as_long_as_the_system_takes_is_written(tmp_path):
    write_atomic(tmp_path / ("x" * 255), b"x")
    with pytest.raises(InputError, match="too long"):
        write_atomic(tmp_path / ("x" * 256), b"x")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("read", [read_json, read_json_lines])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "{" * 5 + "1" * 5000, '"x"', "[1]", "1" * 5000, '{"sha256": null}']
)
def test_json_of_any_shape_is_read_or_refused_in_a_line(tmp_path, read, text):
    (tmp_path / "file").write_text(text + "\n")
    with pytest.raises(InputError, match=r"\A[^\n]*file' is damaged[^\n]*\Z"):
        read(tmp_path / "file")


def test_numbers_that_are_none_are_refused_where_none_are_written(tmp_path):
    for value in (float("nan"), float("inf")):
        (tmp_path / "file").write_text(json.dumps(with_checksum({"a": [value]})) + "\n")
        with pytest.raises(InputError, match="damaged"):
            read_json(tmp_path / "file")
        assert str(read_json_lines(tmp_path / "file")[0]["a"][0]) == str(value)  # a curve may have them


FORM = {
    "p": POSITIVE,
    "a": float,
    "b": [int],
    "c": (None, {"d": str}),
    "e": {str: bool},
    "f": [float, float],
    "g": {"x", "y"},
}
FITS = {
    "p": 0.5,
    "a": 1,
    "b": [1, 2],
    "c": {"d": "", "more": 1},
    "e": {"p": True},
    "f": [0, 0.5],
    "g": "x",
    "more": None,
}


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        ({}, None),
        ({"c": None, "b": [], "e": {}}, None),
        ({"a": "1"}, "a is of the wrong kind"),
        ({"p": 0}, "p is of the wrong kind"),
        ({"a": True}, "a is of the wrong kind"),
        ({"a": 10**400}, "a is of the wrong kind"),
        ({"b": [1, 2.5]}, "b[1] is of the wrong kind"),
        ({"b": {}}, "b is of the wrong kind"),
        ({"c": {}}, "c is of the wrong kind"),
        ({"e": {"p": 1}}, "e.p is of the wrong kind"),
        ({"f": [1.0]}, "f has 1 entries, not 2"),
        ({"g": "z"}, "g is of the wrong kind"),
        ({"g": ["x"]}, "g is of the wrong kind"),
    ],
)
def test_a_form_is_met_or_the_first_thing_that_is_not_is_named(tmp_path, change, odd):
    assert schema_error({**FITS, **change}, FORM) == odd
    write_json(tmp_path / "file", {**FITS, **change})
    if odd is None:
        read_json(tmp_path / "file", FORM)
    else:
        with pytest.raises(InputError, match=re.escape(f"damaged ({odd}")):
            read_json(tmp_path / "file", FORM)


def test_a_key_that_is_missing_is_named():
    assert schema_error({k: v for k, v in FITS.items() if k != "f"}, FORM) == "it has no 'f'"
    assert schema_error([], FORM) == "it is of the wrong kind"


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(16), b"not a zip", b"\x80\x02}q\x00."])
def test_a_sealed_file_that_is_no_checkpoint_is_damaged(tmp_path, content):
    size = (64).to_bytes(2, "little")
    (tmp_path / "c.pt").write_bytes(content + size + hashlib.sha256(content).hexdigest().encode())
    with pytest.raises(InputError, match=r"\A[^\n]*damaged[^\n]*\Z"):
        load_state(tmp_path / "c.pt")
