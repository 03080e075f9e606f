"""``--init``: runs that start from the weights of a finished run, or of a file."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.report.flags import flags
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, Setting, change
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.shared_round import first_round_key
from tests.cli.test_cli import fails
from tests.experiments.own_tasks import NOISY
from tests.experiments.watchers import KillAfter, Killed
from tests.helpers import same_tensors

SMALL = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=2, method="dense")
TO_2_4 = change(SMALL, method="gmp", pattern=(2, 4), sparsity=0.5, exclude=("0",), epochs=3, lr=0.01, seed=3)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a finished dense run; not to be written to."""
    folder = tmp_path_factory.mktemp("init") / "dense"
    loop.train(SMALL, folder)
    return folder


@pytest.fixture
def own(dense, tmp_path):
    """A copy of it."""
    return shutil.copytree(dense, tmp_path / "own")


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_starts_from_the_weights_and_statistics_of_a_finished_one(dense, tmp_path):
    random = build(resolve(TO_2_4)).model.state_dict()
    assert not same_tensors(random, weights(dense))
    for init in (dense, dense / "model.safetensors"):
        assert same_tensors(build(resolve(change(TO_2_4, init=init))).model.state_dict(), weights(dense))
    save_file({name: t.double() for name, t in weights(dense).items()}, tmp_path / "any.safetensors")  # no checksum
    begun = build(resolve(change(TO_2_4, init=tmp_path / "any.safetensors", ema=0.9)))
    assert same_tensors(begun.model.state_dict(), weights(dense))
    assert same_tensors(begun.average.model.state_dict(), weights(dense))


def test_weights_in_eight_bits_of_a_float_are_read(dense, tmp_path):
    eighth = {name: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for name, t in weights(dense).items()}
    save_file(eighth, tmp_path / "eighth.safetensors")
    begun = build(resolve(change(TO_2_4, init=tmp_path / "eighth.safetensors"))).model.state_dict()
    assert same_tensors(begun, {name: t.to(begun[name].dtype) for name, t in eighth.items()})


def test_a_dense_run_becomes_2_4_and_can_be_read_when_its_start_is_gone(own, tmp_path, capsys):
    out = tmp_path / "sparse"
    result = loop.train(change(TO_2_4, init=own, sharpness="s2sam"), out)
    recorded = json.loads((out / "config.json").read_text())["settings"]
    assert recorded["init"] == str(own)
    assert f"--init {own}" in flags(load_run(out).run)
    shutil.rmtree(own)
    run = load_run(out)
    assert result.sparsity.prunable == 0.5
    for name, mask in run.masks.items():
        assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all()
        assert not run.model.get_parameter(name)[~mask].any()
    main(["export", str(out), "--out", str(tmp_path / "exported")])
    assert "bit for bit the run's" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["gmp", "lth"])
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(dense, tmp_path, method):
    run = change(SMALL, init=dense, epochs=3, method=method, sparsity=0.5)
    if method == "gmp":
        run = change(TO_2_4, init=dense)
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(2))
    loop.train(run, tmp_path / "killed", resume=True)
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_takes_the_same_weights_from_elsewhere_and_refuses_others(own, tmp_path, capsys):
    run, out, elsewhere = change(TO_2_4, init=own), tmp_path / "sparse", tmp_path / "elsewhere.safetensors"
    with pytest.raises(Killed):
        loop.train(run, out, watcher=KillAfter(1))
    shutil.copy(own / "model.safetensors", elsewhere)
    loop.train(change(run, init=elsewhere), out, resume=True)
    for other in (change(run, init=None), _another(elsewhere, run)):
        with pytest.raises(InputError, match=r"holds work with an --init whose SHA-256 is [0-9a-f]{64}, not "):
            loop.train(other, out, resume=True)
    loop.train(SMALL, tmp_path / "random")
    with pytest.raises(InputError, match=r"is None, not [0-9a-f]{64}"):
        loop.train(change(SMALL, init=own), tmp_path / "random", resume=True)


def _another(file, run):
    """The run with other weights in its file."""
    save_file({name: t + 1 for name, t in load_file(file).items()}, file)
    return change(run, init=file)


def test_weights_that_change_after_a_run_was_resolved_are_refused(own):
    run = resolve(change(TO_2_4, init=own / "model.safetensors"))
    _another(own / "model.safetensors", run)
    with pytest.raises(InputError, match="changed while it was read"):
        build(run)


def test_stores_and_first_rounds_tell_runs_by_the_weights_not_their_place(own, tmp_path):
    shutil.copy(own / "model.safetensors", tmp_path / "same.safetensors")
    runs = [change(TO_2_4, init=init) for init in (None, own, tmp_path / "same.safetensors")]
    for of in (key, lambda run: first_round_key(resolve(change(run, method="lth", pattern=None)))):
        random, first, second = map(of, runs)
        assert random != first == second
        _another(tmp_path / "same.safetensors", runs[2])
        assert of(runs[2]) != first
        shutil.copy(own / "model.safetensors", tmp_path / "same.safetensors")


