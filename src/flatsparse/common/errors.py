"""Errors a user can act on: one line that says what, what was given, what is wanted and what to do."""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input that cannot be used. The message is one line; the command line exits with status 2.

    Attributes:
        is_first: of several processes that end together, this is the one that prints the line; None if that is not known.
    """

    is_first: bool | None = None


def first_line(problem: BaseException) -> str:
    """Return the first line of an error's text: empty if it has none, or if its class, which may be anyone's, fails to tell."""
    try:
        return next(iter(str(problem).splitlines()), "")
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def described(problem: BaseException) -> str:
    """Return an error's kind, and the first line of its text."""
    return f"{type(problem).__name__}: {first_line(problem)}".rstrip()


def shown(value: Any, most: int = 60) -> str:
    """Return the start of a value as Python shows it, or its kind where its class, which may be anyone's, fails to."""
    try:
        return repr(value)[:most]
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"a {type(value).__name__}"


# What a terminal obeys instead of showing it: control characters but for tabs and ends of lines, separators of lines, and
# overrides of the direction of text.
_CONTROLS = [c for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"]
_CONTROLS += [0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}


def harmless(text: str) -> str:
    r"""Return a text with escapes in the place of characters that a terminal obeys instead of showing them.

    >>> print(harmless("\x1b[31mred"))
    \x1b[31mred
    """
    return text.translate(_ESCAPES)


def as_line(text: str) -> str:
    r"""Return a text as one line, with escapes in the place of all that is not printable.

    >>> print(as_line("a\nb"))
    a\nb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to a mistyped one, as a phrase (ours, because a typo deserves an answer)."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.4)
    return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known))}"


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name."""
    return InputError(f"unknown {kind} '{name}' ({nearest(name, known)})")


def as_number(value: Any) -> float:
    """A number of any kind (numpy's, a tensor without dimensions) as Python's own; NaN for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan


def check_sparsity(sparsity: float) -> float:
    """The sparsity, or an error when it is not a fraction in [0, 1)."""
    number = as_number(sparsity)
    if not 0 <= number < 1:
        raise InputError(
            f"sparsity {sparsity} is not in [0, 1): give the fraction of prunable weights to set to zero, e.g. 0.9"
        )
    return float(number)


def check_finite(name: str, value: float, *, minimum: float = 0.0, above: bool = False) -> float:
    """The value, or an error when it is not a finite number of at least (or, with ``above``, over) ``minimum``."""
    number = as_number(value)
    if not abs(number) <= sys.float_info.max or number < minimum or (above and number == minimum):
        wanted = f"over {minimum:g}" if above else f"of at least {minimum:g}"
        raise InputError(f"{name} {value} is not usable: give a finite number {wanted}")
    return float(number)


def check_fraction(name: str, value: float) -> float:
    """The value, or an error when it is not in [0, 1]."""
    number = as_number(value)
    if not 0 <= number <= 1:
        raise InputError(f"{name} {value} is not usable: give a fraction in [0, 1]")
    return float(number)


def check_count(name: str, value: int, *, minimum: int = 1) -> int:
    """The value, or an error when it is not a whole number of at least ``minimum``."""
    number = as_number(value)
    if not isinstance(number, int) or number < minimum:
        raise InputError(f"{name} {value} is not usable: give a whole number of at least {minimum}")
    return number
