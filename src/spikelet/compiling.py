"""Recursions over T compiled for any shape, and how long that took.

The neurons of a network are small operations on large tensors, T times in a row; a compiler makes
one pass over memory of them.
"""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

FORMS = 64
_spent: list[float] = []
_told: set[str] = set()  # types of devices for which it was said that nothing is compiled


@functools.cache
def compiled(form: Callable[..., Any]) -> Callable[..., Any]:
    """A recursion compiled for any shape; as it is, with one line said, where that fails.

    Whether it can be compiled for tensors of a device, an attempt tells: a compiler that is found
    may not work, and one that is not on the path may be known to torch.
    """
    kernel = torch.compile(form, dynamic=True)
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    shapes: Any = importlib.import_module("torch.fx.experimental._config")
    known: set[tuple[Any, ...]] = set()
    failed: set[str] = set()  # types of devices that it cannot be compiled for

    def first(*arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            # each T and static input compiles anew: past the usual limit it would fall back
            # silently; a batch as large as a layer is wide must not count as another form
            with dynamo.patch(recompile_limit=FORMS), shapes.patch(use_duck_shape=False):
                return kernel(*arguments, **named)
        finally:
            _spent.append(time.monotonic() - began)

    def run(*arguments: Any, **named: Any) -> Any:
        arguments = tuple(_alone(each) for each in arguments)
        named = {name: _alone(each) for name, each in named.items()}
        values = (*arguments, *named.values())
        device = _device_type(values)
        if device in failed:
            return form(*arguments, **named)
        seen = _form(values)
        try:
            found = (kernel if seen in known else first)(*arguments, **named)
        except _failures() as error:
            _excuse(device, error)
            failed.add(device)
        else:
            known.add(seen)
            return found
        return form(*arguments, **named)

    return run


def compiles(device: torch.device) -> bool:
    """Whether recursions can be compiled for a device: a small one is, the first time."""
    compiled(_small)(torch.zeros(2, device=device))
    return device.type not in _told


def _small(values: Tensor) -> Tensor:
    return values + 1


def _failures() -> tuple[type[Exception], ...]:
    """What torch raises where a backend, Triton or a compiler fails; no error of a computation."""
    dynamo: Any = importlib.import_module("torch._dynamo.exc")
    return (dynamo.ShortenTraceback,)


def _excuse(device: str, error: Exception) -> None:
    """Says once that nothing is compiled for a type of device, and why.

    Raises:
        Exception: the reason itself, where that is memory which is full.
    """
    reason = getattr(error, "inner_exception", None) or error
    if isinstance(reason, torch.OutOfMemoryError | MemoryError):
        raise reason
    if device not in _told:
        _told.add(device)
        why = str(reason).split("\n", 1)[0].split(". ", 1)[0].strip(" .:")
        words = f"neurons run without the fused kernel: it cannot be compiled for {device}"
        warnings.warn(f"{words} ({why or type(reason).__name__})", stacklevel=3)


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
    return tuple(map(_form, argument)) if isinstance(argument, tuple) else argument


def _device_type(values: Iterable[Any]) -> str:
    """The type of device that the tensors of a call lie on."""
    found = (each.device.type for each in values if isinstance(each, Tensor))
    return next(found, "cpu")
