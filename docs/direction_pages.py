"""The text of docs/directions: a page per direction of S²-SAM, from its docstring and from what it keeps in a step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from page_text import table, unwrapped
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.sam.directions import DIRECTIONS, Direction

INDEX = """# Directions

Where `fs.S2SAM` perturbs the weights before it takes its gradient: `direction=` in Python, `--sharpness` in commands.

{directions}

{others}

## One of your own

A function of the optimizer and the gradients just used that gives a direction for each parameter. Its length does not count; ρ
does. With an attribute `downhill = True` the perturbation goes against it. It takes a line in `DIRECTIONS` of
`flatsparse.sam.directions` to have it in commands too.

<!-- run
{setup}-->

```python
def signs(optimizer, gradients):
    return {{p: g.sign() for p, g in gradients.items()}}


optimizer = fs.S2SAM(base, rho=0.05, direction=signs).follow(model)
```

[Free directions](../free-directions.md) measures which of them come close to SAM's. These pages are made by `make docs`;
change the docstrings instead.
"""
SETUP = """import torch
import flatsparse as fs

model = fs.models.digitnet()
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
"""
PAGE = """# `{name}`

{doc}

<!-- run
{setup}-->

```python
optimizer = fs.S2SAM(base, rho=0.05, direction="{name}").follow(model)
```

{table}

[Free directions](../free-directions.md) says how near to SAM's it comes, [SAM and S²-SAM](../sharpness.md) how ρ is chosen.
"""


def pages() -> dict[str, str]:
    """The text of every file in the folder, by its name."""
    rows = [[f"[`{name}`]({name}.md)", f"`{kind}`", SHARPNESS[kind]] for name, kind in kinds().items()]
    others = [[f"`{kind}`", about] for kind, about in SHARPNESS.items() if kind not in kinds().values()]
    index = INDEX.format(
        directions=table(["direction", "`--sharpness`", "the gradient is taken"], rows),
        others="Other choices of `--sharpness`, which are no directions:\n\n" + table(["`--sharpness`", "is"], others),
        setup=SETUP,
    )
    return {"README.md": index, **{f"{name}.md": page(name) for name in DIRECTIONS}}


def kinds() -> dict[str, str]:
    """The name of each direction on the command line."""
    return {name: next(kind for kind in SHARPNESS if SHARPNESS[kind] == d.summary) for name, d in DIRECTIONS.items()}


def page(name: str) -> str:
    direction = DIRECTIONS[name]
    doc = unwrapped(inspect.cleandoc(direction.find.__doc__ or ""))
    return PAGE.format(name=name, doc=doc, setup=SETUP, table=table(["", ""], rows(name, direction)))


def rows(name: str, direction: Direction) -> list[list[str]]:
    up, down = "with it", "against it, since the loss falls along it"
    outside = "by itself, as gradients and state are"
    buffers = kept(name)
    made = "yes" if wrapped(name).is_packable() else "no: it has as many numbers as the whole weights"
    return [
        ["on the command line", f"`--sharpness {kinds()[name]}`"],
        ["the perturbation goes", down if direction.downhill else up],
        [
            "zero outside the masks",
            outside if direction.within_masks else "set to zero there, before its norm is taken",
        ],
        [
            "memory beside the base's",
            f"{buffers:g} × the weights" + (", the perturbed weights" if buffers == 1 else ""),
        ],
        ["packed by [`fs.accelerate`](../accelerate.md)", made],
    ]


def wrapped(name: str) -> fs.S2SAM:
    """S²-SAM along a direction after two steps of a net that is small, but otherwise like any."""
    model = nn.Linear(8, 8, bias=False)
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), direction=name).follow(model)
    for _ in range(2):
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def kept(name: str) -> float:
    """How many numbers a direction keeps from step to step for each weight, beside SGD's momentum."""
    optimizer = wrapped(name)
    entries: list[Any] = [value for entry in optimizer.state.values() for value in entry.values()]
    numbers = sum(value.numel() for value in entries if isinstance(value, Tensor) and value.numel() > 1)
    return numbers / sum(p.numel() for group in optimizer.param_groups for p in group["params"]) - 1
