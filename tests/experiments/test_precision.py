import warnings

import pytest

from flatsparse.experiments.run import precision
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.loop import train

SMALL = {"train_size": 40, "validation_size": 20, "batch_size": 10, "epochs": 1}


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Lets the processor have the flags that are given."""

    def have(text):
        (tmp_path / "cpuinfo").write_text(text)
        precision._processor_has_bf16.cache_clear()

    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    yield have
    precision._processor_has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("flags : fpu avx512f avx512_bf16 sse", True),
        ("flags : fpu amx_bf16", True),
        ("Features : fp asimd bf16", True),
        ("flags : fpu avx512f avx2", False),
        ("flags : avx512_bf16x", False),
    ],
)
def test_units_for_bf16_are_those_that_the_processor_names(flags, text, there):
    flags(text)
    assert precision.has_bf16("cpu") is there
    assert precision.has_bf16("meta") is False


def test_where_flags_cannot_be_read_torch_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "absent")
    precision._processor_has_bf16.cache_clear()
    assert isinstance(precision.has_bf16("cpu"), bool)
    precision._processor_has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("given", "text", "told"), [("bf16", "sse", 1), ("bf16", "amx_bf16", 0), ("float32", "sse", 0)]
)
def test_bf16_without_units_for_it_is_warned_of(flags, tmp_path, given, text, told):
    flags(text)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(RunConfig.of(**SMALL, precision=given), tmp_path / "run")
    assert sum("--precision bf16" in str(warning.message) for warning in seen) == told
