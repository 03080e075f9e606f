"""One process at a time in a folder, and folders of every kind."""

import errno
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.experiments import claims
from flatsparse.experiments.claims import LOCK, Busy, alone_in, claim, in_use, locked
from flatsparse.experiments.grid.job import JobOutcome, RunJob
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.resolve import resolve
from tests.cli.test_cli import QUICK, fails


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    main(["train", *QUICK, "--method", "static", "--out", str(run)])
    return run


# -- locks ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_one_process_s_at_a_time_and_nothing_is_left_in_it(tmp_path):
    out = tmp_path / "new" / "folder"
    with alone_in(out):
        assert [file.name for file in out.iterdir()] == [LOCK]
        assert not in_use(out)
        with pytest.raises(Busy, match=f"another process is at work in '{out}'"), alone_in(out):
            pass
    assert not list(out.iterdir())
    with alone_in(out):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_lock_goes_with_its_process_however_that_ends(tmp_path):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        with alone_in(tmp_path):
            os.write(theirs, b"x")
            signal.pause()
    os.read(ours, 1)
    try:
        with pytest.raises(Busy), alone_in(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (tmp_path / LOCK).is_file()
    with alone_in(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_lock_ends_with_its_process_and_not_with_those_that_it_forked(tmp_path):
    """As the processes that read data, which notice some seconds later that they are alone."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        with alone_in(tmp_path):
            os.write(theirs, b"%d" % (os.fork() or signal.pause()))
            signal.pause()
    reader = int(os.read(ours, 20))
    try:
        with pytest.raises(Busy), alone_in(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(reader, signal.SIGKILL)


def test_a_lock_whose_file_was_removed_between_two_calls_is_taken_anew(tmp_path, monkeypatch):
    file, lock = tmp_path / LOCK, claims.lock_descriptor

    def removed_first(descriptor, *, blocking):
        monkeypatch.undo()
        file.unlink()
        return lock(descriptor, blocking=blocking)

    monkeypatch.setattr(claims, "lock_descriptor", removed_first)
    with locked(file) as got, locked(file) as again:
        assert (got, again) == (True, False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the locks of Windows are others")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_work_goes_on_alone_and_a_store_says_so(tmp_path, monkeypatch, code):
    import fcntl

    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
    end = RunJob(resolve(RunConfig()), tmp_path / "runs" / "a", tmp_path).run()
    assert f"without locks ({os.strerror(code)})" in end.failure
    assert not (tmp_path / "runs").exists()


def test_a_lock_is_removed_after_it_is_closed_where_an_open_file_cannot_be(tmp_path, monkeypatch):
    """As on Windows."""
    streams, opened, unlink = [], Path.open, Path.unlink

    def keeping(file, *arguments, **options):
        streams.append(opened(file, *arguments, **options))
        return streams[-1]

    def refusing(file):
        if not streams[-1].closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        unlink(file)

    monkeypatch.setattr(Path, "open", keeping)
    monkeypatch.setattr(Path, "unlink", refusing)
    with locked(tmp_path / LOCK) as got:
        assert got
    assert not (tmp_path / LOCK).exists()


def commands(run, folder):
    """Every command that writes into a folder, and the folder."""
    quick = ["--jobs", "1", "--device", "cpu"]
    surface = ["--points", "3", "--images", "20", "--pairs", "2", "--hessian-images", "0"]
    return {
        "train": (["train", *QUICK, "--out"], folder),
        "resume": (["train", *QUICK, "--method", "static", "--resume", "--out"], run),
        "compare": (["compare", *QUICK, "--seeds", "1", "--sharpness", "none", "s2sam", *quick, "--out"], folder),
        "landscape": (["landscape", str(run), *surface, *quick, "--out"], folder),
        "evaluate": (["evaluate", str(run), "--images", "20", *quick, "--out"], folder),
        "export": (["export", str(run), "--images", "20", "--out"], folder),
        "bench": (["bench", "memory", "--quick", "--case", "resnet32", "--device", "cpu", "--out"], folder),
    }


COMMANDS = list(commands(None, None))


@pytest.fixture
def called(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    return lambda name, folder: commands(run, folder)[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_ends_in_a_line_and_changes_nothing(called, name, tmp_path, capsys):
    arguments, out = called(name, tmp_path / "out")
    with alone_in(out):
        before = contents(out)
        told = fails(capsys, *arguments, str(out))
        assert f"another process is at work in '{out}'" in told
        assert contents(out) == before


def test_a_run_that_another_process_trains_is_put_off_by_a_grid(tmp_path):
    job = RunJob(resolve(RunConfig.of(train_size=64, epochs=2)), tmp_path / "runs" / "a", tmp_path)
    with alone_in(job.folder):
        assert job.run() == JobOutcome(busy=True)
    assert not (job.folder / "failure.json").exists()


# -- folders ----------------------------------------------------------------------------------------------------------

PLACES = {
    "a file": lambda place: place.write_text("mine"),
    "below a file": lambda place: (place.parent.mkdir(), place.parent.rmdir(), place.parent.write_text("mine")),
    "a link to nothing": lambda place: place.symlink_to("nothing"),
    "a link to itself": lambda place: place.symlink_to(place),
    "a name too long": lambda place: None,
    "of the system": lambda place: None,
    "of someone else": lambda place: (place.mkdir(), (place / "thesis.tex").write_text("mine")),
}


def place_of(kind, tmp_path):
    names = {"below a file": "file/out", "a name too long": "x" * 300, "of the system": "/proc"}
    return tmp_path / "some" / names.get(kind, "out")


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "resume"])
def test_a_folder_that_cannot_be_had_is_a_line_and_left_as_it_was(called, name, kind, tmp_path, capsys):
    if name in ("evaluate", "export") and kind == "of someone else":
        pytest.skip("it leaves alone what others have in its folder")
    (tmp_path / "some").mkdir()
    out = place_of(kind, tmp_path)
    PLACES[kind](out)
    before = contents(tmp_path / "some"), sorted((tmp_path / "some").rglob("*"))
    assert str(out) in fails(capsys, *called(name, out)[0], str(out))
    assert (contents(tmp_path / "some"), sorted((tmp_path / "some").rglob("*"))) == before


@pytest.mark.parametrize(
    "kind", ["a link", "relative", "below others that are not there", "a dot at its end", "left empty"]
)
def test_a_folder_that_can_be_had_is_used(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    out = {"a link": "link", "relative": "a/../there", "left empty": "there"}.get(kind, "new/out.")
    main(["train", *QUICK, "--method", "static", "--out", out])
    assert (tmp_path / out / "result.json").is_file()
    main(["train", *QUICK, "--method", "static", "--out", out, "--resume"])


def test_data_from_a_path_do_not_take_the_folder_with_them(tmp_path, monkeypatch):
    """The default folder is in ``runs``, wherever the data lie."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    for where in (tmp_path / "data set", tmp_path / "elsewhere"):
        where.mkdir()
        for name in ("train", "test"):
            images = np.random.default_rng(0).integers(0, 255, (160, 8, 8, 3), dtype=np.uint8)
            np.savez(where / f"{name}.npz", images=images, labels=np.arange(160) % 4)
    shared = ["train", "--train-size", "64", "--validation-size", "50", "--batch-size", "32", "--epochs", "2"]
    shared += ["--model", "digitnet", "--method", "static"]
    main([*shared, "--data", str(tmp_path / "data set")])
    main([*shared, "--data", "./elsewhere"])
    runs = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert len(runs) == 2
    assert not any(name.startswith(".") for name in runs)
    assert sorted(f.name for f in (tmp_path / "data set").iterdir()) == ["test.npz", "train.npz"]


def test_a_claim_is_refused_in_a_folder_with_another_and_kept_in_its_own(tmp_path):
    with ExitStack() as held:
        held.enter_context(claim(tmp_path, "config.json", {"a": (1, 2)}, resume=False))
    with claim(tmp_path, "config.json", {"a": (1, 2)}, resume=True):
        assert sorted(file.name for file in tmp_path.iterdir()) == [LOCK, "config.json"]
    for mine, resume in (({"a": (1, 3)}, True), ({"a": (1, 2)}, False)):
        with pytest.raises(InputError), claim(tmp_path, "config.json", mine, resume=resume):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


# -- a system that does not let us ------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may do anything")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_we_may_not_write_to_is_a_line(called, name, tmp_path, capsys):
    arguments, out = called(name, tmp_path / "closed" / "out")
    out.mkdir(parents=True, exist_ok=True)
    for mode in (0o500, 0o000):
        out.chmod(mode)
        try:
            assert str(out) in fails(capsys, *arguments, str(out))
        finally:
            out.chmod(0o700)


def test_a_folder_of_first_rounds_that_cannot_be_had_is_refused_before_any_is_trained(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    lth = ["--method", "lth", "--sparsity", "0.5", "--out", str(tmp_path / "run"), "--parent"]
    with pytest.raises(SystemExit) as end:
        main(["train", *QUICK, *lth, str(tmp_path / "file")])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert (
        said.err == f"flatsparse: error: cannot write to '{tmp_path / 'file'}' (File exists): give another --parent\n"
    )
    assert "epoch" not in said.out
    assert (tmp_path / "file").read_text() == "mine"
