"""Schemas of JSON values, and the check that a value follows one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

Schema = Any  # of a JSON value, see schema_error
POSITIVE = object()  # the schema of numbers above 0


@dataclass(frozen=True)
class NotRequired:
    """The schema of a key that may be missing."""

    schema: Schema


def schema_error(value: Any, schema: Schema, name: str = "it") -> str | None:
    """The first place where a JSON value departs from a schema, as text; None when it follows it.

    Ours, because a checksum says that a file is what was written, and not who wrote it. A schema is a type (``float`` is
    any number), ``POSITIVE``, None, a set of texts, a tuple of schemas one of which must match, a list of one schema for all
    entries or of one for each, or a dict with the schemas of keys, required unless ``NotRequired``; its key ``str`` stands for
    every other key.

    Args:
        name: of the value, for the text.

    >>> schema_error({"a": [1, "x"]}, {"a": [float]})
    'a[1] is of the wrong kind'
    >>> schema_error({}, {"a": int})
    "it has no 'a'"
    """
    wrong = f"{name} is of the wrong kind"
    if isinstance(schema, NotRequired):
        return schema_error(value, schema.schema, name)
    if isinstance(schema, tuple):
        return None if any(schema_error(value, one) is None for one in schema) else wrong
    if isinstance(schema, set):
        return None if isinstance(value, str) and value in schema else wrong
    if schema is float or schema is POSITIVE:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number and not (isinstance(value, int) and abs(value) > sys.float_info.max)
        return None if fits and (schema is float or value > 0) else wrong
    if not isinstance(schema, (list, dict)):
        kind = type(None) if schema is None else schema
        return None if isinstance(value, kind) and (schema is bool or not isinstance(value, bool)) else wrong
    if not isinstance(value, type(schema)):
        return wrong
    if isinstance(schema, list):
        schemas = schema * len(value) if len(schema) == 1 else schema
        if len(value) != len(schemas):
            return f"{name} has {len(value)} entries, not {len(schemas)}"
        parts = [(entry, schemas[index], f"{name}[{index}]") for index, entry in enumerate(value)]
    else:
        required = (key for key, one in schema.items() if key is not str and not isinstance(one, NotRequired))
        missing = next((key for key in required if key not in value), None)
        if missing is not None:
            return f"{name} has no '{missing}'"
        known = [key for key in value if key in schema or str in schema]
        parts = [
            (value[key], schema.get(key, schema.get(str)), key if name == "it" else f"{name}.{key}") for key in known
        ]
    return next((error for part in parts if (error := schema_error(*part)) is not None), None)


def form_of(kind: Any) -> Schema:
    """Return the form that a field of a type has in JSON."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return set(parts)
    if get_origin(kind) is tuple:
        return [form_of(part) for part in parts if part is not Ellipsis]
    if parts:
        return tuple(form_of(part) for part in parts)
    return {Path: str, type(None): None}.get(kind, kind)
