import dataclasses
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.grid import job, ray_cluster, store
from flatsparse.experiments.grid.job import JobOutcome, RunJob
from flatsparse.experiments.grid.progress import ProgressTable
from flatsparse.experiments.grid.store import key, outcomes, run_grid
from flatsparse.experiments.grid.workers import Workers, local_executor
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig, as_json, change
from flatsparse.experiments.run.folder import read_result
from flatsparse.experiments.run.load import run_of
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.resolve import resolve
from tests.helpers import same_tensors

SMALL = RunConfig.of(train_size=96, validation_size=50, batch_size=16, epochs=2, sparsity=0.9)
DIVERGES = change(SMALL, lr=1e30)
LONG = change(SMALL, epochs=60)
SHARED = change(SMALL, epochs=1, drop_fraction=0.5, sparsity=0.7, validation_size=None)
ROUNDS = [change(SHARED, method=method) for method in ("lth", "lrr")]
RUNS = [change(SMALL, sharpness=sharpness, seed=s) for s in (0, 1) for sharpness in ("none", "s2sam")]


def quiet():
    return Console(file=io.StringIO(), width=200)


def counted(outcome):
    """What a run came to, less what its time was."""
    timed = ("seconds", "images_per_second")
    weights = load_tensors(outcome.folder / "model.safetensors")[0]
    return {name: v for name, v in outcome.result.to_json().items() if name not in timed}, weights


def check_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        (numbers, weights), (wanted, whole) = counted(one), counted(other)
        assert numbers == wanted
        assert same_tensors(weights, whole)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs, one after the other in this process, which has more threads than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run_grid(RUNS, tmp_path_factory.mktemp("alone"), jobs=1, console=quiet())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    return found


def test_a_key_stands_for_what_decides_a_run(tmp_path):
    assert key(SMALL) == key(resolve(SMALL)) == key(change(SMALL, data_dir=tmp_path))
    assert key(SMALL) == key(change(SMALL, rho=0.7, adaptive=True))  # without sharpness neither has a part
    changes = {"seed": 1, "lr": 0.2, "method": "set", "sharpness": "s2sam", "label_noise": 0.1, "include": ("conv*",)}
    assert len({key(SMALL), *(key(change(SMALL, **{k: v})) for k, v in changes.items())}) == 7


def test_a_key_tells_what_a_method_does_now_from_what_it_did_once():
    for method in ("chex", "chase"):
        run = RunConfig.of(method=method)
        assert key(run) == key(change(run, explore="published"))
        assert key(run) != key(change(run, explore="removable"))
        summed = change(run, sums=True)
        assert key(summed) == key(change(summed, explore="removable")) != key(run)
    chase = RunConfig.of(method="chase")
    differs = {"last_phase": "layer", "first_phase": "layer", "channel_offset": 0.0}
    assert len({key(chase), *(key(change(chase, **{k: v})) for k, v in differs.items())}) == 4


@pytest.mark.parametrize("method", ["chex", "chase", "rigl"])
def test_a_folder_from_before_there_was_a_choice_is_of_what_was_done_then(method, tmp_path):
    run = resolve(RunConfig.of(method=method, seed=3))
    settings = json.loads(json.dumps(as_json(run)))
    assert run_of(settings, tmp_path) == run
    before = {n: v for n, v in settings.items() if n not in ("explore", "first_phase", "last_phase", "channel_offset")}
    found = run_of(before, tmp_path)
    assert found.pruning.explore == (None if method == "rigl" else "removable")
    assert found.pruning.last_phase == ("layer" if method == "chase" else None)
    assert (key(found) == key(run)) == (method == "rigl")


def test_a_key_changes_with_the_code_of_a_method_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    code = "from flatsparse.methods import SET\nclass Mine(SET):\n    pass\n"
    keys = []
    for text in (code, code + "# other\n"):
        file.write_text(text)
        keys.append(key(change(SMALL, method=f"{file}:Mine")))
    assert keys[0] != keys[1]


def test_processes_come_to_the_numbers_of_one(alone, tmp_path):
    store = tmp_path / "store"
    assert [(o.result, o.failure) for o in outcomes(RUNS, store)] == [(None, None)] * 4
    found = run_grid([*RUNS, RUNS[0]], store, jobs=2, console=quiet())
    check_alike(found[:4], alone)
    assert found[4] == found[0]
    assert outcomes(RUNS, store) == found[:4]


def test_what_is_finished_is_not_run_again(alone, monkeypatch):
    monkeypatch.setattr(job, "train", lambda *args, **kwargs: pytest.fail("ran again"))
    store = alone[0].folder.parent.parent
    check_alike(run_grid(RUNS[::-1], store, jobs=1, console=quiet())[::-1], alone)


