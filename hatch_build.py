"""Compiles the C into wheels: hatchling runs this hook when it builds one from a checkout or a source distribution.

Where that cannot be done the wheel is for any platform, and the C is compiled at its first use, if at all. Editable installs
do that too.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledLibraries(BuildHookInterface):
    """Puts each library beside its C and gives the wheel the tag of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries, unless the wheel is an editable one."""
        if version == "editable":
            return
        if os.name != "posix":
            self.app.display_warning("flatsparse: this wheel holds no compiled library, there is none for this system")
            return
        tag = _platform()
        building = _building(Path(self.root))
        self._folder = tempfile.TemporaryDirectory(prefix="flatsparse-")
        files = {}
        try:
            for library in building.libraries():
                built = building.build(library, Path(self._folder.name))
                files[str(built)] = str(Path("flatsparse", library.relative_to(building.PACKAGE), built.name))
        except (OSError, subprocess.SubprocessError) as problem:
            self.app.display_warning(
                f"flatsparse: this wheel holds no compiled library ({building.last_line(problem)}); where there is a C"
                " compiler it is built at first use"
            )
            return
        build_data["force_include"].update(files)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _platform() -> str:
    """The platform's tag; on macOS that of the oldest system asked for, which the compiler reads from the same variable."""
    if sys.platform == "darwin":
        oldest = os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "11.0")
        return f"macosx_{oldest.replace('.', '_')}_{platform.machine()}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def _building(root: Path) -> ModuleType:
    """The module that knows what is compiled and how; the package itself needs torch."""
    spec = importlib.util.spec_from_file_location("building", root / "src/flatsparse/common/building.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
