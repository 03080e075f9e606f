"""The tables of docs/accelerate.md are made of what was measured."""

import importlib.util
import sys
from pathlib import Path

from flatsparse.common.json_files import read_json, read_json_lines

ROOT = Path(__file__).parent.parent.parent


def loaded(monkeypatch, name):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_made_of_the_measurements(monkeypatch):
    study = loaded(monkeypatch, "acceleration")
    text = study.PAGE.read_text(encoding="utf-8")
    assert study.page() == text
    for name, (threads, make) in study.TABLES.items():
        assert f"<!-- measured{name and ' '}{name} -->\n{make(read_json(study.DATA[threads]))}\n<!-- end -->" in text


def test_the_table_of_whole_runs_is_made_of_their_lines(monkeypatch):
    study = loaded(monkeypatch, "accelerated_runs")
    text = study.PAGE.read_text(encoding="utf-8")
    assert study.page() == text
    assert study.table(read_json_lines(study.DATA)) in text
