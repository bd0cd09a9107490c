"""Nested containers taken apart into plain JSON and tensors by name, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TAG = "$"


def taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON; its tensors are moved to `tensors` under their path.

    Raises:
        TypeError: for what neither JSON nor a tensor can hold.
    """
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {TAG: "tensor", "name": name}
    if isinstance(value, Mapping):
        items = [(key, taken_apart(each, f"{name}/{key}", tensors)) for key, each in value.items()]
        if all(isinstance(key, str) and key != TAG for key in value):
            return dict(items)
        return {TAG: "dict", "items": [list(item) for item in items]}
    if isinstance(value, list | tuple):
        each = [taken_apart(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return each if isinstance(value, list) else {TAG: "tuple", "items": each}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be stored")


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `taken_apart`.

    Raises:
        KeyError, TypeError, ValueError, RecursionError: for what it has not made.
    """
    if isinstance(value, list):
        return [put_together(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    match value.get(TAG):
        case "tensor":
            return tensors[value["name"]]
        case "tuple":
            return tuple(put_together(each, tensors) for each in value["items"])
        case "dict":
            return {key: put_together(each, tensors) for key, each in value["items"]}
    return {key: put_together(each, tensors) for key, each in value.items()}
