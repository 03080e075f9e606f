"""The library that a wheel brought is loaded, while it is of the C beside it; else one is built."""

import shutil

import pytest

from flatsparse.common import building
from flatsparse.common.compiled import Library
from flatsparse.common.errors import InputError


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
        building.build(library.folder, building.in_wheel(library.folder))
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


@pytest.mark.parametrize("content", [b"", b"for another system"])
def test_what_cannot_be_loaded_is_built_here(library, content):
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    file = building.in_wheel(library.folder)
    file.write_bytes(content)
    assert library.load().answer() == 42
    assert file.read_bytes() == content


def test_a_library_that_lacks_a_function_is_not_taken(brought):
    other = Library(brought.folder, lambda loaded: loaded.question, what="the question", instead="ask again")
    with pytest.raises(InputError, match="the question cannot be built here"):
        other.load()