def test_all_runs_of_a_comparison_start_from_the_same_weights(own, tmp_path):
    setting = Setting.of(train_size=64, validation_size=50, batch_size=16, epochs=1, sparsity=0.5)
    asked = Comparison(setting=replace(setting, init=own), sharpness=("s2sam",), seeds=1, jobs=1)
    compare(asked, tmp_path / "out")
    hashes = {
        json.loads(file.read_text())["settings"]["init_sha256"]
        for file in (tmp_path / "out" / "runs").glob("*/config.json")
    }
    assert hashes == {resolve(change(SMALL, init=own)).init_sha256}
    compare(asked, tmp_path / "out", resume=True)
    shutil.copy(own / "model.safetensors", tmp_path / "new.safetensors")
    new = _another(tmp_path / "new.safetensors", SMALL).init
    for other in (replace(asked, setting=setting), replace(asked, setting=replace(setting, init=new))):
        with pytest.raises(InputError, match="an --init whose SHA-256 is"):
            compare(other, tmp_path / "out", resume=True)


def test_a_task_of_ones_own_starts_from_its_run(tmp_path):
    (tmp_path / "task.py").write_text(NOISY)
    run = RunConfig.of(task=f"{tmp_path / 'task.py'}:task", epochs=1, batch_size=16, sparsity=0.5, exclude=("3",))
    loop.train(run, tmp_path / "first")
    begun = build(resolve(change(run, init=tmp_path / "first", method="dense", sparsity=0.0)))
    assert same_tensors(begun.model.state_dict(), weights(tmp_path / "first"))


def _wrong(name, own, tmp_path):
    """What ``--init`` is given."""
    tensors, file = weights(own), tmp_path / "new.safetensors"
    if name == "unfinished":
        (own / "result.json").unlink()
    elif name == "no run":
        (own / "config.json").unlink()
    elif name == "absent":
        return tmp_path / "nothing"
    elif name == "no weights":
        (own / "model.safetensors").unlink()
    elif name == "another's weights":
        loop.train(change(SMALL, seed=1, epochs=1), tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", own)
    elif name in ("damaged", "damaged file"):
        content = bytearray((own / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (own / "model.safetensors").write_bytes(content)
    elif name == "no tensors":
        file.write_bytes(b"text")
    elif name == "checkpoint":
        return own / "checkpoint.pt"
    elif name == "one too few":
        save_file({n: t for n, t in tensors.items() if n != "1.running_mean"}, file)
    elif name == "one too many":
        save_file({**tensors, "more": torch.zeros(1)}, file)
    elif name == "another shape":
        save_file({**tensors, "11.weight": torch.zeros(7, 64)}, file)
    elif name == "infinite":
        save_file({**tensors, "1.bias": torch.full((32,), torch.inf)}, file)
    elif name == "too large":
        save_file({**tensors, "1.bias": torch.full((32,), 1e300, dtype=torch.float64)}, file)
    elif name == "quantized":
        save_file({**tensors, "11.weight": torch.ones(10, 64, dtype=torch.int8)}, file)
    return file if file.exists() else own / "model.safetensors" if name == "damaged file" else own


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unfinished", "own' holds an unfinished run: finish it with flatsparse train --resume"),
        ("no run", "own' is no run's folder: give the folder of a finished run, or a .safetensors file"),
        ("absent", "nothing' is not there: give the folder of a finished run"),
        ("no weights", "model.safetensors"),
        ("another's weights", "it is of another run than the result.json beside it"),
        ("damaged", "model.safetensors' is damaged (its checksum does not fit)"),
        ("damaged file", "model.safetensors' is damaged (its checksum does not fit)"),
        ("no tensors", "new.safetensors' is damaged"),
        ("checkpoint", "checkpoint.pt' is no file of weights"),
        ("one too few", "does not fit the model: '1.running_mean' is absent there and (32,) here"),
        ("one too many", "does not fit the model: 'more' is (1,) there and absent here"),
        ("another shape", "is (7, 64) there and (10, 64) here; give weights of this very network"),
        ("infinite", "has weights that are not finite, the first in '1.bias'"),
        ("too large", "has weights that are not finite, the first in '1.bias'"),
        ("quantized", "'11.weight' is torch.int8 there and torch.float32 here; give weights that are not quantized"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(own, tmp_path, capsys, name, told):
    init = _wrong(name, own, tmp_path)
    assert told in fails(capsys, "train", "--init", str(init), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
