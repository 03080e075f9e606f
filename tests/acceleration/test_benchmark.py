"""The table of docs/accelerate.md is made of what was measured."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_table_is_made_of_the_measurements(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    spec = importlib.util.spec_from_file_location("benchmarks_acceleration", ROOT / "benchmarks" / "acceleration.py")
    study = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, study)
    spec.loader.exec_module(study)
    records = json.loads(study.DATA.read_text())["records"]
    assert len(records) == len(study.CASES) * len(study.SPARSITIES)
    assert study.table(records) in study.PAGE.read_text(encoding="utf-8")
