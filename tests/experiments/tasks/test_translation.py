"""Runs of translation: BLEU, losses over tokens, and all that a run promises."""

import os
from pathlib import Path

import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.data.vocabulary import Subwords
from flatsparse.experiments.recipes import wmt14
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.watcher import Silent
from flatsparse.experiments.tasks.bleu import bleu
from flatsparse.experiments.tasks.make import make_task
from tests.experiments.tasks.texts import write_pairs

DATA = Path(os.environ.get("FLATSPARSE_DATA", "data"))
QUICK = RunConfig.of(
    data="numbers",
    train_size=60,
    validation_size=20,
    batch_size=120,
    epochs=3,
    optimizer="adamw",
    betas=(0.9, 0.98),
    lr=3e-3,
    lr_schedule="inverse-sqrt",
    warmup=0.5,
    label_smoothing=0.1,
    method="mest",
    distribution="uniform",
    sparsity=0.9,
    sharpness="s2sam",
    eval_batch_size=2000,
)


def task_of(run):
    run = resolve(run)
    return make_task(run.dataset, model=run.model, seed=run.seed, label_noise=0.0, label_smoothing=0.1)


def same_weights(one, other):
    for file, load in (("model.safetensors", load_tensors), ("masks.safetensors", load_masks)):
        ours, theirs = (load(folder / file)[0] for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    return loop.train(QUICK, out), out


@pytest.mark.slow
def test_a_short_run_is_neither_without_hope_nor_at_its_ceiling(tmp_path):
    """The dense net of ``reproduce wmt14 --scale smoke``: what compares methods must leave room above and below."""
    [dense, *_] = wmt14.RECIPE.cells("smoke")
    result = loop.train(dense.run, tmp_path / "run")
    assert 10 < result.value < 90


def test_a_sparse_run_keeps_its_sparsity_exactly_and_says_how_bleu_was_counted(finished):
    result, out = finished
    masks, _ = load_masks(out / "masks.safetensors")
    weights, _ = load_tensors(out / "model.safetensors")
    for name, mask in masks.items():  # uniform: each layer as sparse
        assert abs(int(mask.sum()) - 0.1 * mask.numel()) < 1
        assert not weights[name][~mask].any()
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * total)
    assert result.sparsity.prunable == 1 - round(0.1 * total) / total
    written = read_json(out / "result.json")
    assert list(written["scores"]) == list(written["validation_scores"]) == ["BLEU", "token accuracy"]
    assert written["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert (written["better"], written["model"], written["test_accuracy"]) == ("higher", "transformer_tiny", None)
    assert "task" not in written
    first = (out / "vocabulary.model").read_text().splitlines()[:5]
    assert first == ["<pad>", "<start>", "<end>", "<unk>", "-"]


def test_a_finished_run_is_read_again(finished):
    result, out = finished
    read = load_run(out)
    test = read.task.splits.test
    again = read.task.evaluate(read.model, test.batches(2000), len(test), detailed=True)
    assert again.scores == result.scores
    assert again.loss == pytest.approx(result.test_loss)


def test_a_resumed_run_equals_one_that_never_stopped(finished, tmp_path):
    class Stopped(BaseException):
        pass

    class StopAfterTwo(Silent):
        def finished_epoch(self, record):
            if record.epoch == 2:
                raise Stopped

    with pytest.raises(Stopped):
        loop.train(QUICK, tmp_path / "run", watcher=StopAfterTwo())
    result = loop.train(QUICK, tmp_path / "run", resume=True)
    assert result.scores == finished[0].scores
    same_weights(tmp_path / "run", finished[1])


def test_bleu_is_sacrebleus():
    said = ["ein und zwanzig tausend drei", "sieben hundert ein", "zwölf"]
    meant = ["ein und zwanzig tausend drei", "sieben hundert eins", "elf"]
    score, signature = bleu(said, meant)
    metric = sacrebleu.BLEU()
    assert score == metric.corpus_score(said, [meant]).score == sacrebleu.corpus_bleu(said, [meant]).score
    assert signature == str(metric.get_signature())


def test_losses_are_means_over_tokens_whatever_the_padding():
    task = task_of(QUICK)
    torch.manual_seed(0)
    model = task.fresh().eval()
    train = task.splits.train
    total, tokens, smooth = 0.0, 0, 0.0
    with torch.no_grad():
        for batch in train.batches(1):  # each pair alone: nothing is padded
            logits = task.logits(model, batch.content)[0]
            targets = batch.content.target[0, 1:]
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            smooth += float(F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1))
            tokens += len(targets)
        for size in (1, 100, 10_000):
            measured = task.evaluate(model, train.batches(size), len(train))
            assert measured.loss == pytest.approx(total / tokens, rel=1e-5)
            terms = list(task.terms(model, train.batches(size), len(train)))
            assert float(sum(terms)) == pytest.approx(total / tokens, rel=1e-5)
        [batch] = train.batches(10_000)
        content = batch.content
        assert float(task.loss(model, content)) == pytest.approx(smooth / tokens, rel=1e-5)
        wider = content._replace(source=F.pad(content.source, (0, 3)), target=F.pad(content.target, (0, 5)))
        assert float(task.loss(model, wider)) == pytest.approx(smooth / tokens, rel=1e-5)
        parts = [
            (part.samples / part.whole) * float(task.loss(model, part.content))
            for rank in range(3)
            for part in train.batches(10_000, shard=slice(rank, None, 3))
        ]
        assert sum(parts) == pytest.approx(smooth / tokens, rel=1e-5)


