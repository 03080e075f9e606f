"""Every code block of the README and the docs: Python runs, commands parse, make's targets and files exist."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

import flatsparse as fs
from flatsparse.cli import main
from tests.docs.blocks import BLOCK, PAGES, ROOT, commands, python, run
from tests.helpers import same

WITH_PYTHON = [page for page in PAGES if python(page)]
STARTED = [  # by torchrun
    (page, words[words.index("flatsparse") :])
    for page in PAGES
    for words in commands(page, "torchrun")
    if "flatsparse" in words
]
COMMANDS = [
    *((page, words) for page in PAGES for words in commands(page, "flatsparse") if words != ["flatsparse", "export"]),
    *STARTED,
]
EVERYWHERE = {name: [words for page in PAGES for words in commands(page, name)] for name in ("make", "python")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in, whose files can be imported as long as a test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def check_readme(names):
    assert names["correct"].float().mean() > 0.9
    assert names["training"].sparsity == pytest.approx(0.9, abs=1e-3)


def check_resuming(names):
    for part, state in zip((names["model"], names["optimizer"], names["training"]), names["saved"], strict=True):
        assert same(part.state_dict(), state)
    assert round(names["training"].sparsity, 2) == 0.8
    assert isinstance(names["optimizer"].base, torch.optim.SGD)


def check_export(names):
    assert {n: m.tolist() for n, m in names["training"].masks.items()} == {
        n: m.tolist() for n, m in names["before"].items() if not m.all()
    }
    weights = dict(names["model"].named_parameters())
    for name in ("3", "6"):
        expected = weights[f"{name}.weight"].detach().numpy()
        assert np.array_equal(names["dense_weight"](name, expected.shape), expected)
    inputs = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(names["sparse"](inputs), names["model"].eval()(inputs), atol=1e-5)
    assert same(names["fresh"].state_dict(), names["tuned"].state_dict())
    assert 0 < names["size"].changed < 0.1 * names["size"].total


def check_method(names):
    training = names["training"]
    assert training.method == "drawn"
    assert training.sparsity == pytest.approx(0.9, abs=1e-4)
    assert [step for step in range(1, 31) if training.due(step)] == [10, 20, 30]
    assert training.due(10)[0].dense_gradient


def check_channels(names):
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        outputs = [names[name].eval()(images) for name in ("model", "small", "again")]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert same(outputs[1], outputs[2])
    weights = [sum(p.numel() for p in names[name].parameters()) for name in ("model", "small")]
    assert weights[1] < weights[0]


def check_comparison(names):
    row = names["table"].row("s2sam")
    assert row.difference.n == 2
    assert row.verdict in ("helps", "hurts", "within noise")


def check_masks(names):
    assert {n: m.tolist() for n, m in names["masks"].items()} == {
        n: m.tolist() for n, m in names["training"].masks.items()
    }


def check_language_model(names):
    assert list(names["training"].masks) == ["1.weight"]
    assert not any(weight[~mask].any() for weight, mask in weights_and_masks(names))


def check_recipe(names):
    assert {cell.row for cell in names["RECIPE"].cells("smoke")} == {"SET"}


def check_corruptions(names):
    assert set(names["found"]) == {"clean", "mean", "by"}
    assert {len(accuracies) for accuracies in names["found"]["by"].values()} == {5}
    assert len(names["table"].by) == 19
    assert len(names["parts"]) == 5
    assert names["published"].lacking


def check_doctor(names):
    assert [finding.name for finding in names["findings"]] == ["base-stepped"]
    assert [finding.name for finding in names["findings_now"]] == ["base-stepped"]


def check_import(names):
    assert all(not mask.all() for mask in names["masks"].values())
    assert names["training"].sparsity == pytest.approx(0.9, abs=1e-3)
    assert names["tuning"].sparsity == pytest.approx(0.99, abs=1e-3)
    assert Path("delta.safetensors").is_file()
    for name, mask in names["tuning"].masks.items():
        assert same(names["model"].state_dict()[name][~mask], names["base"][name][~mask])


def check_own_loop(names):
    assert names["accuracy"](names["model"]) > 85
    assert names["identical"]
    assert names["training"].sparsity == pytest.approx(0.9, abs=1e-3)
    assert not any(weight[~mask].any() for weight, mask in weights_and_masks(names))


def check_pruned(names):
    training, weights = names["mlp_training"], dict(names["mlp"].named_parameters())
    assert training.sparsity == pytest.approx(0.9, abs=1e-3)
    assert {n: m.tolist() for n, m in training.masks.items()} == {n: m.tolist() for n, m in names["before"].items()}
    assert not any(weights[name][~mask].any() for name, mask in training.masks.items())
    assert names["training"].sparsity == pytest.approx(0.8, abs=1e-2)
    assert names["training"].steps_taken == 20
    before, after = fs.masks_from("pruned-bert"), fs.masks_from("sparse-bert")
    pruned = names["training"].masks  # files do not tell of padding tokens, whose rows were zero too
    assert pruned.keys() <= before.keys()
    assert all(before[name].equal(mask) for name, mask in pruned.items())
    assert not any((after[name] & ~mask).any() for name, mask in pruned.items())
    assert not same(names["small"].state_dict(), names["model"].state_dict())


def weights_and_masks(names):
    weights = dict(names["model"].named_parameters())
    return [(weights[name], mask) for name, mask in names["training"].masks.items()]


def check_whether_it_helped(names):
    """S²-SAM gains on a net that learns wrong labels by heart, noise does not, and early stopping is a rival."""
    rows = {name: names["table"].row(name) for name in ("none", "s2sam", "random")}
    assert rows["s2sam"].difference.low > 0
    assert rows["random"].difference.mean < rows["s2sam"].difference.low
    assert names["brief"].row("none").mean > rows["none"].mean


CHECKS = {
    "README.md": check_readme,
    "docs/add-a-method.md": check_method,
    "docs/channels.md": check_channels,
    "docs/compare-your-own-loop.md": check_comparison,
    "docs/doctor.md": check_doctor,
    "docs/export.md": check_export,
    "docs/language-models.md": check_language_model,
    "docs/notebooks/did-it-help.md": check_whether_it_helped,
    "docs/notebooks/own-loop.md": check_own_loop,
    "docs/pruned-model.md": check_pruned,
    "docs/reproduce.md": check_recipe,
    "docs/run-folder.md": check_masks,
    "docs/sparsify.md": check_import,
    "docs/robustness.md": check_corruptions,
    "docs/your-loop.md": check_resuming,
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs_in_order_and_does_what_it_says(page):
    CHECKS.get(page, lambda names: None)(run(page))


@pytest.mark.slow
def test_the_script_for_many_processes_runs_under_torchrun(here):
    run("docs/compiled-and-distributed.md")
    (words,) = (words for words in commands("docs/compiled-and-distributed.md", "torchrun") if "train.py" in words)
    program = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stderr
    assert "sparsity 90" in told.stdout
    assert (here / "model.pt").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_no_code_hides_in_another_kind_of_block(page):
    for match in BLOCK.finditer(PAGES[page].read_text(encoding="utf-8")):
        assert match["language"] in ("", "python")
        assert match["language"] == "python" or not re.search(
            r"^\s*(import|from|def|with) ", match["text"], re.MULTILINE
        )


def test_every_check_is_of_a_page():
    assert set(CHECKS) <= set(WITH_PYTHON)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_is_understood(page, words, monkeypatch):
    parse, parsed = tyro.extras.subcommand_cli_from_dict, []

    def parsed_only(*arguments, **options):
        parsed.append(parse(*arguments, **options))
        return lambda: None

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parsed_only)
    main(words[1:])
    assert type(parsed[0]).__name__.lower() == words[1]


@pytest.fixture(scope="module")
def options():
    """All options of all commands, and of the example that has a command line of its own."""
    (table,) = re.findall(
        r"^HELP = {\n(.*?)^}",
        (ROOT / "examples/language_model_options.py").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    found = {f"--{name.replace('_', '-')}" for name in re.findall(r'^ +"(\w+)":', table, re.MULTILINE)}
    for command in {words[1] for _, words in COMMANDS}:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
            main([command, "--help"])
        found |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*", told.getvalue()))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_options_are_there(page, options):
    """Also those that a sentence names by themselves."""
    of_others = {"--nproc-per-node", "--max-restarts", "--help", "--first", "--work"}  # torchrun's, and of scripts
    named = re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGES[page].read_text(encoding="utf-8"))
    assert set(named) - of_others <= options


def test_a_command_with_an_unknown_option_is_not_understood():
    with pytest.raises(SystemExit) as end:
        main(["train", "--no-such-option"])
    assert end.value.code == 2


def test_what_make_and_python_are_asked_for_is_there():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {target for _, target, *_ in EVERYWHERE["make"]} <= set(targets)
    assert all((ROOT / file).is_file() for _, file, *_ in EVERYWHERE["python"] if file.endswith(".py"))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for file, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", PAGES[page].read_text(encoding="utf-8")):
        if re.match(r"https?:", file):
            continue
        target = PAGES[page].parent / file if file else PAGES[page]
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"
