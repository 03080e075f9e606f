"""What stress scripts say is kept, and the page of it is what the kept lines give."""

import pytest

from flatsparse.common.json_files import read_json_lines

from . import keep


def test_the_page_is_made_of_its_lines():
    assert keep.PAGE.read_text(encoding="utf-8") == keep.rendered(read_json_lines(keep.DATA))


def test_every_script_is_on_the_page_with_all_its_lines():
    lines = [
        {"script": script, "arguments": [count], "said": f"{count} cases of {script}", "minutes": 1.0}
        for count in ("1", "2")
        for script in keep.SCRIPTS
    ]
    page = keep.rendered(lines)
    for script in keep.SCRIPTS:
        assert (keep.HERE / script).is_file()
        for count in ("1", "2"):
            assert f"| `python tests/stress/{script} {count}` | {count} cases of {script} | 1 |" in page


def test_the_last_line_of_a_script_is_kept_and_a_failure_is_not(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('a case')\nprint('2 cases')\nsys.exit(int(sys.argv[1]))\n")
    assert keep.kept(str(script), ["0"])["said"] == "2 cases"
    with pytest.raises(SystemExit) as end:
        keep.kept(str(script), ["1"])
    assert end.value.code == 1


def test_make_stress_runs_every_script():
    target = (keep.ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"tests/stress/{script} " in target for script in keep.SCRIPTS)
