"""Recursions over T compiled for any shape, and how long that took.

The neurons of a network are small operations on large tensors, T times in a row; a compiler makes
one pass over memory of them.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FORMS = 64
_spent: list[float] = []


@functools.cache
def compiled(form: Callable[..., Any]) -> Callable[..., Any]:
    """A recursion compiled for any shape; as it is, with one line said, without a compiler."""
    if not torch.cuda.is_available() and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        warnings.warn("no C++ compiler found: neurons run without the fused kernel", stacklevel=2)
        return form
    kernel = torch.compile(form, dynamic=True)
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    shapes: Any = importlib.import_module("torch.fx.experimental._config")
    known: set[tuple[Any, ...]] = set()

    def run(*arguments: Any, **named: Any) -> Any:
        arguments = tuple(_alone(each) for each in arguments)
        named = {name: _alone(each) for name, each in named.items()}
        seen = tuple(_form(each) for each in (*arguments, *named.values()))
        if seen in known:
            return kernel(*arguments, **named)
        began = time.monotonic()
        # each T and static input compiles anew: past the usual limit it would fall back silently;
        # a batch as large as a layer is wide must not count as another form
        with dynamo.patch(recompile_limit=FORMS), shapes.patch(use_duck_shape=False):
            found = kernel(*arguments, **named)
        known.add(seen)
        _spent.append(time.monotonic() - began)
        return found

    return run


def seconds_compiling() -> float:
    """Seconds of this process in the first run of each form, which compiles it where need be."""
    return sum(_spent)


def _alone(argument: Any) -> Any:
    """A tensor that is no view any more: how its base lies would count as another form."""
    return argument.data if isinstance(argument, Tensor) and argument._is_view() else argument


def _form(argument: Any) -> Any:
    """What compilation may depend on: of a tensor its shape, order in memory and precision."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    return argument
