"""Safe evaluation of the arithmetic expressions in math nodes.

An expression is parsed with Python's grammar and evaluated node by node; only arithmetic and the
functions of ComfyUI's math node are allowed. Nothing is executed as code.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from latent_ladder.errors import WorkflowError

Number = int | float

_MAX_LENGTH = 2000
_MAX_EXPONENT = 4000
_MAX_BITS = 100_000


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise WorkflowError(f"the exponent {exponent} is larger than {_MAX_EXPONENT}")
    if isinstance(base, int) and base.bit_length() * abs(exponent) > _MAX_BITS:
        raise WorkflowError("the power has too many digits")
    return base**exponent


def _sum(*terms: Any) -> Any:
    return sum(terms[0]) if len(terms) == 1 and isinstance(terms[0], list) else sum(terms)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": _sum, "min": min, "max": max, "abs": abs, "round": round, "pow": _power,
    "sqrt": math.sqrt, "ceil": math.ceil, "floor": math.floor, "log": math.log,
    "log2": math.log2, "log10": math.log10, "sin": math.sin, "cos": math.cos, "tan": math.tan,
    "int": int, "float": float, "len": len,
}  # fmt: skip

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(expression: str, names: Mapping[str, Any]) -> Number:
    """Return the value of an expression in which ``names`` are defined.

    Booleans count as numbers, as in Python. Raises :class:`WorkflowError` if the expression is not
    arithmetic, uses an unknown name or does not give a finite number.
    """
    if len(expression) > _MAX_LENGTH:
        raise WorkflowError(
            f"the expression has {len(expression)} characters, at most {_MAX_LENGTH}"
        )
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        result = _evaluate(tree.body, names)
    except (SyntaxError, ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as e:
        raise WorkflowError(f"{expression!r} cannot be evaluated: {e}") from e
    if not isinstance(result, int | float) or not math.isfinite(result):
        raise WorkflowError(f"{expression!r} gives {result!r}, expected a number")
    return result


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Name(id=name):
            raise WorkflowError(
                f"{name} is not connected", f"connected inputs: {', '.join(names) or 'none'}"
            )
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.UnaryOp(op=unary, operand=operand) if type(unary) in _UNARY:
            return _UNARY[type(unary)](_evaluate(operand, names))
        case ast.BoolOp(op=operation, values=terms):
            return _evaluate_boolean(isinstance(operation, ast.And), terms, names)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _evaluate(body if _evaluate(test, names) else orelse, names)
        case ast.Compare():
            return _compare(node, names)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_evaluate(one, names) for one in args))
    raise WorkflowError(
        f"{ast.unparse(node)!r} is not arithmetic", f"allowed functions: {', '.join(FUNCTIONS)}"
    )


def _evaluate_boolean(is_and: bool, terms: list[ast.expr], names: Mapping[str, Any]) -> Any:
    value: Any = is_and
    for term in terms:
        value = _evaluate(term, names)
        if bool(value) is not is_and:
            break
    return value


def _compare(node: ast.Compare, names: Mapping[str, Any]) -> bool:
    left = _evaluate(node.left, names)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        if type(op) not in _COMPARISONS:
            raise WorkflowError(f"{ast.unparse(node)!r} is not arithmetic")
        right = _evaluate(comparator, names)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True
