"""The table of docs/accelerate.md is made of what was measured."""

import importlib.util
import sys
from pathlib import Path

import pytest

from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.bench.sparse_cases import CASES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    spec = importlib.util.spec_from_file_location("benchmarks_acceleration", ROOT / "benchmarks" / "acceleration.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    return script


def test_the_table_is_made_of_the_measurements(study):
    record = read_json(study.DATA)
    assert study.table(record) in study.PAGE.read_text(encoding="utf-8")
    measured = {case["case"]: case["title"] for case in record["cases"]}
    assert measured == {name: CASES[name].title for name in measured}
    assert set(study.CASES) <= set(CASES)
    rows = study.table(record).splitlines()[2:]
    assert len(rows) == len(study.SPARSITIES) * len(set(study.CASES) & set(measured)) > 0


def form(value):
    return {"speed": value and {"value": value, "low": value - 0.1, "high": value + 0.1}, "seconds": [1.0] * 6}


def test_a_record_of_bench_sparse_is_kept_and_shown(study, tmp_path, monkeypatch):
    forms = {"dense": form(None), "accelerated": form(2.0)}
    points = {
        "training": [{"sparsity": 0.9, "forms": forms}],
        "inference": [{"sparsity": 0.9, "forms": {**forms, "accelerated": form(3.0)}}],
    }
    record = {
        "cases": [{"case": "mlp-512", "title": "a net", "points": points}, {"case": "other", "title": "", "points": {}}]
    }
    write_json(tmp_path / "bench.json", record)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end -->\nafter", encoding="utf-8")
    monkeypatch.setattr(study, "DATA", tmp_path / "kept.json")
    monkeypatch.setattr(study, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["acceleration.py", str(tmp_path)])
    study.main()
    assert read_json(tmp_path / "kept.json") == record
    assert page.read_text(encoding="utf-8").splitlines() == [
        "before",
        "<!-- measured -->",
        "| times as fast as dense | zeros | accelerated, training | accelerated, inference |",
        "| --- | --- | --- | --- |",
        "| a net | 90% | 2.00 [1.90–2.10] | 3.00 [2.90–3.10] |",
        "<!-- end -->",
        "after",
    ]
