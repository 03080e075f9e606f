"""A Python on Linux made to refuse what Windows refuses, as far as that can be had: then each command line that is given runs.

Run as ``python as_windows.py "train --out a" "report"``, in a folder of its own.

- Modules and functions that Windows lacks are absent, and so are ``/proc`` and ``/sys``.
- A file that is open or mapped can be neither removed nor replaced, nor can another be given its name.
- No file or folder is made under a name that Windows does not take.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import shlex
import signal
import sys
from pathlib import Path

import filelock
import rich.console
import torch
import tyro

MODULES = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt", "posix"]
SIGNALS = ["SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGQUIT"]
FUNCTIONS = """
    fork forkpty setsid killpg getpgid getuid geteuid getgid sysconf sysconf_names sched_getaffinity wait4 waitid
    nice uname getloadavg chown lchown fchown mkfifo mknod statvfs confstr chroot pread pwrite posix_spawn sync
    O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_SYNC O_DSYNC O_CLOEXEC
"""
LACKING = ("/proc", "/sys", "/dev/shm")
NAME = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def install() -> None:
    """Change this process; what is imported before keeps what it has."""
    processes = Path("/proc/self")
    links, text = os.listdir, processes.joinpath
    read_link, opened = os.readlink, io.open

    def held(path: object) -> bool:
        """Return whether this process has a file open or mapped."""
        file = os.path.abspath(os.fspath(path))  # type: ignore[call-overload]
        for number in links("/proc/self/fd"):
            try:
                if read_link(f"/proc/self/fd/{number}") == file:
                    return True
            except OSError:  # that of the list itself
                continue
        with opened(text("maps"), encoding="utf-8") as lines:
            return any(line.rstrip("\n").endswith(f" {file}") for line in lines)

    def refuse_held(function, *places):
        @functools.wraps(function)
        def checked(*arguments, **options):
            for place in places:
                if held(arguments[place]):
                    raise PermissionError(13, "it is open: Windows would not do that", os.fspath(arguments[place]))
            return function(*arguments, **options)

        return checked

    def refuse_names(function, place=0):
        @functools.wraps(function)
        def checked(*arguments, **options):
            path = arguments[place]
            if isinstance(path, (str, bytes, os.PathLike)):
                name = os.fsdecode(path)
                if name.startswith(LACKING):
                    raise FileNotFoundError(2, "Windows has no such folder", name)
                check_name(name)
            return function(*arguments, **options)

        return checked

    for name in ("remove", "unlink"):
        setattr(os, name, refuse_held(getattr(os, name), 0))
    for name in ("rename", "replace"):
        setattr(os, name, refuse_names(refuse_held(getattr(os, name), 0, 1), 1))
    for name in ("open", "mkdir"):
        setattr(os, name, refuse_names(getattr(os, name)))
    os.link = refuse_names(os.link, 1)
    io.open = builtins.open = refuse_names(io.open)
    for name in FUNCTIONS.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        delattr(signal, name)
    sys.modules.update(dict.fromkeys(MODULES))


def check_name(path: str) -> None:
    """Raise OSError for a path with a name that Windows does not take."""
    for part in Path(path).parts:
        if part not in (".", "..", os.sep) and NAME.search(part):
            raise OSError(22, "Windows takes no such name", path)


def main() -> None:
    """Import everything, run each command, and show the names of all modules that were imported."""
    assert all((filelock, rich.console, tyro, torch))  # they know Windows themselves
    importlib.import_module("torch._dynamo")
    has_peft = importlib.util.find_spec("peft") is not None
    if has_peft:
        importlib.import_module("peft")  # whose own packages know Windows, too
    before = set(sys.modules)
    install()
    import flatsparse

    for module in pkgutil.walk_packages(flatsparse.__path__, "flatsparse."):
        if not module.name.endswith("__main__") and (has_peft or module.name != "flatsparse.sparse.masked_lora"):
            importlib.import_module(module.name)
    from flatsparse.cli import main as command

    for line in sys.argv[1:]:
        command(shlex.split(line))
    print("\n".join(sorted(name for name in set(sys.modules) - before if name.startswith("flatsparse"))))


if __name__ == "__main__":
    main()
