"""Constraints between fields, such as `data.batch_size * np <= 512`.

Python's parser reads the text. Only the nodes that this module lists are walked, nothing is
evaluated as code.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hvd_train.errors import UserError

LONGEST, DEEPEST = 500, 50
"""Characters of a constraint, and levels of nesting in it."""
_WORDS = {"true": True, "false": False, "null": None}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}


def _power(base: float, exponent: float) -> float:
    """Return `base ** exponent`; of floats, so that it takes no time and overflows."""
    return math.pow(base, exponent)


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EXPECTED = "expected a comparison of fields, such as data.batch_size * np <= 512"


@functools.cache
def parse(text: str) -> ast.expr:
    """Return the checked tree of a constraint; UserError says what is not allowed in it."""
    if len(text) > LONGEST:
        raise UserError(f"longer than {LONGEST} characters; split it")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"cannot be read; {_EXPECTED}") from None
    if not _is_truth(tree):
        raise UserError(f"has no answer of true or false; {_EXPECTED}")
    if _depth(tree) > DEEPEST:
        raise UserError(f"nested more than {DEEPEST} times; split it")
    for problem in _problems(tree):
        raise UserError(f"{problem}; {_EXPECTED}")
    return tree


def names(text: str) -> list[str]:
    """Return the fields that the constraint names, in the order of their first use."""
    return list(dict.fromkeys(_names(parse(text))))


def holds(text: str, values: Mapping[str, Any]) -> bool:
    """Return True if the constraint holds for `values` by field, or if a field that it names has no value.

    A division by zero or a power without a value does not hold. UserError if the values are of
    types that cannot be compared or computed with.
    """
    tree = parse(text)
    if any(name not in values for name in _names(tree)):
        return True
    try:
        return bool(_value(tree, values))
    except (ArithmeticError, ValueError):
        return False
    except TypeError as error:
        at = ", ".join(f"{n}={values[n]!r}" for n in names(text))
        raise UserError(f"constraint '{text}': cannot be computed for {at}: {error}") from None


def _is_truth(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _children(node: ast.expr) -> list[ast.expr]:
    """Return the operands of a node, without the parts of a dotted name and the name of a function."""
    if isinstance(node, ast.Attribute | ast.Name):
        return []
    if isinstance(node, ast.Call):
        return node.args
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _depth(node: ast.expr, above: int = 0) -> int:
    """Return the levels of nesting; of deeper trees than allowed, some number beyond."""
    if above > DEEPEST:
        return above
    return max((_depth(child, above + 1) for child in _children(node)), default=above)


def _problems(node: ast.expr) -> Iterator[str]:
    """Yield what is not allowed in `node`."""
    if not _is_allowed(node):
        yield f"'{ast.unparse(node)}' is not allowed"
    for child in _children(node):
        yield from _problems(child)


def _is_allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value))
        case ast.Name() | ast.Attribute():
            return _dotted(node) is not None
        case ast.BinOp(op=op):
            return type(op) in _ARITHMETIC
        case ast.UnaryOp(op=op):
            return isinstance(op, ast.USub | ast.Not)
        case ast.Compare(ops=ops):
            return all(type(op) in _COMPARISONS for op in ops)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return name in _FUNCTIONS and (len(args) == 1 if name == "abs" else len(args) > 1)
    return isinstance(node, ast.BoolOp)


def _dotted(node: ast.expr) -> str | None:
    """Return `a.b.c` of a name with dots, None for an attribute of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    above = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{above}.{node.attr}" if above and isinstance(node, ast.Attribute) else None


def _names(node: ast.expr) -> Iterator[str]:
    name = _dotted(node)
    if name is not None and name not in _WORDS:
        yield name
    for child in _children(node):
        yield from _names(child)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Return the value of a checked node."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(left, values), _number(right, values))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, values)
        case ast.UnaryOp(operand=operand):
            return not _value(operand, values)
        case ast.BoolOp(op=op, values=operands):
            answers = (bool(_value(operand, values)) for operand in operands)
            return all(answers) if isinstance(op, ast.And) else any(answers)
        case ast.Compare(left=left, ops=ops, comparators=right):
            parts = [_value(part, values) for part in (left, *right)]
            return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(ops, parts, parts[1:], strict=False))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_number(a, values) for a in args))
    name = _dotted(node) or ""
    return _WORDS[name] if name in _WORDS else values[name]


def _number(node: ast.expr, values: Mapping[str, Any]) -> float:
    """Return the number of `node`. Texts and lists are no operands: `"a" * 10**9` would fill the memory."""
    value = _value(node, values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
