"""The job of a comparison of a script: one arm with one seed, from its file to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.errors import InputError, as_number, shown
from flatsparse.common.files import corrupt_file
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.schema import NotRequired
from flatsparse.experiments.clock import clock
from flatsparse.experiments.grid.job import JobOutcome, fail, reason_of
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.folder import FAILURE, RESULT, read_failure
from flatsparse.experiments.scripts.arm import Arm
from flatsparse.experiments.scripts.cost import Cost, cost_of
from flatsparse.experiments.scripts.script import Function, Script, seeded

FILES, OUTPUT, TRACEBACK = "files", "output.txt", "traceback.txt"
RESULT_FORM: dict[str, Any] = {
    "scores": {str: float},
    "cost": {"seconds": float, "steps": (int, None), "gradient_evaluations": (int, None), "step_median": (float, None)},
    "warnings": [str],
    "arm": NotRequired({"sharpness": str, "rho": float, "seed": int}),  # younger than some files
}


@dataclass(frozen=True)
class ArmResult:
    """The result of one arm with one seed.

    Attributes:
        scores: the numbers that the function returned; the first is compared.
        warnings: those of ours that it led to.
    """

    scores: dict[str, float]
    cost: Cost
    warnings: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The name of the number that is compared."""
        return next(iter(self.scores))


def read_result(folder: Path, config: RunConfig | None = None) -> ArmResult:
    """Return the result of a finished job. Raises InputError when it is damaged, or of another arm or seed than ``config``."""
    saved = read_json(folder / RESULT, RESULT_FORM)
    if config is not None and saved.get("arm", _arm(config)) != _arm(config):
        name, seed = saved["arm"]["sharpness"], saved["arm"]["seed"]
        raise corrupt_file(folder / RESULT, f"it is that of {name} with seed {seed}")
    if not saved["scores"]:
        raise corrupt_file(folder / RESULT, "it has no scores")
    cost = {field.name: saved["cost"][field.name] for field in dataclasses.fields(Cost)}
    return ArmResult(saved["scores"], Cost(**cost), tuple(saved["warnings"]))


def _arm(config: RunConfig) -> dict[str, Any]:
    return {"sharpness": config.sharpness, "rho": config.rho, "seed": config.seed}


@dataclass(frozen=True)
class ArmJob:
    """One arm with one seed, and its folder.

    Attributes:
        config: what of a run's settings concerns an arm: sharpness, ρ, seed, method and the options of both.
        threads: that torch computes on.
        retry: try again what failed.
    """

    script: Script | Function
    config: RunConfig
    folder: Path
    threads: int = 1
    retry: bool = False

    @property
    def device(self) -> str:
        return self.config.runtime.device

    def elsewhere(self) -> ArmJob:
        return dataclasses.replace(self, folder=self.folder.resolve())

    def run(self) -> JobOutcome:
        """Call the function. Raises InputError for a file that does not run or has changed, which no other arm could run."""
        if (self.folder / RESULT).is_file():
            return JobOutcome()
        failure = None if self.retry else read_failure(self.folder)
        if failure is not None:
            return JobOutcome(failure)
        (self.folder / FILES).mkdir(parents=True, exist_ok=True)
        (self.folder / FAILURE).unlink(missing_ok=True)
        with _own_torch(self.threads), _output_to(self.folder / OUTPUT), self.script.loaded() as train:
            try:
                result = self._measure(train)
            except KeyboardInterrupt:
                raise
            except BaseException as problem:  # whatever it is, the other arms go on
                return self._fail(problem)
        write_json(self.folder / RESULT, {**dataclasses.asdict(result), "arm": _arm(self.config)})
        return JobOutcome()

    def _measure(self, train: Any) -> ArmResult:
        arm = Arm(self.config, (self.folder / FILES).resolve())
        with seeded(arm.seed), _our_warnings() as ours:
            began = clock()
            returned = train(arm)
            seconds = clock() - began
            arm.warn_of_plain_training()
        return ArmResult(checked_scores(returned), cost_of(seconds, list(arm.meters.values())), tuple(ours))

    def _fail(self, problem: BaseException) -> JobOutcome:
        """Write down a failure, with the line of the script that it came from."""
        frames = traceback.extract_tb(problem.__traceback__)
        file = str(getattr(self.script, "file", ""))
        lines = [frame.lineno for frame in frames if frame.filename == file]
        where = f" (line {lines[-1]} of {Path(file).name})" if lines else ""
        with contextlib.suppress(OSError):
            text = "".join(traceback.format_exception(problem))
            (self.folder / TRACEBACK).write_text(text, encoding="utf-8", errors="replace")
        return fail(self.folder, f"{reason_of(problem)}{where}", problem)

    def lost(self, reason: str) -> JobOutcome:
        """Write down that the process of the job died."""
        return fail(self.folder, f"{reason}, with --retry")


def checked_scores(returned: Any) -> dict[str, float]:
    """Return the numbers of a training function. Raises InputError for anything but a dict of finite ones."""
    if not isinstance(returned, Mapping) or not returned:
        got = "an empty dict" if isinstance(returned, Mapping) else type(returned).__name__
        raise InputError(f'the function returned {got}: return a dict of floats, such as {{"accuracy": 0.9}}')
    scores = {}
    for name, value in returned.items():
        number = as_number(value)
        if not isinstance(name, str) or not abs(number) <= sys.float_info.max:
            raise InputError(
                f"the function returned {shown(name)}: {shown(value, 40)}, which is no finite number with a name"
            )
        scores[name] = float(number)
    return scores


@contextlib.contextmanager
def _own_torch(threads: int) -> Iterator[None]:
    """A context in which torch computes on a number of threads; the modes of torch that it leaves are those it found."""
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_grad_enabled(before[2])


class _Redirected:
    """A stream that stands for another, which changes from job to job: loggers keep the one that they once met."""

    def __init__(self) -> None:
        self.target: Any = sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


_output: Any = _Redirected()


@contextlib.contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """A context in which what is printed goes to a file, for arms run side by side."""
    before = _output.target
    with file.open("w", encoding="utf-8", errors="replace", buffering=1) as stream:
        _output.target = stream
        try:
            with contextlib.redirect_stdout(_output), contextlib.redirect_stderr(_output):
                yield
        finally:
            _output.target = before


@contextlib.contextmanager
def _our_warnings() -> Iterator[list[str]]:
    """A context that notes the warnings that this package gives, each once; all are shown as ever."""
    ours: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **options: Any) -> None:
            text = " ".join(str(message).split())
            if _is_ours() and text not in ours:
                ours.append(text)
            show(message, *rest, **options)

        warnings.showwarning = note
        yield ours


def _is_ours() -> bool:
    """Return whether a warning that is being shown was given by this package."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).startswith("flatsparse.")
