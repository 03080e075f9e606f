"""Which data are which task, with which networks, and a line for each mistake."""

import sys

import pytest

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.tasks.built_in import TASKS, built_in
from flatsparse.experiments.tasks.make import check_data
from flatsparse.models import LANGUAGE_MODELS, TRANSLATION_MODELS
from tests.experiments.tasks.texts import write_pairs, write_text


def test_each_task_has_a_model_of_its_own():
    for name, task in TASKS.items():
        assert resolve(RunConfig.of(data=name)).model == task.model
        assert task.model in task.models


def test_a_folder_is_known_by_its_files(tmp_path):
    assert built_in(str(write_text(tmp_path / "text"))).models is LANGUAGE_MODELS
    assert built_in(str(write_pairs(tmp_path / "pairs"))).models is TRANSLATION_MODELS
    others = write_pairs(tmp_path / "others", ("fr", "de"))
    with pytest.raises(InputError, match="has sentences in de, fr: give source and target"):
        built_in(str(others))
    assert built_in(f"{others}:fr-de").about == "sentence pairs fr-de"
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train.npz").touch()
    assert built_in(str(tmp_path / "images")) is None
    assert built_in("digits") is built_in("nowhere") is built_in("") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data numbers --model resnet20", "cannot read 'numbers', which is sentence pairs: give transformer_base"),
        ("--data numbers --model gpt2", "--model gpt2 cannot read 'numbers'"),
        ("--data numbers --model resnet2000", "unknown model 'resnet2000'"),
        ("--data digits --model transformer_tiny", "--model transformer_tiny reads text, and 'digits' is images"),
        ("--data digits --vocabulary 100", "--vocabulary is for text"),
        ("--data numbers --label-noise 0.2", "--label-noise is for images with a class each, and 'numbers' is text"),
        ("--data numbers --train-size 10001", "cannot take 10,001 training and 500 validation samples of 'numbers'"),
        ("--data numbers --vocabulary 4", "--vocabulary 4 is not usable"),
        ("--data multi30k", "no multi30k under"),
        ("--data wmt14", "no wmt14 under"),
        ("--lr-schedule inverse-sqrt", "falls from the end of a warm-up: give --warmup over 0"),
        ("--betas 0.9 0.98", "--betas are for --optimizer adamw"),
        ("--optimizer adamw --betas 0.9 1.5", "--betas 0.9 1.5 are not in"),
    ],
)
def test_what_cannot_be_run_gets_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *options.split(), "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def refused(data, match):
    run = resolve(RunConfig.of(data=str(data), vocabulary=90))
    with pytest.raises(InputError, match=match) as caught:
        build(run)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_get_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = write_pairs(tmp_path / "short")
    (short / "test.de").write_text("eins\n")
    refused(short, "test.en' has 40 lines and '.*test.de' 1: give files that are line-aligned")
    half = write_pairs(tmp_path / "half")
    (half / "valid.en").unlink()
    refused(half, "no valid.en and valid.de of half in '.*half'")
    odd = write_pairs(tmp_path / "odd")
    (odd / "train.de").write_bytes(b"\xff\xfe\x00")
    refused(odd, "train.de' cannot be read as UTF-8 text")
    empty = write_pairs(tmp_path / "empty")
    for language in ("en", "de"):
        (empty / f"test.{language}").write_text("")
    refused(empty, "test.en' holds no sentence pairs")
    text = write_text(tmp_path / "text")
    (text / "test.txt").write_text("\n\n")
    refused(text, "test.txt' holds no text")
    (text / "test.txt").unlink()
    refused(text, "no test.txt in '.*text'")


def test_data_are_looked_for_before_a_table_is_run(tmp_path):
    check_data("numbers", None)
    check_data("digits", None)
    with pytest.raises(InputError, match=r"no multi30k under '.*': put multi30k/train.en"):
        check_data("multi30k", tmp_path)
    write_pairs(tmp_path / "multi30k")
    check_data("multi30k", tmp_path)


def test_the_hubs_parquet_files_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = tmp_path / "wmt14" / "de-en"
    folder.mkdir(parents=True)
    rows = [{"de": "eins", "en": "one"}, {"de": "zwei ", "en": "two"}, {"de": "", "en": "three"}]
    for part in ("train", "validation", "test"):
        parquet.write_table(pa.table({"translation": rows}), folder / f"{part}-00000-of-00001.parquet")
    check_data("wmt14", tmp_path)
    from flatsparse.experiments.data.sentences import read_pairs

    parts = read_pairs(folder, "wmt14", ("en", "de"))
    assert parts.test.source == ("one", "two")
    assert parts.test.target == ("eins", "zwei")


@pytest.mark.parametrize("package", ["sentencepiece", "sacrebleu"])
def test_a_package_that_is_not_installed_gets_one_line(package, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, package, None)
    refused(write_pairs(tmp_path / f"without-{package}"), f"{package}, which is not installed: pip install")


def test_the_list_of_data_has_them(capsys):
    main(["list", "data"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*TASKS, "digits", "cifar10"))
    main(["list", "models"])
    assert "transformer_tiny" in capsys.readouterr().out
