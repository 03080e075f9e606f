"""The sources say which encoding a text has, and use nothing that Windows lacks without asking whether it is there."""

import ast
from pathlib import Path

import pytest

import flatsparse

from .as_windows import FUNCTIONS, MODULES, SIGNALS

PACKAGE = Path(flatsparse.__file__).parent
ROOT = Path(__file__).parents[2]
LACKING = {*FUNCTIONS.split(), *SIGNALS}


def sources(*folders):
    return {file: ast.parse(file.read_text(encoding="utf-8")) for folder in folders for file in folder.rglob("*.py")}


def encoding_left_out(call):
    """Return whether a call reads or writes a text in the encoding of the machine."""
    function = call.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("run", "Popen", "check_output") and owner == "subprocess":
        return bool({"text", "universal_newlines"} & given.keys())
    if name in ("read_text", "write_text"):
        return True
    if name not in ("open", "fdopen", "TextIOWrapper", "NamedTemporaryFile") or owner in ("os", "Image", "archive"):
        return name == "fdopen"
    words = [node.value for node in (*call.args, *given.values()) if isinstance(node, ast.Constant)]
    return not any(isinstance(word, str) and "b" in word and set(word) <= set("rwxab+") for word in words)


def unguarded(tree):
    """Yield what a source takes from modules of POSIX, or from ``os`` and ``signal``, without asking whether it is there."""
    tried = [
        part for node in ast.walk(tree) if isinstance(node, ast.Try) and expects_absence(node) for part in node.body
    ]
    for node in ast.walk(tree):
        if node in tried:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name in MODULES)
    for statement in [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]:
        text = ast.unparse(statement)
        yield from (
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(statement)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("os", "signal")
            and node.attr in LACKING
            and not any(f"hasattr({node.value.id}, '{node.attr}')" in around for around in (text, *asked(tree, node)))
        )


def expects_absence(attempt):
    """Return whether a ``try`` goes on without a module that is not there."""
    kinds = {handler.type.id for handler in attempt.handlers if isinstance(handler.type, ast.Name)}
    return bool(kinds & {"ImportError", "ModuleNotFoundError"})


def asked(tree, inner):
    """Yield the texts of the functions around a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and inner in ast.walk(node):
            yield ast.unparse(node)


def test_every_text_has_its_encoding():
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file, tree in sources(PACKAGE).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and encoding_left_out(node)
    ]
    assert found == []


def test_nothing_that_windows_lacks_is_used_unasked():
    found = {str(file.relative_to(PACKAGE)): set(unguarded(tree)) for file, tree in sources(PACKAGE).items()}
    assert {file: names for file, names in found.items() if names} == {}


def test_no_test_needs_what_windows_lacks_to_be_collected():
    for file, tree in sources(ROOT / "tests", ROOT / "benchmarks").items():
        top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        assert not set(unguarded(top)), file


@pytest.mark.parametrize(
    ("source", "left_out"),
    [
        ("open('a')", True),
        ("open('a', 'w')", True),
        ("open('a', 'rb')", False),
        ("file.open('a')", True),
        ("file.open('a', encoding='utf-8')", False),
        ("file.write_text('b')", True),
        ("os.open('a', os.O_RDONLY)", False),
        ("subprocess.run(['a'], text=True)", True),
        ("subprocess.run(['a'])", False),
    ],
)
def test_an_encoding_left_out_is_seen(source, left_out):
    assert encoding_left_out(ast.parse(source, mode="eval").body) is left_out


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import fcntl", {"fcntl"}),
        ("try:\n  import fcntl\nexcept ModuleNotFoundError:\n  fcntl = None", set()),
        ("try:\n  import fcntl\nexcept OSError:\n  fcntl = None", {"fcntl"}),
        ("from resource import getrusage", {"resource"}),
        ("code == -signal.SIGKILL", {"signal.SIGKILL"}),
        ("a = os.sysconf('x') if hasattr(os, 'sysconf') else 0", set()),
        ("def f():\n  if not hasattr(os, 'geteuid'):\n    return 0\n  return os.geteuid()", set()),
        ("def f():\n  return hasattr(os, 'geteuid')\nos.geteuid()", {"os.geteuid"}),
        ("os.replace(a, b)", set()),
    ],
)
def test_what_windows_lacks_is_seen(source, seen):
    assert set(unguarded(ast.parse(source))) == seen