def test_a_failure_is_told_and_the_others_go_on(tmp_path):
    odd = change(SMALL, model="resnet2000")
    told = quiet()
    found = run_grid([odd, DIVERGES, SMALL], tmp_path, jobs=1, console=told)
    assert "unknown model 'resnet2000'" in found[0].failure
    assert "the loss became" in found[1].failure
    assert found[2].result.value > 0
    assert all(o.result is None for o in found[:2])
    record = read_json(found[1].folder / "failure.json")
    assert record["reason"] == found[1].failure
    assert record["where"].startswith("finish.py, line ")
    text = told.file.getvalue()
    assert "failed: the loss became" in text
    assert "running: 1 runs done, 1 failed, 1 before" in text


def test_a_failure_stays_until_it_is_to_be_tried_again(tmp_path, monkeypatch):
    def burst(*args, **kwargs):
        raise MemoryError("no\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(job, "train", burst)
        assert run_grid([SMALL], tmp_path, jobs=1, console=quiet())[0].failure == "MemoryError: no"
    assert run_grid([SMALL], tmp_path, jobs=1, console=quiet())[0].failure == "MemoryError: no"
    again = run_grid([SMALL], tmp_path, jobs=1, retry=True, console=quiet())[0]
    assert again.failure is None
    assert again.result.epochs == 2
    assert not (again.folder / "failure.json").exists()


def test_rounds_share_their_first_one(tmp_path, monkeypatch):
    made = []
    keep = loop.save_first_round
    monkeypatch.setattr(loop, "save_first_round", lambda *args: made.append(args[1].run.pruning.method) or keep(*args))
    found = run_grid(ROUNDS, tmp_path, jobs=1, console=quiet())
    assert made == ["lth"]
    assert [o.result.method for o in found] == ["lth", "lrr"]


@pytest.mark.slow
def test_rounds_side_by_side_share_their_first_one(tmp_path):
    found = run_grid(ROUNDS, tmp_path / "both", jobs=2, console=quiet())
    check_alike(found, run_grid(ROUNDS, tmp_path / "one", jobs=1, console=quiet()))
    assert len(list((tmp_path / "both" / "parents").iterdir())) == 1


def test_the_lock_of_a_first_round_goes_back_when_it_is_made(tmp_path, monkeypatch):
    """The other run is let in after the first round, long before the first run ends."""
    let_in = []
    stepped = job._RoundSharing.finished_epoch

    def finished_epoch(self, record):
        stepped(self, record)
        with job.store_lock(tmp_path, f"first-{job.first_round_key(resolve(ROUNDS[0]))}") as got:
            let_in.append(got)

    with job.store_lock(tmp_path, f"first-{job.first_round_key(resolve(ROUNDS[0]))}") as got:
        assert got
        assert RunJob(resolve(ROUNDS[0]), tmp_path / "runs" / "a", tmp_path).run().busy
    monkeypatch.setattr(job._RoundSharing, "finished_epoch", finished_epoch)
    run_grid(ROUNDS[:1], tmp_path, jobs=1, console=quiet())
    assert let_in == [True] * rounds_of(resolve(ROUNDS[0]))  # of an epoch each


def test_a_killed_run_fails_alone(tmp_path, alone):
    """The process of one run is killed from outside; the others, in other processes, do not notice."""
    killed = []

    def kill():
        folder = outcomes([LONG], tmp_path)[0].folder
        while not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        name = folder.name
        for worker in list(made[0].workers):
            if worker.job is not None and worker.job.folder.name == name:
                killed.append(worker.process.pid)
                os.kill(worker.process.pid, signal.SIGKILL)

    made = []
    begin = Workers.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "__init__", lambda self, count: (begin(self, count), made.append(self))[0])
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        found = run_grid([LONG, *RUNS[:2]], tmp_path, jobs=2, console=quiet())
        thread.join()
    assert len(killed) == 1
    assert "killed, perhaps for lack of memory" in found[0].failure
    assert read_json(found[0].folder / "failure.json")["reason"] == found[0].failure
    check_alike(found[1:], alone[:2])


@pytest.mark.slow
def test_an_idle_process_that_died_is_replaced(tmp_path):
    with Workers(1) as executor:
        for seed in (0, 1):
            run = resolve(change(SMALL, seed=seed))
            ((_, outcome),) = executor.map([RunJob(run, tmp_path / "runs" / str(seed), tmp_path)])
            assert outcome == JobOutcome()
            (worker,) = executor.workers
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()


class Odd(InputError):
    """An error that cannot go through a pipe: it asks for more than its text."""

    def __init__(self, text, more):
        super().__init__(text)


