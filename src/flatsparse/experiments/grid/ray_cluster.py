"""The executor on a Ray cluster. Ray is an extra, imported only when it is needed."""

from __future__ import annotations

import os
import socket
import warnings
from typing import Any

from flatsparse.common.errors import InputError, described, first_line
from flatsparse.common.files import write_atomic
from flatsparse.experiments.grid.job import FolderJob, JobOutcome, SomeFolderJob
from flatsparse.experiments.grid.workers import PATIENCE, Executor, one_thread

LOOPBACK = "127.0.0.1"
CLUSTERS = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's own: without clusters of machines it keeps to the loopback address
)


class RayCluster(Executor[SomeFolderJob]):
    """Runs jobs on a Ray cluster, each as a Ray task: one CPU, and one GPU where the run is on ``cuda``.

    The store should be on a file system that all machines share, at the same path. Where it does not, finished runs come back
    as the bytes of their files, but neither checkpoints nor first rounds are shared. Ray's dashboard and its statistics
    are off.

    Args:
        address: ``auto``, ``ray://HOST:PORT``, or ``local`` for a cluster on this machine alone, which no other can reach.
        jobs: the number of parallel runs; by default as many as the cluster has CPUs.

    Raises: InputError when Ray is not installed, or the cluster cannot be joined.
    """

    def __init__(self, address: str, jobs: int | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU keep their view of them
        if address == "local":  # who reaches Ray's ports can run code: let them be this machine's alone
            os.environ[CLUSTERS] = "0"
        try:
            import ray
        except ImportError:
            raise InputError("--cluster needs Ray, which is not installed: pip install 'flatsparse[cluster]'") from None
        try:
            _check_answers(address)
            own: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, configure_logging=False, **own)
        except Exception as problem:  # the system's, and Ray's, which has many kinds for an address that it cannot use
            reason = (first_line(problem) or type(problem).__name__).rstrip(".")
            raise InputError(
                f"--cluster {address} cannot be joined ({reason}): give local, auto or ray://HOST:PORT"
            ) from None
        if address == "local" and ray.util.get_node_ip_address() != LOOPBACK:  # Ray was imported before
            warnings.warn("Ray's ports are open to other machines: close them by a firewall", stacklevel=2)
        self.ray: Any = ray
        self.running: dict[Any, SomeFolderJob] = {}
        self.limit = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def free(self) -> bool:
        return len(self.running) < self.limit

    def submit(self, job: SomeFolderJob) -> None:
        gpus = 1 if job.device.startswith("cuda") else 0
        remote = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_remotely)
        self.running[remote.remote(job.elsewhere())] = job

    def finished(self) -> list[tuple[SomeFolderJob, JobOutcome]]:
        if not self.running:
            return []
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=PATIENCE)
        ended = []
        for reference in done:
            job = self.running.pop(reference)
            try:
                outcome, files = self.ray.get(reference)
                write_files(job, files)
            except self.ray.exceptions.RayError as problem:
                if isinstance(cause := getattr(problem, "cause", None), InputError):
                    raise cause from None  # what a job raises should stop the others too
                outcome = job.lost(_death(self.ray.exceptions, problem))
            ended.append((job, outcome))
        return ended

    def close(self) -> None:
        self.ray.shutdown()


def _death(exceptions: Any, problem: Exception) -> str:
    """Return why a task was lost, and what to do."""
    if isinstance(problem, exceptions.WorkerCrashedError):
        return "its Ray worker was killed, perhaps for lack of memory: try again"
    return f"{described(problem).rstrip('.')}: try again"


def _check_answers(address: str) -> None:
    """Raise OSError at once when a named machine does not answer; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def run_remotely(job: FolderJob) -> tuple[JobOutcome, dict[str, bytes]]:
    """Run a job; return its outcome and the contents of its files, less the checkpoints, the result last."""
    with one_thread():
        outcome = job.run()
    if outcome.busy or not job.folder.is_dir():
        return outcome, {}
    files = [file for file in job.folder.iterdir() if file.is_file()]
    names = [file.name for file in files if file.suffix != ".pt" and not file.name.startswith(".")]
    names.sort(key=lambda name: name in ("result.json", "failure.json"))
    return outcome, {name: (job.folder / name).read_bytes() for name in names}


def write_files(job: FolderJob, files: dict[str, bytes]) -> None:
    """Write a run's files to its folder, unless its result is there."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if not (job.folder / "result.json").is_file():
        for name, content in files.items():
            write_atomic(job.folder / name, content)
