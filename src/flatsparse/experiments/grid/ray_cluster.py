"""A Ray cluster that runs tasks. Ray is an extra, imported only when it is asked for."""

from __future__ import annotations

import dataclasses
import os
import socket
import warnings
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.common.files import write_atomic
from flatsparse.experiments.grid.workers import PATIENCE, Crew, End, Task, fail, work
from flatsparse.experiments.run.config import change

LOOPBACK = "127.0.0.1"
CLUSTERS = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's own: without clusters of machines it keeps to the loopback address
)


class OnRay(Crew):
    """A Ray cluster, a Ray task for each run: one CPU, and one GPU where the run is on ``cuda``.

    The store should lie on a file system that all machines see, at the same path. Where it does not, finished runs come back
    as the bytes of their files, but neither checkpoints nor first rounds are shared. Ray's dashboard and its statistics
    are off.

    Args:
        address: ``auto``, ``ray://HOST:PORT``, or ``local`` for a cluster on this machine alone, which no other can reach.
        jobs: runs at once; by default as many as the cluster has CPUs.

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
            _knock(address)
            own: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, configure_logging=False, **own)
        except (OSError, ValueError, RuntimeError) as problem:
            reason = str(problem).splitlines()[0].rstrip(".")
            raise InputError(
                f"--cluster {address} cannot be joined ({reason}): give local, auto or ray://HOST:PORT"
            ) from None
        if address == "local" and ray.util.get_node_ip_address() != LOOPBACK:  # Ray was imported before
            warnings.warn("Ray's ports are open to other machines: close them by a firewall", stacklevel=2)
        self.ray: Any = ray
        self.running: dict[Any, Task] = {}
        self.limit = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def free(self) -> bool:
        return len(self.running) < self.limit

    def begin(self, task: Task) -> None:
        gpus = 1 if task.run.runtime.device.startswith("cuda") else 0
        remote = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(work_far_away)
        place = task.run.dataset.data_dir
        run = change(task.run, data_dir=place and place.resolve())  # workers stand in other folders
        there = dataclasses.replace(task, run=run, folder=task.folder.resolve(), store=task.store.resolve())
        self.running[remote.remote(there)] = task

    def finished(self) -> list[tuple[Task, End]]:
        if not self.running:
            return []
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=PATIENCE)
        ends = []
        for reference in done:
            task = self.running.pop(reference)
            try:
                end, files = self.ray.get(reference)
                bring(task, files)
            except self.ray.exceptions.RayError as problem:
                end = fail(task.folder, f"{type(problem).__name__}: {str(problem).splitlines()[0]}")
            ends.append((task, end))
        return ends

    def close(self) -> None:
        self.ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once whether a named machine answers; Ray itself would try for minutes. Raises: OSError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def work_far_away(task: Task) -> tuple[End, dict[str, bytes]]:
    """Run a task; what it leaves behind, less its checkpoints, the result last."""
    end = work(task)
    if end.busy or not task.folder.is_dir():
        return end, {}
    names = [file.name for file in task.folder.iterdir() if file.suffix != ".pt" and not file.name.startswith(".")]
    names.sort(key=lambda name: name in ("result.json", "failure.json"))
    return end, {name: (task.folder / name).read_bytes() for name in names}


def bring(task: Task, files: dict[str, bytes]) -> None:
    """Put down what came back, where the store does not have it."""
    task.folder.mkdir(parents=True, exist_ok=True)
    if not (task.folder / "result.json").is_file():
        for name, content in files.items():
            write_atomic(task.folder / name, content)
