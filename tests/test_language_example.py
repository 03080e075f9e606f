"""examples/language_model.py on tiny models of two kinds: its masks and perplexities against plain forms, and its zeros."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flatsparse as fs
from tests.language_models import CONTEXT, loaded, plain_layers, plain_perplexity, plain_pruned, text, written, zeros

transformers = pytest.importorskip("transformers", reason="the example is for Hugging Face models")
ROOT = Path(__file__).parents[1]
FILES = ("language_model", "language_model_options", "language_model_parts")


@pytest.fixture(scope="module")
def example():
    """The modules of the example, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield {name: importlib.import_module(name) for name in FILES}
        for name in FILES:
            del sys.modules[name]


@pytest.fixture(
    scope="module", params=["gpt2", "llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen", "opt"))]
)
def ran(request, example, tmp_path_factory):
    """What the command wrote and saved, of one model, and what it was given."""
    folder = tmp_path_factory.mktemp(request.param)
    written(folder / "model", request.param)
    train, test = text(folder / "train.txt", 24, seed=0), text(folder / "test.txt", 5, seed=1)
    options = shlex.split("--steps 6 --batch-size 4 --lr 3e-3 --rho 0.1 --seeds 0 1 --calibration 8")
    files = {"model": "model", "text": "train.txt", "held-out": "test.txt", "save": "saved", "out": "out.json"}
    options += [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    example["language_model"].main(options)
    out = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return {"kind": request.param, "folder": folder, "train": train, "test": test, "out": out}


def saved(ran, run):
    return loaded(ran["folder"] / "saved" / f"{run['score']}-{run['arm'].replace(' ', '-')}-{run['seed']}")


def test_perplexities_are_those_of_a_plain_form(ran):
    """Of the dense model, and of every fine-tuned one."""
    value, count = plain_perplexity(loaded(ran["folder"] / "model"), ran["test"])
    assert ran["out"]["dense"] == pytest.approx(value, rel=1e-4)
    assert ran["out"]["tokens"]["predicted"] == count == 5 * (CONTEXT - 1)
    assert len(ran["out"]["runs"]) == 2 * 2 * 3
    for run in ran["out"]["runs"]:
        assert run["perplexity"] == pytest.approx(plain_perplexity(saved(ran, run), ran["test"])[0], rel=1e-4)
    assert len({run["perplexity"] for run in ran["out"]["runs"]}) == 2 * 2 * 3


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_a_pruned_model_is_that_of_a_plain_form_and_its_zeros_stay(ran, score):
    chosen = torch.linspace(0, 23, 8).round().long()
    plain = plain_pruned(loaded(ran["folder"] / "model"), score, ran["train"][chosen])
    assert ran["out"]["pruned"][score] == pytest.approx(plain_perplexity(plain, ran["test"])[0], rel=1e-4)
    expected = zeros(plain)
    assert ran["out"]["layers"] == {name: mask.numel() for name, mask in expected.items()}
    for run in (run for run in ran["out"]["runs"] if run["score"] == score):
        model = saved(ran, run)
        if run["arm"] == "no masks":
            lost = sum(
                int(p[expected[name]].count_nonzero()) for name, p in model.named_parameters() if name in expected
            )
            assert run["zeros_lost"] == lost / sum(int(mask.sum()) for mask in expected.values()) > 0.5
        else:
            assert run["zeros_lost"] == 0
            found = zeros(model)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_embeddings_and_the_output_layer_stay_dense(ran):
    model = loaded(ran["folder"] / "model")
    blocks = [p for block in plain_layers(model) for layer, _ in block.values() for p in [layer.weight]]
    assert sum(ran["out"]["layers"].values()) == sum(p.numel() for p in blocks)
    assert not any("head" in name or "emb" in name or "wte" in name for name in ran["out"]["layers"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small model and texts, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "model", "gpt2")
    text(tmp_path / "train.txt", 24, seed=0)
    return tmp_path


def command(*words):
    return ["--model", "model", "--text", "train.txt", "--steps", "3", "--batch-size", "2", "--seeds", "0", *words]


def test_a_pattern_a_part_of_the_arms_and_the_last_tenth(here, example, capsys):
    words = "--pattern 2:4 --scores wanda --sharpness s2sam --rho 0.1 0.2 --dtype bfloat16 --save saved --out out.json"
    with pytest.warns(UserWarning, match="bfloat16"):  # S²-SAM's
        example["language_model"].main(command(*words.split()))
    out = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert [run["arm"] for run in out["runs"]] == ["s2sam 0.1", "s2sam 0.2", "no masks"]
    assert out["tokens"]["predicted"] == 2 * (CONTEXT - 1)
    model = loaded("saved/wanda-s2sam-0.2-0")
    for block in plain_layers(model):
        for layer, _ in block.values():  # Conv1D: the inputs first
            groups = (layer.weight.T != 0).unflatten(1, (-1, 4)).sum(-1)
            assert (groups == 2).all()
    printed = capsys.readouterr()
    assert "8 matrices" in printed.out
    assert "difference to AdamW" in printed.out
    assert len(printed.err.splitlines()) <= 1
    with pytest.raises(SystemExit) as status:
        example["language_model"].main(
            ["--model", "saved/wanda-s2sam-0.2-0", "--text", "train.txt", "--sparsity", "0.2"]
        )
    assert status.value.code == 2
    assert "has 50% zeros already, and --sparsity 0.2 would train some" in capsys.readouterr().err


def test_the_table_has_means_and_paired_differences_to_none(example):
    values = {"none": (10.0, 12.0, 14.0), "s2sam 0.1": (9.0, 12.0, 12.0), "no masks": (8.0, 9.0, 10.0)}
    runs = [
        {"score": "wanda", "arm": arm, "seed": seed, "perplexity": own[seed], "zeros_lost": float(arm == "no masks")}
        for seed in range(3)
        for arm, own in values.items()
    ]
    _, dense, pruned, *arms = (
        example["language_model"].table({"dense": 7.0, "pruned": {"wanda": 20.0}, "runs": runs}).splitlines()
    )
    assert dense.split() == ["not", "pruned", "not", "7.00"]
    assert pruned.split() == ["wanda", "not", "20.00"]
    # Student's: ± 4.303 · 2/√3 of the mean 12, and ± 4.303 · 1/√3 of the differences −1, 0 and −2.
    assert arms[0].split() == ["wanda", "none", "12.00", "[7.03–16.97]", "0.0%"]
    assert arms[1].split()[1:3] == ["s2sam", "0.1"]
    assert arms[1].split()[-4:] == ["-1.00", "[-3.48,", "+1.48]", "0.0%"]
    assert arms[2].split()[-1] == "100.0%"


def test_the_windows_of_a_run_are_those_of_its_seed_each_once_before_any_twice(example):
    parts = example["language_model_parts"]
    runs = [torch.cat(list(parts.order(10, parts.Training(6, 4), seed))) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert runs[0].shape == (24,)
    assert runs[0][:10].sort().values.tolist() == runs[0][10:20].sort().values.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "nowhere/at/all"], "cannot load 'nowhere/at/all' as a causal language model"),
        (["--model", "damaged"], "cannot load 'damaged' as a causal language model"),
        (["--model", "no_tokenizer"], "a model whose folder has its tokenizer"),
        (["--text", "none.txt"], "there is no file 'none.txt'"),
        (["--text", "binary.txt"], "cannot read 'binary.txt' as UTF-8 text"),
        (["--text", "short.txt"], "has 2 tokens, less than one window of 16"),
        (["--text", "few.txt"], "too few to hold some out: give --held-out"),
        (["--held-out", "none.txt"], "there is no file 'none.txt'"),
        (["--context", "17"], "--context 17 is not usable: give 2 to 16"),
        (["--pattern", "2:4", "--sparsity", "0.8"], "give sparsity=0.5"),
        (["--pattern", "2by4"], "pattern '2by4' is not usable"),
        (["--exclude", "h.7*"], "exclude pattern 'h.7*' matches no layer"),
        (["--sparsity", "1"], "sparsity 1.0 is not in [0, 1)"),
        (["--seeds", "0", "0"], "--seeds has something twice"),
        (["--lr", "-1"], "--lr -1.0 is not usable"),
        (["--rho", "0"], "--rho 0.0 is not usable"),
        (["--steps", "0"], "--steps 0 is not usable"),
        (["--scores", "size"], "invalid choice: 'size'"),
        (["--device", "nothing"], "on nothing ("),
        pytest.param(
            ["--device", "cuda"], "on cuda (", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there")
        ),
        (["--lr", "1e30", "--scores", "magnitude"], "the perplexity is not finite"),
        (["--out", "no/where.json"], "there is no folder 'no'"),
    ],
)
def test_what_cannot_be_used_is_one_line(here, example, capsys, words, says):
    shutil.copytree("model", "damaged")
    Path("damaged/model.safetensors").write_bytes(b"nothing")
    shutil.copytree("model", "no_tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("short.txt").write_text("w1 w2", encoding="utf-8")
    text(Path("few.txt"), 3, seed=0)
    with pytest.raises(SystemExit) as end:
        example["language_model"].main(command(*words))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("language_model: error: ")
    assert says in line


def test_a_tokenizer_of_another_model_is_refused(here, example):
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    with pytest.raises(fs.InputError, match="the model knows 7: they do not fit"):
        example["language_model_parts"].windows(Path("train.txt"), tokenizer, CONTEXT, 7)


@pytest.mark.slow
def test_the_command_ends_with_status_2(here):
    program = [sys.executable, str(ROOT / "examples" / "language_model.py"), *command("--sparsity", "2")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("language_model: error: sparsity 2")