@dataclasses.dataclass(frozen=True)
class Square:
    """A job for the executors."""

    number: int

    def run(self):
        if self.number < 0:
            raise InputError(f"{self.number} is negative")
        if self.number == 99:
            raise Odd("odd", None)
        return self.number**2, torch.get_num_threads(), os.getpid()

    def lost(self, reason):
        raise AssertionError(reason)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_executor_runs_every_job_on_one_thread(jobs):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with local_executor(jobs) as executor:
            ended = dict(executor.map(map(Square, range(5))))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert {job.number: outcome[:2] for job, outcome in ended.items()} == {n: (n**2, 1) for n in range(5)}
    elsewhere = {pid for *_, pid in ended.values()} - {os.getpid()}
    assert len(elsewhere) == (0 if jobs == 1 else 2)


@pytest.mark.slow
def test_what_a_job_raises_stops_the_others():
    for jobs in (1, 2):
        with local_executor(jobs) as executor, pytest.raises(InputError, match="-1 is negative"):
            list(executor.map([Square(1), Square(-1), Square(2)]))
    with local_executor(2) as executor, pytest.raises(RuntimeError, match="Odd: odd"):
        list(executor.map([Square(99)]))


def test_workers_exit_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import dataclasses, os, signal\n"
        "from flatsparse.experiments.grid.workers import Workers\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Who:\n"
        "    number: int\n"
        "    def run(self):\n"
        "        return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    print(*(pid for _, pid in Workers(2).map([Who(0), Who(1)])), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    workers = {int(pid) for pid in done.stdout.split()}
    assert workers
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in workers):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its parent")


def test_runs_in_folders_of_other_names_are_found_there_and_may_go_untested(tmp_path):
    how = {"name": lambda run: f"mine/{run.sharpness}-{run.seed}", "test": False, "jobs": 1}
    found = run_grid(RUNS, tmp_path, **how, console=quiet())
    assert [o.folder for o in found] == [tmp_path / "mine" / f"{run.sharpness}-{run.seed}" for run in RUNS]
    assert {o.result.test_accuracy for o in found} == {None}
    assert outcomes(RUNS, tmp_path, how["name"]) == found
    assert [o.result for o in outcomes(RUNS, tmp_path)] == [None] * 4  # not under the names that keys give


def serve_grid(runs, store, jobs):
    loop.CHECKPOINT_SECONDS = 0.0
    run_grid(runs, store, jobs=jobs, console=quiet())


def kill_until_done(store, jobs, kills, source):
    """Kill the grid at random moments, each after one more checkpoint, and begin it again; then let it end."""
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would spend its life on imports
    for turn in range(kills + 1):
        written = {file: file.stat().st_mtime_ns for file in store.glob("runs/*/checkpoint.pt")}
        process = fork.Process(target=serve_grid, args=(RUNS, store, jobs))
        process.start()
        if turn < kills:
            while process.is_alive() and written == {
                f: f.stat().st_mtime_ns for f in store.glob("runs/*/checkpoint.pt")
            }:
                time.sleep(0.001)
            time.sleep(source.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        done = sum(outcome.result is not None for outcome in outcomes(RUNS, store))
        assert process.exitcode == (-signal.SIGKILL if turn < kills else 0), f"{done} done, the kill came too late"


def test_a_grid_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, alone):
    kill_until_done(tmp_path, 1, 3, random.Random(0))
    check_alike(outcomes(RUNS, tmp_path), alone)
    assert not list(tmp_path.glob("runs/*/.*"))


@pytest.mark.slow
def test_a_grid_of_processes_killed_at_random_moments_ends_as_if_undisturbed(tmp_path, alone):
    for turn in range(1):
        kill_until_done(tmp_path / str(turn), 2, 2, random.Random(turn))
        check_alike(outcomes(RUNS, tmp_path / str(turn)), alone)


