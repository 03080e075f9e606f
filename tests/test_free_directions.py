"""The study of free directions: its page is made of its data, and its pieces are what they say."""

import pytest
import torch
from torch import nn

from flatsparse.common.json_files import read_json_lines
from flatsparse.experiments.run.config import change
from flatsparse.measure.theory import s2sam_rest
from tests.benchmark_scripts import importable

with importable():
    import free_directions as study
    import free_directions_page as page
    import free_directions_tried as tried


def test_the_page_is_made_of_the_data():
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(read_json_lines(study.DATA))


def test_the_data_is_whole():
    records = read_json_lines(study.DATA)
    assert len(records) == sum(map(len, study.parts()))
    assert page.standing(records) == ""
    assert page.standing(records[1:]) == f"{len(records) - 1} of {len(records)} measurements are there"


def test_directions_are_what_their_names_say():
    p = nn.Parameter(torch.tensor([3.0, 4.0, 0.0]))
    gradients = [{p: torch.tensor([1.0, -2.0, 0.0])}, {p: torch.tensor([3.0, 2.0, 0.0])}]
    told = {}
    for name, (make, _, _) in tried.DIRECTIONS.items():
        direction = make()
        for gradient in gradients:
            told[name] = direction(None, gradient)[p]
    expected = {
        "previous": [3, 2, 0], "average 0.5": [2, 0, 0], "average 0.9": [1.2, -1.6, 0], "average 0.97": [1.06, -1.88, 0],
        "down 0.9": [-1.2, 1.6, 0], "extrapolated": [5, 6, 0], "sign": [1, 1, 0], "by weight": [27, 32, 0],
    }  # fmt: skip
    for name, values in expected.items():
        torch.testing.assert_close(told[name], torch.tensor(values, dtype=torch.float32))
    assert float(told["equal layers"].norm()) == pytest.approx(1)
    assert float(told["weighted layers"].norm()) == pytest.approx(5)
    assert told["random"][2] == 0
    assert set(told) == {*expected, "equal layers", "weighted layers", "random"}


def test_rivals_gain_at_the_steps_and_on_the_batches_of_the_study():
    records = read_json_lines(study.DATA)
    for rival in (r for r in records if r["kind"] == "rivals"):
        key = {name: rival[name] for name in ("sharpness", "label_noise", "seed")}
        (gain,) = (r for r in records if r["kind"] == "gain" and key.items() <= r.items())
        for rho, found in rival["gain"].items():
            assert set(found) == set(tried.RIVALS)
            thirds = gain["gain"][rho]
            for name in (
                "sam",
                "previous",
            ):  # which both have: the study's means are of thirds, nearly as long as each other
                assert found[name] == pytest.approx(sum(thirds[name]) / 3, rel=0.02)


def test_on_the_bowl_the_previous_gradient_rests_where_theory_says():
    found = study.Bowl("previous").run()
    assert found["rest"] == pytest.approx(s2sam_rest(0.1, 2.0, 1.0), rel=1e-3)


def test_another_batch_has_no_scan_of_the_coming_one():
    run = change(study.SETTING, train_size=130, epochs=2, seed=3)
    for step, (parts, (inputs, _)) in enumerate(study.trained(run)):
        if step < 2 * parts.steps_per_epoch:
            others, _ = study.another(parts, step)
            assert (inputs[:, None] - others[None]).abs().flatten(2).amax(2).min() > 0
