"""A factory's JSON → the parameters of its instances, as text.  Exact: 0 to 0.3 by 0.1 is four points, 0.3 the last."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

DIMENSIONS = 4
# A step of 1e-9 by mistake should not fill the memory first.
MOST = 100_000


def instances(factory: Mapping[str, Any]) -> list[dict[str, str]]:
    """Parameter → value for each instance, in their order.  Raises ``ValueError`` that says what is wrong."""
    kind = factory["type"]
    if kind == "repeat":
        number = factory.get("number")
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST:
            raise ValueError(f"expected a number of instances from 1 to {MOST}, got {number!r}")
        return [{} for _ in range(number)]
    parameters: Sequence[Mapping[str, Any]] = factory.get("parameters") or ()
    if not parameters:
        raise ValueError("there are no parameters")
    if not isinstance(parameters, list | tuple) or not all(isinstance(each, Mapping) for each in parameters):
        raise ValueError("expected a list of parameters, each an object")
    names: list[Any] = [each.get("name") for each in parameters]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} cannot be the name of a parameter")
        if names.count(name) > 1:
            raise ValueError(f'all parameters must have unique names: "{name}" is used more than once')
    if kind == "zip":
        columns = [_listed(each) for each in parameters]
        lengths = sorted({len(column) for column in columns})
        if len(lengths) > 1:
            raise ValueError(f"the parameters of a zip need as many values each, not {' and '.join(map(str, lengths))}")
        rows: Any = zip(*columns, strict=True)
    else:
        if len(parameters) > DIMENSIONS:
            raise ValueError(f"a sweep has at most {DIMENSIONS} parameters, not {len(parameters)}")
        columns = [_listed(each) if each.get("values") else _range(each) for each in parameters]
        rows = itertools.product(*columns)
    total = len(columns[0]) if kind == "zip" else _product(columns)
    if total > MOST:
        raise ValueError(f"makes {total} jobs, more than {MOST}")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _product(columns: Sequence[Sequence[str]]) -> int:
    total = 1
    for column in columns:
        total *= len(column)
    return total


def _listed(parameter: Mapping[str, Any]) -> list[str]:
    values = parameter.get("values")
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{parameter['name']}: expected a list of values")
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError(f"{value!r} is neither a number nor text")
    return str(value)


def _range(parameter: Mapping[str, Any]) -> list[str]:
    name = parameter["name"]
    start, end, step = (_number(name, key, parameter.get(key)) for key in ("start", "end", "step"))
    if step == 0:
        raise ValueError(f"{name}: the step is 0")
    if (end - start) * step < 0:
        raise ValueError(f"{name}: steps of {step} do not lead from {start} to {end}")
    try:
        count = int((end - start) // step) + 1
    except InvalidOperation:
        count = MOST + 1
    if count > MOST:
        raise ValueError(f"{name}: has more than {MOST} values")
    return [_plain(start + i * step) for i in range(count)]


def _number(name: str, key: str, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{name}: expected a number as {key}, got {value!r}")
    # The shortest decimal that stands for this float is what the user wrote.
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError(f"{name}: expected a number as {key}, got {value!r}")
    return number


def _plain(number: Decimal) -> str:
    """``0.3``, ``10``, ``-2.5``: no exponent, no zeros at the end."""
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