def test_tokens_of_padding_are_neither_right_nor_wrong():
    task = task_of(QUICK)
    torch.manual_seed(0)
    model = task.fresh().eval()
    train = task.splits.train
    scores = [task.evaluate(model, train.batches(size), len(train)).scores["token accuracy"] for size in (1, 10_000)]
    assert scores[0] == pytest.approx(scores[1])


def test_the_test_is_translated_by_beam_search_and_validation_greedily(monkeypatch):
    from flatsparse.experiments.tasks import translation

    beams = []
    task = task_of(QUICK)

    def translate(model, source, beam):
        beams.append(beam)
        return [[] for _ in source]

    monkeypatch.setattr(translation, "translate", translate)
    model = task.fresh().eval()
    for detailed in (False, True):
        task.evaluate(model, task.splits.validation.batches(10_000), 20, detailed=detailed)
    assert beams == [1, 4]


def test_adam_gets_its_decay_rates_and_a_warm_up_of_half_an_epoch():
    parts = build(resolve(QUICK))
    assert {group["betas"] for group in parts.optimizer.param_groups} == {(0.9, 0.98)}
    assert {group["betas"] for group in build(resolve(change(QUICK, betas=None))).optimizer.param_groups} == {
        (0.9, 0.999)
    }
    rising = 0.5 * parts.steps_per_epoch
    rates = []
    for _ in range(3 * parts.steps_per_epoch):
        rates.append(parts.schedule.get_last_lr()[0])
        parts.optimizer.step()
        parts.schedule.step()
    wanted = [3e-3 * min((step + 1) / rising, (rising / (step + 1)) ** 0.5) for step in range(len(rates))]
    assert rates == pytest.approx(wanted)


def test_a_folder_of_sentences_is_translated_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_pairs(tmp_path / "mine")
    options = "--model transformer_tiny --vocabulary 90 --train-size 40 --epochs 1 --batch-size 400 --method rigl"
    main(["train", "--data", str(folder), *options.split(), "--out", str(tmp_path / "run")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "40 training, 40 validation and 40 test sentences in 90 tokens" in printed
    assert "test BLEU" in printed
    learned = Subwords((tmp_path / "run" / "vocabulary.model").read_bytes())
    assert len(learned) == 90
    result = read_json(tmp_path / "run" / "result.json")
    assert result["data"] == str(folder)
    back = RunConfig.of(data=f"{folder}:de-en", vocabulary=90, validation_size=0)
    assert task_of(back).splits.test.texts[0] == "two"
    options = "--images 20 --points 3 --pairs 1 --jobs 1 --hessian-images 0"
    main(["landscape", str(tmp_path / "run"), *options.split(), "--out", str(tmp_path / "surface")])
    record = read_json(tmp_path / "surface" / "landscape.json")["runs"][0]
    assert (record["unit"], record["scores"]) == ("sentences", result["scores"])


def test_pairs_of_more_tokens_than_a_limit_are_left_out_of_training(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_pairs(tmp_path / "mine")
    for language, word in (("en", "one"), ("de", "eins")):
        with (folder / f"train.{language}").open("a") as stream:
            stream.write(" ".join([word] * 300) + "\n")
    task = task_of(RunConfig.of(data=str(folder), vocabulary=90))
    assert len(task.splits.train) == 600
    assert task.notes == ("1 training pairs of more than 256 tokens are left out",)


@pytest.mark.skipif(not (DATA / "multi30k" / "train.en").is_file(), reason="needs Multi30k in FLATSPARSE_DATA")
def test_multi30k_is_read_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = task_of(RunConfig.of(data="multi30k", data_dir=DATA))
    assert [len(split) for split in (task.splits.train, task.splits.validation, task.splits.test)] == [
        29_000,
        1014,
        1000,
    ]
    assert len(task.vocabulary) == 8000
    assert task.splits.test.texts[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
    for text in task.splits.validation.texts[:100]:
        [tokens] = task.vocabulary.encode([text])
        assert task.vocabulary.decode(tokens) == text
