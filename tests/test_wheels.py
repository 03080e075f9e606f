"""Wheels hold the compiled libraries where they could be built, and none where not; what is installed computes with them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from flatsparse.common import building

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FOLDERS = ["acceleration/kernels", "sam/kernel"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked."""
    pytest.importorskip("hatchling", reason="builds wheels")
    folder = tmp_path_factory.mktemp("source")
    hatchling("sdist", folder, ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel of the source distribution, built with the machine's compiler."""
    try:
        building.build(building.PACKAGE / FOLDERS[1], tmp_path_factory.mktemp("tried"))
    except (OSError, subprocess.SubprocessError) as problem:
        pytest.skip(f"no C compiler: {building.last_line(problem)}")
    folder = tmp_path_factory.mktemp("wheel")
    hatchling("wheel", folder, source)
    return only(folder)


def hatchling(target, folder, root, **environment):
    """Build something of the project at root into a folder. Returns what was said."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def only(folder):
    (file,) = folder.glob("*.whl")
    return file


def libraries(wheel):
    with zipfile.ZipFile(wheel) as packed:
        return sorted(name for name in packed.namelist() if name.endswith(building.SUFFIX))


def about(wheel):
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/WHEEL"))
        return packed.read(name).decode().splitlines()


def test_every_folder_of_c_becomes_a_library():
    assert [folder.relative_to(building.PACKAGE).as_posix() for folder in building.libraries()] == FOLDERS


def test_a_wheel_holds_the_libraries_and_is_for_this_platform_and_any_python(wheel):
    inside = libraries(wheel)
    assert len(inside) == len(FOLDERS)
    for name, folder in zip(inside, FOLDERS, strict=True):
        assert name.startswith(f"flatsparse/{folder}/{building.prefix(building.PACKAGE / folder)}-")
    _, _, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    assert {f"Tag: py3-none-{platform}", "Root-Is-Purelib: false"} < set(about(wheel))


def test_an_installed_wheel_computes_where_there_is_no_compiler(wheel, tmp_path):
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    environment = {"PATH": "", "CC": "false", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, str(ROOT / "tests/installed_wheel.py")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path / "site")) == len(FOLDERS)
    assert not list((tmp_path / ".cache").rglob("*"))


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_the_wheel_is_for_any_platform_and_one_line_says_why(source, compiler, tmp_path):
    said = hatchling("wheel", tmp_path, source, CC=compiler).splitlines()
    (line,) = (line for line in said if "no compiled library" in line)
    assert compiler in line
    assert only(tmp_path).stem.endswith("-py3-none-any")
    assert not libraries(only(tmp_path))
    assert "Root-Is-Purelib: true" in about(only(tmp_path))


def test_an_editable_install_compiles_nothing(monkeypatch):
    pytest.importorskip("hatchling", reason="builds wheels")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_building", lambda root: pytest.fail("it compiles"))
    data = {"force_include": {}, "pure_python": True}
    module.CompiledLibraries(str(ROOT), {}, None, None, "", "wheel").initialize("editable", data)
    assert data == {"force_include": {}, "pure_python": True}


@pytest.mark.slow
def test_what_is_built_is_installed_and_runs_the_examples_of_the_pages(source, wheel, tmp_path):
    """Two new environments, with torch; needs what pip needs."""
    archive = next(source.parent.glob("*.tar.gz"))
    call = [sys.executable, "-m", "tests.fresh_install", str(wheel), str(archive)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("README: test accuracy") == 2


def test_the_examples_that_are_tried_after_an_installation_are_there():
    from tests.docs.blocks import python

    two_lines, example = python("docs/quickstart.md")[0], python("README.md")[0]
    assert "sklearn" not in two_lines
    assert all("fs.sparsify(" in code and "fs.S2SAM(" in code for code in (two_lines, example))
