"""The page on loops of one's own: its code runs and does what it says."""

import re
from pathlib import Path

import torch

from tests.helpers import same

PAGE = Path(__file__).parents[2] / "docs" / "your-loop.md"


def test_the_code_of_the_page_resumes():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(code, names)
    for part, state in zip((names["model"], names["optimizer"], names["training"]), names["saved"], strict=True):
        assert same(part.state_dict(), state)
    assert round(names["training"].sparsity, 2) == 0.8
    assert isinstance(names["optimizer"].base, torch.optim.SGD)
