"""From a spec `{"kind": name, **fields}` to the thing it describes."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spikelet.errors import UserError, unknown
from spikelet.recipe.tables import EXECUTES, NESTED, Table

# A recipe may come from anywhere, so it calls nothing that could be made to run or write a file:
# of these packages it may name networks alone, and of this one what describes a run.
POWERFUL = """
    numpy torch torchvision scipy sklearn joblib pandas pip setuptools pkg_resources wheel pydantic
    rich safetensors matplotlib jinja2 PIL onnx onnxscript onnxruntime nir nirtorch h5py IPython
    pytest _pytest hypothesis dill cloudpickle fsspec huggingface_hub spikelet
"""
MISSING = "it is missing"  # of a field that has no default
OURS = "spike encode neuron rate execute quantise terms data models measure examine"


def import_path(argument: str, kind: str, table: Table) -> str:
    """The import path `package.module:name` of a kind; nothing is imported."""
    if ":" in kind:
        return kind
    if kind not in table:
        raise unknown(argument, kind, table)
    return table[kind]


def resolve(argument: str, kind: str, table: Table) -> Callable[..., Any]:
    """Import what a short name of `table` or any import path `package.module:name` stands for."""
    path = import_path(argument, kind, table)
    module_name, _, name = path.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise _refused(argument, kind)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is run
        raise UserError(
            argument,
            f"{kind!r} cannot be imported ({error})",
            "check the path or install the package",
        ) from error
    try:
        target: Any = module
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        public = [each for each in dir(module) if not each.startswith("_")]
        raise unknown(argument, name, public) from error
    if "__" in name or not callable(target) or not _may_be_called(module_name, target):
        raise _refused(argument, kind)
    return target


def _may_be_called(module: str, target: Any) -> bool:
    """Whether a recipe may name this thing: by where it is defined, through whatever module."""
    defined = inspect.isroutine(target) or inspect.isclass(target)
    home = getattr(target, "__module__", None) or "builtins" if defined else module
    package, _, rest = home.partition(".")
    if package == "spikelet":
        return rest.partition(".")[0] in OURS.split()
    powerful = package in sys.stdlib_module_names or package in POWERFUL.split()
    return not powerful or _makes_network(target, home)


def _makes_network(target: Any, home: str) -> bool:
    """Whether it is a class of networks, or a function of a zoo that makes one."""
    if home.startswith(("torchvision.models.", "timm.models.")):
        return True
    nets = sys.modules.get("torch.nn")
    return nets is not None and inspect.isclass(target) and issubclass(target, nets.Module)


def _refused(argument: str, kind: str) -> UserError:
    what = f"{kind!r} is no function or class that a recipe may call"
    return UserError(argument, what, "name one of spikelet's, or of a package of your own")


def build(argument: str, spec: Mapping[str, Any], table: Table, **extra: Any) -> Any:
    """Resolve a spec, validate its fields against the signature found, and call it with them.

    Fields that are specs themselves (a neuron's surrogate) are built first. `extra` holds what
    the program adds: it is passed as it is and wins. Executors are bound, not called.
    """
    fields = dict(spec)
    target = resolve(argument, kind_of(argument, fields), table)
    del fields["kind"]
    nested = {
        name: build(_dotted(argument, name), fields.pop(name), NESTED.get(name, {}))
        for name in [name for name, value in fields.items() if _is_nested(name, value)]
    }
    binding = table is EXECUTES
    values = validated(argument, target, fields, given=nested | extra, binding=binding)
    return functools.partial(target, **values) if binding else target(**values)


def kind_of(argument: str, spec: Mapping[str, Any]) -> str:
    """The kind of a spec, or the sentence that it has none."""
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str):
        raise UserError(argument, f"expected an object with a kind, found {spec!r}", 'add "kind"')
    return kind


def validated(
    argument: str,
    target: Callable[..., Any],
    fields: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    binding: bool = False,
) -> dict[str, Any]:
    """The keyword arguments to call `target` with: `fields` checked by type, `given` added.

    With `binding` only parameters that have a default may be set, and none has to be.
    """
    given, parameters = given or {}, inspect.signature(target).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    allowed = {
        name: each.default is each.empty for name, each in parameters.items() if each.kind in named
    }
    if binding:
        allowed = {name: False for name, needed in allowed.items() if not needed and name != "taps"}
    for name in (*fields, *given):
        if name not in allowed and not open_ended:
            raise _unknown_field(_dotted(argument, name), name, allowed)
    for name, needed in allowed.items():
        if needed and name not in fields and name not in given:
            raise UserError(_dotted(argument, name), MISSING, "add it")
    values = _coerced(argument, _hints(target), fields)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            where = f"{_dotted(argument, name)} = {value}"
            raise UserError(where, "expected a finite number", "give another value")
    return values | dict(given)


def _unknown_field(where: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a field the target does not have."""
    if not list(allowed):
        return UserError(where, f"{name!r} is not known", "remove it: there are no fields to set")
    return unknown(where, name, allowed)


def _dotted(*parts: str) -> str:
    """The parts that are not empty, joined by dots."""
    return ".".join(part for part in parts if part)


def _is_nested(name: str, value: Any) -> bool:
    """Whether a field's value is a spec to build first: an import path, or a name of its table."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return isinstance(kind, str) and (name in NESTED or ":" in kind)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Type of each parameter; none where an annotation cannot be evaluated."""
    is_plain_class = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    try:
        return typing.get_type_hints(target.__init__ if is_plain_class else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def _coerced(argument: str, hints: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Each field converted from its JSON form to its declared type, or a sentence about it."""
    import pydantic

    config, values = pydantic.ConfigDict(arbitrary_types_allowed=True), {}
    for name, value in fields.items():
        where, hint = _dotted(argument, name), hints.get(name, Any)
        try:
            values[name] = _adapter(hint, config).validate_python(value)
        except pydantic.ValidationError as error:
            raise _sentence(where, hint, value, error.errors()[0]) from error
    return values


def _adapter(hint: Any, config: Any) -> Any:
    """pydantic's adapter of a type; classes that bring their own configuration refuse ours."""
    import pydantic

    try:
        return pydantic.TypeAdapter(hint, config=config)
    except pydantic.PydanticUserError:
        return pydantic.TypeAdapter(hint)


def _sentence(where: str, hint: Any, value: Any, error: Mapping[str, Any]) -> UserError:
    """One sentence from pydantic's first complaint."""
    if isinstance(error.get("ctx", {}).get("error"), UserError):
        return error["ctx"]["error"]
    if typing.get_origin(hint) is Literal:
        return unknown(where, str(value), map(str, typing.get_args(hint)))
    place = _dotted(where, *map(str, error["loc"]))
    if error["type"] in ("tuple_type", "list_type"):
        what = "expected several values in brackets"
        return UserError(f"{place} = {error['input']!r}", what, "write it like [1, 2]")
    message = str(error["msg"]).removeprefix("Input should be ").rstrip(".")
    message = message.partition(", unable to parse")[0].replace("valid integer", "whole number")
    return UserError(f"{place} = {error['input']!r}", f"expected {message}", "change its value")


def plain(argument: str, value: Any) -> Any:
    """`value` made of what JSON knows: tuples become lists, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(f"{argument}.{key}", each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(argument, each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UserError(argument, f"{value!r} cannot be stored in a recipe", "give it as a spec")
