"""Installs distributions as a stranger does, each into a new environment, and runs the examples of the pages there.

    python -m tests.fresh_install dist/*.whl dist/*.tar.gz

First alone: it is imported, the two lines of the quickstart train, and the command says in one line what it lacks. Then with the
extra ``lab``: the example of the README runs, and the command trains. Packages come from where pip finds them, torch as in
``constraints.txt``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.docs.blocks import ROOT, python

MISSING = "flatsparse: error: the command line needs 'tyro': install it with pip install 'flatsparse[lab]'\n"
TRAIN = """
    train --train-size 64 --validation-size 32 --epochs 2 --method rigl --sparsity 0.9 --sharpness s2sam --out run
"""
WHERE = "import flatsparse; print(flatsparse.__version__, flatsparse.__file__)"


@dataclass(frozen=True)
class Fresh:
    """An environment with nothing but pip, and an empty folder to work in.

    Attributes:
        scripts: the folder of its programs.
        work: the folder.
    """

    scripts: Path
    work: Path

    @classmethod
    def made(cls, folder: Path) -> Fresh:
        """Return a new environment in a folder."""
        venv.create(folder / "environment", with_pip=True, symlinks=os.name == "posix")
        scheme = "nt" if os.name == "nt" else "posix_prefix"
        scripts = sysconfig.get_path("scripts", scheme, {"base": str(folder / "environment")})
        (folder / "work").mkdir()
        return cls(Path(scripts), folder / "work")

    def run(self, *words: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in its folder; anything but the expected status ends all."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FLATSPARSE"))
        }
        done = subprocess.run(
            [str(self.scripts / words[0]), *words[1:]],
            cwd=self.work,
            env={**environment, "HOME": str(self.work), **variables},  # what is cached at home is not taken
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != status:
            sys.exit(f"{' '.join(words)[:200]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def install(self, what: str) -> None:
        """Install a distribution, and what it needs."""
        cache = subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False
        )
        kept = ["--cache-dir", cache.stdout.strip()] if cache.returncode == 0 else []
        pip = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *kept]
        self.run(*pip, "--requirement", str(ROOT / "constraints.txt"), what)


def alone(fresh: Fresh) -> None:
    """Check what the library does without its extra."""
    version, file = fresh.run("python", "-c", WHERE).stdout.split(maxsplit=1)
    assert fresh.scripts.parent in Path(file.strip()).parents, file
    print(
        f"  {version} alone: {len(fresh.run('python', '-m', 'pip', 'list', '--format', 'freeze').stdout.split())} packages"
    )
    said = fresh.run("python", "-c", python("docs/quickstart.md")[0]).stdout
    assert "sparsity" in said, said
    for call in (["flatsparse", "list"], ["python", "-m", "flatsparse", "train"]):
        refused = fresh.run(*call, status=2)
        assert (refused.stdout, refused.stderr) == ("", MISSING), refused


def with_lab(fresh: Fresh) -> None:
    """Check what it does with the extra."""
    print(f"  README: {fresh.run('python', '-c', python('README.md')[0]).stdout.strip()}")
    assert "rigl" in fresh.run("flatsparse", "list", "methods").stdout
    fresh.run("flatsparse", *TRAIN.split())
    assert {"result.json", "report.html"} <= {file.name for file in (fresh.work / "run").iterdir()}
    fresh.run("python", "-m", "pip", "check")


def try_out(distribution: Path) -> None:
    """Try one wheel or source distribution, and print how long each part took."""
    print(distribution.name)
    with tempfile.TemporaryDirectory(prefix="flatsparse-", ignore_cleanup_errors=True) as folder:
        fresh, began = Fresh.made(Path(folder)), time.perf_counter()
        for what, check in (("", alone), ("[lab]", with_lab)):
            fresh.install(f"flatsparse{what} @ {distribution.resolve().as_uri()}")
            installed = time.perf_counter()
            check(fresh)
            if not what and distribution.suffix == ".whl" and "-none-any" not in distribution.name:
                fresh.run("python", str(ROOT / "tests/installed_wheel.py"), CC="false")  # it brings its kernels
            print(
                f"  {what or 'alone'}: installed in {installed - began:.0f} s, tried in {time.perf_counter() - installed:.0f} s"
            )
            began = time.perf_counter()


def main() -> None:
    """Try each distribution that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distributions", nargs="+", type=Path)
    for distribution in parser.parse_args().distributions:
        try_out(distribution)


if __name__ == "__main__":
    main()
