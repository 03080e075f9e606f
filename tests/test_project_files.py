"""The files around the code agree with pyproject.toml: workflows, pre-commit and the citation."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import flatsparse as fs

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *sorted((ROOT / ".github").rglob("*.yml"))]


def read(file):
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def matrix():
    return read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_yaml_with_content(file):
    assert isinstance(read(file), dict)


def test_every_python_that_is_promised_is_tested(project, matrix):
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"


def test_the_oldest_torch_and_that_of_the_constraints_are_tested(project, matrix):
    (oldest,) = (re.fullmatch(r"torch>=([\d.]+)", entry)[1] for entry in project["dependencies"] if "torch" in entry)
    pinned = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert matrix["torch"] == [f"{oldest}.0", pinned]


def test_the_hooks_have_the_ruff_of_make_lint(project):
    (series,) = (
        re.fullmatch(r"ruff==([\d.]+)\.\*", entry)[1]
        for entry in project["optional-dependencies"]["dev"]
        if "ruff" in entry
    )
    (rev,) = (repo["rev"] for repo in read(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])
    assert rev.startswith(f"v{series}.")


def test_a_release_is_tested_before_it_is_published():
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert (ROOT / jobs["test"]["uses"]).is_file()
    assert set(jobs["publish"]["needs"]) == {"test", "build", "try"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_a_release_publishes_all_that_is_built():
    release = read(".github/workflows/release.yml")["jobs"]
    built = read(release["build"]["uses"])["jobs"]
    names = [
        step["with"]["name"] for job in built.values() for step in job["steps"] if "upload" in step.get("uses", "")
    ]
    assert len(names) == len(built)
    (download,) = (step for step in release["publish"]["steps"] if "download" in step["uses"])
    assert all(fnmatch(name, download["with"]["pattern"]) for name in names)


def test_wheels_are_built_for_the_platforms_that_the_docs_name():
    platforms = [
        entry["platform"]
        for entry in read(".github/workflows/wheels.yml")["jobs"]["compiled"]["strategy"]["matrix"]["include"]
    ]
    said = (ROOT / "docs/accelerate.md").read_text(encoding="utf-8").split("## The kernels")[1]
    assert platforms == ["linux-x86_64", "linux-aarch64", "macos-arm64"]
    assert all(name in said for name in ("Linux (x86-64 and aarch64)", "macOS (arm64)"))


def test_the_citation_is_of_this_version():
    assert read("CITATION.cff")["version"] == fs.__version__


@pytest.mark.parametrize(("workflow", "job"), [("test", "installed"), ("release", "try")])
def test_what_is_built_is_installed_and_tried(workflow, job):
    """By the script that a slow test runs too."""
    steps = read(f".github/workflows/{workflow}.yml")["jobs"][job]["steps"]
    tried = [
        step["run"].split("tests.fresh_install ")[1] for step in steps if "tests.fresh_install " in step.get("run", "")
    ]
    assert [".whl" in line and ".tar.gz" in line for line in tried] == [True]
