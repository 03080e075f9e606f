"""The library that a wheel brought is loaded, while it is of the C beside it; else one is built."""

import hashlib
import os
import shutil

import pytest

from flatsparse.common import building, compiled
from flatsparse.common.compiled import Library
from flatsparse.common.errors import InputError

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The C of a function, as a library with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "answer.c").write_text("int answer(void) { return 42; }\n")
    return Library(folder, lambda loaded: loaded.answer, what="the answer", instead="ask again")


@pytest.fixture
def brought(library, monkeypatch):
    """The same as an installed wheel has it, on a machine without a compiler."""
    try:
        building.build(library.folder, library.folder)
    except OSError:
        pytest.skip("no C compiler")
    monkeypatch.setenv("CC", "no-such-compiler")
    return library


def test_what_a_wheel_brought_is_loaded_and_nothing_is_built(brought, tmp_path):
    assert brought.load().answer() == 42
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("file", ["answer.c", "answer.h", "new.c", "flags.txt"])
def test_what_was_built_of_other_c_is_not_loaded(brought, file):
    with (brought.folder / file).open("a") as changed:
        changed.write("-DOTHER\n" if file == "flags.txt" else "/* another */\n")
    with pytest.raises(InputError, match=r"the answer cannot be built here .*no-such-compiler"):
        brought.load()


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_library_of_a_wheel_that_is_cut_off_is_not_loaded(brought, share, monkeypatch):
    (file,) = building.built(brought.folder, brought.folder)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    monkeypatch.setattr(
        compiled.ctypes, "CDLL", lambda name: pytest.fail(f"it loads {name}")
    )  # which may kill the process
    with pytest.raises(InputError, match=r"the answer cannot be built here .*no-such-compiler"):
        brought.load()


@needs_compiler
def test_what_cannot_be_loaded_is_built_here(library):
    content = b"for another system"
    digest = hashlib.sha256(content).hexdigest()[:16]
    file = library.folder / f"{building.prefix(library.folder)}-{digest}{building.SUFFIX}"
    file.write_bytes(content)
    assert library.load().answer() == 42
    assert file.read_bytes() == content


def test_a_library_that_lacks_a_function_is_not_taken(brought):
    other = Library(brought.folder, lambda loaded: loaded.question, what="the question", instead="ask again")
    with pytest.raises(InputError, match="the question cannot be built here"):
        other.load()


# -- where it is kept -------------------------------------------------------------------------------------------------


def kept(place):
    return list(place.glob("flatsparse/answers-*"))


@needs_compiler
@pytest.mark.parametrize("given", [None, "", "here"])
def test_without_an_absolute_cache_it_is_kept_in_the_home(library, given, tmp_path, monkeypatch):
    if given is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert library.load().answer() == 42
    assert len(kept(tmp_path / "home" / ".cache")) == 1
    assert not (tmp_path / "here").exists()


@needs_compiler
@pytest.mark.parametrize("home", ["absent", "relative", "unknown", "a file"])
def test_without_a_home_it_is_built_in_a_folder_of_this_process_alone(library, home, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("HOME", "no/where" if home == "relative" else str(tmp_path / home))
    monkeypatch.setenv("USERPROFILE", "no/where" if home == "relative" else str(tmp_path / home))
    if home == "unknown":

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(compiled.Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    seen = loaded_from(monkeypatch)
    assert library.load().answer() == 42
    assert not seen[0].parent.exists()  # any more
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "no").exists()


def loaded_from(monkeypatch):
    """The files that are loaded from now on, each of which lies in a folder that only its owner may enter."""
    seen, load = [], compiled.ctypes.CDLL

    def note(name):
        seen.append(compiled.Path(name))
        assert os.name == "nt" or not seen[-1].parent.stat().st_mode & 0o077
        return load(name)

    monkeypatch.setattr(compiled.ctypes, "CDLL", note)
    return seen


@needs_compiler
def test_from_a_cache_that_is_read_only_what_it_has_is_loaded(library, tmp_path, monkeypatch):
    library.load()
    access = os.access
    monkeypatch.setattr(compiled.os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    with monkeypatch.context() as patch:
        patch.setattr(building, "build", lambda *_: pytest.fail("it is built"))
        assert library.load().answer() == 42
    (library.folder / "answer.c").write_text("int answer(void) { return 43; }\n")
    assert library.load().answer() == 43
    assert len(kept(tmp_path / "cache")) == 1


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no users")
@pytest.mark.parametrize(("mode", "used"), [(0o1777, True), (0o777, False), (0o775, True)])
def test_a_cache_in_a_folder_where_others_may_exchange_it_is_not_used(library, mode, used, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    assert library.load().answer() == 42
    seen = loaded_from(monkeypatch)
    assert library.load().answer() == 42
    assert seen[0].is_relative_to(tmp_path / "cache") == used


def test_without_a_cache_and_a_folder_for_what_is_temporary_one_line_says_so(library, monkeypatch):
    monkeypatch.setattr(compiled, "_cache", lambda: None)

    def nowhere(**_):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(compiled.tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(
        InputError, match=r"\Athe answer cannot be built here \(.*No usable temporary directory[^\n]*\Z"
    ):
        library.load()
