"""Files of a user's own code that go wrong: an odd error, value or sample at any place that a command calls."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from .calling import OWN, QUICK, Kept, called

HEAD = """
class Speechless(Exception):
    def __str__(self): raise ValueError("no text")
    __repr__ = __str__

class Shouting(str):
    def splitlines(self, *rest): raise RuntimeError("no lines")

class Odd:
    def __repr__(self): raise SystemExit(3)
    __str__ = __len__ = __bool__ = __iter__ = __eq__ = __float__ = __repr__
    __hash__ = None

class Endless:
    def __len__(self): return 3
    def __getitem__(self, index): return self

Escape = type("\\x1b]0;name\\x07", (Exception,), {})
"""
ERRORS = r"""
ValueError('x')
ValueError('a\nb')
ValueError()
Speechless()
ValueError(Speechless())
SystemExit(0)
SystemExit()
SystemExit(Speechless())
GeneratorExit()
BaseException('x')
StopIteration()
StopAsyncIteration()
RecursionError()
MemoryError()
OSError(28, 'No space left on device')
OSError()
BrokenPipeError()
FileNotFoundError(2, 'x', '\x1b[31m')
PermissionError(13, 'x', 'y')
UnicodeDecodeError('utf-8', b'', 0, 1, 'x')
UserWarning('x')
ImportError()
KeyError('\u202e')
ModuleNotFoundError(name='x')
AssertionError()
Escape('\x1b[31m')
Exception('x' * 100000)
Exception(Shouting('x'))
3
None
Odd()
EOFError('\ud800')
NotImplementedError()
torch.OutOfMemoryError('x')
InputError('a\nb')
InputError()
""".strip().splitlines()
VALUES = r"""
None
3
True
float('nan')
float('inf')
10**400
''
'x'
b'x'
[]
()
{}
[[]]
{'x': None}
{'x': 'y'}
{3: 4.0}
{'x': float('nan')}
{'x': 10**400}
{'\x1b': 1.0}
{'': 1.0}
{Odd(): 1.0}
{'x': Odd()}
object()
Odd()
Odd
lambda *a, **k: None
torch.zeros(0)
torch.tensor(float('nan'))
torch.zeros(2, 3)
torch.zeros((), dtype=torch.int64)
torch.zeros(3, requires_grad=True).sum()
torch.zeros(2, 3).to_sparse()
torch.zeros((), dtype=torch.complex64)
range(3)
(x for x in ())
nn.Linear(3, 3)
nn.Linear
nn.Identity()
Endless()
torch.zeros(1, device='meta')
TensorDataset()
numbers(0, 0)
numbers(1, 0)
torch.utils.data.DataLoader(numbers(4, 0))
iter(())
{'x': torch.zeros(2)}
NotImplemented
""".strip().splitlines()
PLACES = {  # the text before which, or in place of which, something odd is put; and what then calls it
    "import": ("from dataclasses", ""),
    "plan": ("        return SET().plan(shapes, steps)", "        "),
    "network": ("    return nn.Sequential(nn.Flatten()", "    "),
    "loss": ("    return (model(batch[0])", "    "),
    "score": ('    return {"error"', "    "),
    "task": ("    return Task(", "    "),
    "train": ("    model = nn.Linear(8, 4)", "    "),
    "trained": ('    return {"size"', "    "),
    "cells": ("    run = dict(", "    "),
}
FIELDS = r"""
lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
numbers(40, 0)
numbers(20, 1)
loss, score
"lower"
"row"
"column"
"own"
"Own"
"ours"
cells=cells
RunConfig.of(
{"smoke": 1, "laptop": 1
SET()
nn.Linear(6, 8)
nn.Linear(192, 16)
class Method
inputs[:, :2].sum(1)
""".strip().splitlines()  # of a task, a cell and a recipe
QUICKLY = ("--epochs", "1", "--batch-size", "20", "--device", "cpu")
CALLS = (
    ("train", *QUICKLY, "--task", "odd.py:task", "--out", "new"),
    ("train", *QUICK, "--device", "cpu", "--model", "odd.py:network", "--out", "new"),
    ("train", *QUICK, "--device", "cpu", "--method", "odd.py:Method", "--out", "new"),
    ("list", "layers", "--task", "odd.py:task"),
    ("list", "layers", "--model", "odd.py:network", "--image", "3", "8", "8"),
    ("list", "layers", "--method", "odd.py:Method", "--model", "digitnet"),
    (
        "compare",
        "odd.py:train",
        "--seeds",
        "1",
        "--sharpness",
        "s2sam",
        "--jobs",
        "1",
        "--device",
        "cpu",
        "--out",
        "new",
    ),
    ("reproduce", "odd.py", "--jobs", "1", "--device", "cpu", "--out", "new"),
    ("doctor", "odd.py"),
)


@st.composite
def own_codes(draw: st.DrawFn) -> tuple[tuple[str, ...], str]:
    """A command, and a file for it in which one thing or two are odd."""
    text = OWN
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        if draw(st.integers(0, 2)):
            before, space = PLACES[draw(st.sampled_from(sorted(PLACES)))]
            odd = draw(
                st.one_of(
                    st.sampled_from(ERRORS).map("raise {}".format), st.sampled_from(VALUES).map("return {}".format)
                )
            )
            if not space:
                odd = odd.replace("return ", "cells = task = train = Method = RECIPE = ")
            text = text.replace(before, f"{space}{odd}\n{before}", 1)
        else:
            field = draw(st.sampled_from(FIELDS))
            text = text.replace(field, draw(st.sampled_from(VALUES)), 1)
    imports = "import torch\nfrom torch import nn\nfrom flatsparse.common.errors import InputError\n"
    return draw(st.sampled_from(CALLS)), imports + HEAD + text


def check(case: tuple[tuple[str, ...], str], files: Kept) -> str:
    """Call a command on a file of code. Returns what came of it."""
    line, text = case
    with files.watched():
        Path("odd.py").write_text(text, encoding="utf-8", errors="surrogatepass")
        outcome = called(line)
    return "refused" if outcome.status else "taken"
