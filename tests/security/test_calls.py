"""What could execute code is called in known places only, and is told not to; every flag that runs a file says so."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "flatsparse"
ROOT = SOURCE.parents[1]

# Whoever adds a line here says in SECURITY.md what is read or run, and has a test in this folder.
ALLOWED = {
    "common/checkpoints.py": {"torch.load"},
    "sparse/import_masks.py": {"torch.load"},
    "experiments/data/image_arrays.py": {"np.load"},
    "experiments/data/corrupted.py": {"np.load"},
    "experiments/data/cifar.py": {"pickle.Unpickler"},
    "experiments/data/sending.py": {"pickle.loads"},  # of what another process of the same run has sent
    "experiments/grid/workers.py": {"pickle.loads"},  # of what the line itself has pickled
    "experiments/data/tables.py": {"datasets.load_dataset"},
    "common/plugins.py": {"spec.loader.exec_module"},  # a file that the user names
    "diagnosis/script.py": {"runpy.run_path"},  # the script that is diagnosed
    "experiments/run/build.py": {"torch.compile"},
    "common/building.py": {"subprocess.run"},  # the C compiler
    "common/compiled.py": {"ctypes.CDLL"},
}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
ASKED = re.compile(
    r"(torch|np|numpy|joblib|dill|cloudpickle|marshal|yaml)(\.\w+)*\.\w*load\w*|(pickle|_pickle|marshal|dill|cloudpickle|joblib)\.(?!.*Error)"
    r"\w+|shelve\.\w+|eval|exec|compile|__import__|execfile|torch\.compile|runpy\.\w+|code\.\w+|.*exec_module|subprocess\.\w+"
    r"|os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)|ctypes\.(CDLL|cdll|PyDLL)\w*|datasets\.load\w+|.*extract(all)?"
    r"|.*\.hub\.\w+|.*unpack_archive"
)
PASSED_OVER = {"pickle.dumps", "safetensors.torch.load"}


def called(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    """What is called, and of what classes inherit, by their dotted names."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
        elif isinstance(node, ast.ClassDef):
            found += [(ast.unparse(base), node) for base in node.bases]
    return found


def asked(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    return [(name, node) for name, node in called(tree) if ASKED.fullmatch(name) and name not in PASSED_OVER]


@functools.cache
def trees() -> dict[str, ast.AST]:
    return {
        file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in SOURCE.rglob("*.py")
    }


def test_what_can_execute_code_is_called_in_known_places_only():
    found = {file: {name for name, _ in asked(tree)} for file, tree in trees().items()}
    assert {file: names for file, names in found.items() if names} == ALLOWED


def test_readers_of_arrays_and_checkpoints_are_told_to_execute_nothing():
    count = 0
    for file, tree in trees().items():
        for name, call in asked(tree):
            if name in SAFE:
                option, value = SAFE[name]
                given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg == option}
                assert given == {option: value}, (file, name)
                count += 1
    assert count == 4


def test_no_module_is_imported_by_names_that_hide_what_it_is():
    """Else the calls above could be missed: ``from pickle import loads``, ``import numpy as n``."""
    hidden = {"pickle", "torch", "numpy", "subprocess", "runpy", "marshal", "ctypes", "datasets", "shelve", "yaml"}
    names = {"load", "loads", "system", "run", "Popen", "CDLL", "run_path", "Unpickler", "load_dataset", "exec_module"}
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in {*hidden, "os", "importlib.util"}:
                assert names.isdisjoint(alias.name for alias in node.names), file
            if isinstance(node, ast.Import):
                odd = {alias.asname for alias in node.names if alias.name in hidden and alias.asname}
                assert odd <= {"np"}, file


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "numpy.load(f)",
        "pickle.load(f)",
        "class A(pickle.Unpickler): pass",
        "yaml.load(f)",
        "yaml.full_load(f)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "torch.hub.load(f)",
        "torch.jit.load(f)",
        "joblib.load(f)",
        "subprocess.run(text)",
        "archive.extractall(f)",
        "spec.loader.exec_module(m)",
    ],
)
def test_a_call_that_can_execute_code_is_seen(line):
    assert len(asked(ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line", ["model.eval()", "re.compile(p)", "pickle.PicklingError()", "safetensors.torch.load(b)", "json.loads(t)"]
)
def test_a_call_that_cannot_is_not(line):
    assert not asked(ast.parse(line))


def helps() -> list[tuple[str, str]]:
    """The texts of the command line's options that speak of a Python file, with their files."""
    options = (SOURCE / "cli", SOURCE / "experiments")
    texts = []
    for folder in options:
        for file in folder.rglob("*.py"):
            for kind in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(kind, ast.ClassDef):
                    continue
                for before, node in zip(kind.body, kind.body[1:], strict=False):
                    if isinstance(before, ast.AnnAssign) and isinstance(node, ast.Expr):
                        text = " ".join(str(getattr(node.value, "value", "")).split())
                        if re.search(r"\.py\b|of your own", text) and "tracker" not in text:
                            texts.append((f"{file.name}: {ast.unparse(before.target)}", text))
    return texts


def test_every_option_that_runs_a_file_says_so():
    found = helps()
    assert len(found) >= 10
    silent = [where for where, text in found if "code is" not in text]
    assert not silent


def test_the_security_page_names_every_option_that_runs_a_file():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    _, page = page.split("## What executes code")
    for word in ("--method", "--model", "--task", "reproduce", "compare", "doctor", "evaluate", "export", "landscape"):
        assert word in page, word