def test_two_grids_on_one_store_share_its_runs_out(tmp_path, alone):
    """Each run is trained by one of them, once."""
    others = [multiprocessing.get_context("fork").Process(target=note_runs, args=(tmp_path, n)) for n in (0, 1)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    check_alike(outcomes(RUNS, tmp_path / "store"), alone)
    begun = [name for n in (0, 1) for name in (tmp_path / f"began{n}").read_text().split()]
    assert sorted(begun) == sorted(o.folder.name for o in outcomes(RUNS, tmp_path / "store"))


def note_runs(folder, number):
    def noting(run, out, **options):
        with (folder / f"began{number}").open("a") as file:
            file.write(out.name + "\n")
        return loop.train(run, out, **options)

    (folder / f"began{number}").touch()
    job.train, store.RETRY_SECONDS = noting, 0.1
    run_grid(RUNS, folder / "store", jobs=1, console=quiet())


def test_the_table_tells_rate_and_time_left(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("flatsparse.experiments.grid.progress.time.monotonic", lambda: now[0])
    long = resolve(change(SMALL, epochs=10))
    jobs = [RunJob(long, tmp_path / name, tmp_path) for name in "ab"]
    table = ProgressTable("table2", jobs, 3, quiet())
    table.started(tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text("{}\n" * 4)
    now[0] += 20  # 4 epochs: 12 a minute, 6 of this run left and 16 of all
    table.console.print(table.table())
    text = table.console.file.getvalue()
    assert " ".join(text.splitlines()[1].split()) == "digits digitnet rigl 0.9 none seed 0 4/10 12.0 0 min 30 s"
    assert "table2: 0 done, 0 failed, 2 to go, 0 min 20 s, about 1 min 20 s left" in text


def test_what_comes_back_from_afar_is_a_finished_run(tmp_path):
    """Where the store is not shared, all but checkpoints is carried over."""
    run = resolve(SMALL)
    there = RunJob(run, tmp_path / "there" / "runs" / "a", tmp_path / "there")
    here = RunJob(run, tmp_path / "here" / "runs" / "a", tmp_path / "here")
    outcome, files = ray_cluster.run_remotely(there)
    assert outcome == JobOutcome()
    ray_cluster.write_files(here, files)
    check_alike(
        [store.Outcome(run, here.folder, read_result(here.folder), None)],
        [store.Outcome(run, there.folder, read_result(there.folder), None)],
    )


def test_a_cluster_that_is_not_there(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"cluster 127.0.0.1:1 cannot be joined \(.*refused\)"):
        run_grid([SMALL], tmp_path, cluster="127.0.0.1:1", console=quiet())


@pytest.mark.slow
def test_a_cluster_of_two_comes_to_the_numbers_of_one_process(tmp_path, alone):
    pytest.importorskip("ray")
    found = run_grid([*RUNS, DIVERGES], tmp_path, jobs=2, cluster="local", console=quiet())
    check_alike(found[:4], alone)
    assert "the loss became" in found[4].failure


FAMILY = """
import os
import sys
from pathlib import Path

def family():
    "This process and those that come of it."
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            pass
    ours, before = {os.getpid()}, set()
    while ours != before:
        before = set(ours)
        ours |= {child for child, parent in parents.items() if parent in before}
    return ours
"""

LISTENING = """
from flatsparse.experiments.grid.ray_cluster import RayCluster

def sockets(process):
    for file in Path(f"/proc/{process}/fd").iterdir():
        try:
            yield os.readlink(file)
        except OSError:
            pass

cluster = RayCluster("local", 1)
cluster.ray.get(cluster.ray.remote(lambda: None).remote())  # so that there is a worker
ours = {name for process in family() for name in sockets(process)}
for name in ("tcp", "tcp6"):
    for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        _, address, _, state, *_, inode = row.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in ours:
            print(address)
cluster.close()
"""

# The worker that holds the lock of the long run's folder is killed after its first epoch.
KILLED = """
import signal
import threading
import time
from flatsparse.experiments.grid.store import outcomes, run_grid
from tests.experiments.test_grid import RUNS, LONG, quiet

store = Path(sys.argv[1])

def holds(process, lock):
    try:
        return any(os.readlink(file) == str(lock) for file in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False

def kill():
    folder = outcomes([LONG], store)[0].folder
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    for process in family():
        if holds(process, folder / ".lock"):
            print("killed", process)
            os.kill(process, signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
for outcome in run_grid([LONG, *RUNS[:2]], store, jobs=2, cluster="local", console=quiet()):
    print(outcome.failure)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="only Linux tells who listens")
def test_a_cluster_of_this_machine_listens_to_this_machine_alone():
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", FAMILY + LISTENING], capture_output=True, text=True, check=True, timeout=120
    )
    found = {address.rpartition(":")[0] for address in done.stdout.split()}
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells who holds a file")
def test_a_lost_worker_of_a_cluster_costs_its_run_alone(tmp_path, alone):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", FAMILY + KILLED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=240
    )
    killed, reason, *others = [line for line in done.stdout.splitlines() if line.startswith(("killed", "its", "None"))]
    assert killed.startswith("killed")
    assert reason == "its Ray worker was killed, perhaps for lack of memory: try again, with --retry"
    assert others == ["None"] * 2
    found = run_grid([LONG, *RUNS[:2]], tmp_path, jobs=1, console=quiet())  # what failed is not tried again unasked
    assert found[0].failure == reason
    check_alike(found[1:], alone[:2])
    again = run_grid([LONG], tmp_path, jobs=1, retry=True, console=quiet())
    check_alike(again, run_grid([LONG], tmp_path / "undisturbed", jobs=1, console=quiet()))
