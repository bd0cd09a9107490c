"""A classifier as a graph in normal form: one activation module per call site, in plain order.

`capture` traces a model with torch.fx into that form, without touching the model. Teacher and
student are both in it, so a node has the same name in both. `walk` runs such a graph under a
rule that says what each call does.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from spikelet.encode import still
from spikelet.errors import UserError, unknown
from spikelet.inplace import ASSIGNING, Assigned, later_uses_see
from spikelet.neuron import Neuron
from spikelet.vision import plain as plain_layers

Rule = Callable[[fx.Node, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

RELU_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    F.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
}
CLAMPS = (
    *(torch.clamp, torch.clamp_min, torch.clip, "clamp", "clamp_min", "clip"),
    *(torch.clamp_, torch.clamp_min_, torch.clip_, "clamp_", "clamp_min_", "clip_"),
)
CLAMPED: dict[Any, type[nn.Module]] = {None: nn.ReLU, 6: nn.ReLU6}  # from 0 to this
IN_PLACE: dict[Any, Any] = {
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": operator.truediv,
    **ASSIGNING,
}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
ACTIVATIONS = (nn.ReLU, nn.ReLU6)
SHAPED = (Neuron, _NormBase)  # of their input's shape, whatever they do
SOFTMAXES = (
    *(F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *("softmax", "log_softmax"),
)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d)
MAX_POOL_FUNCTIONS = (F.max_pool2d, F.max_pool1d, F.adaptive_max_pool2d, torch.max_pool2d)


def capture(model: nn.Module) -> fx.GraphModule:
    """A copy of a model as a graph in normal form; a graph in normal form is only copied.

    It is traced in eval mode, so what a model does in training only (stochastic depth) is left
    out; dropout and batch norm keep both modes. Further arguments of its forward keep their
    defaults. A softmax at the end is left out: the graph gives logits.

    Raises:
        UserError: if torch.fx cannot trace the model, or it changes views in place.
    """
    if isinstance(model, fx.GraphModule) and "moved" in model.meta:
        return copy.deepcopy(model)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, torch.jit.ScriptModule):
        what = "TorchScript has no forward that can be traced"
        raise UserError("model", what, "give the nn.Module it was made of")
    source = plain_layers(model)
    _require_images_alone(source)
    modes = {path: module.training for path, module in source.named_modules()}
    try:
        net = fx.GraphModule(source, _Tracer().trace(source.eval()), type(model).__name__)
    except Exception as error:  # fx raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {type(model).__name__}",
            f"torch.fx cannot trace its forward ({reason})",
            "take data-dependent branches out of forward, or wrap that part in a leaf module",
        ) from error
    net.meta["moved"] = {}
    for node in net.graph.nodes:
        node.meta["paths"] = _enclosing(node)
    later_uses_see(net)
    _one_module_per_activation(net)
    _pool_before_activation(net)
    _to_logits(net)
    net.meta["viewed"] = _views_as_reshapes(net)
    net.graph.lint()
    net.recompile()
    for path, module in net.named_modules():
        module.training = modes.get(path, model.training)
    return net


def _require_images_alone(model: nn.Module) -> None:
    """Raises where a forward asks for more than the images."""
    found = inspect.signature(type(model).forward).parameters.values()
    needed = [p.name for p in found if p.default is p.empty and p.kind not in VARIADIC]
    if len(needed) > 2:  # self and the images
        raise UserError(
            f"model {type(model).__name__}",
            f"its forward needs {' and '.join(needed[2:])} besides the images",
            "give what is beyond the images a default, or wrap the model in one that knows it",
        )


class _Tracer(fx.Tracer):
    """Traces to torch's own modules and to neurons; only the images are an input."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Assigned(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        def alone(module: nn.Module, x: Any) -> Any:  # arguments beyond x keep their defaults
            return root_fn(module, x)

        return super().create_args_for_root(alone, is_module, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Neuron) or super().is_leaf_module(m, module_qualified_name)


def _enclosing(node: fx.Node) -> list[str]:
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if node.op == "call_module" and node.target not in stack:
        stack.append(str(node.target))
    return [path for path in stack if path]


def _one_module_per_activation(net: fx.GraphModule) -> None:
    """Every ReLU becomes its own module, in-place arithmetic plain, functional dropout a module."""
    modules = dict(net.named_modules())
    taken: set[str] = set()
    for node in net.graph.nodes:
        _out_of_place(node)
        kind = _activation_kind(node, modules)
        if kind is not None:
            own = node.op == "call_module"
            path = str(node.target) if own else _scope(node) + node.name
            _retarget(net, node, _free(path, taken, modules, own), kind())
        elif node.op == "call_function" and node.target is F.dropout:
            p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            _retarget(net, node, _free(_scope(node) + node.name, taken, modules), nn.Dropout(p))


def _out_of_place(node: fx.Node) -> None:
    """Arithmetic in place becomes the plain one, unless it has more to say, such as rounding."""
    if node.op in ("call_function", "call_method") and isinstance(node.kwargs.get("out"), fx.Node):
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
    plain = IN_PLACE.get(node.target) if node.op == "call_method" else None
    if isinstance(plain, str):
        node.target = plain
    elif plain is not None and not node.kwargs:
        node.op, node.target = "call_function", plain


def _activation_kind(node: fx.Node, modules: dict[str, nn.Module]) -> type[nn.Module] | None:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return next((kind for kind in ACTIVATIONS if type(module) is kind), None)
    if node.op in ("call_function", "call_method"):
        return _clamp_kind(node) if node.target in CLAMPS else RELU_FUNCTIONS.get(node.target)
    return None


def _clamp_kind(node: fx.Node) -> type[nn.Module] | None:
    """The ReLU that a clamp is; None of any other bounds."""
    given = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
    low, high = given.get("min"), given.get("max")
    known = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
    return CLAMPED.get(high) if known and low == 0 and low is not None else None


def _scope(node: fx.Node) -> str:
    return f"{node.meta['paths'][-1]}." if node.meta["paths"] else ""


def _free(path: str, taken: set[str], modules: dict[str, nn.Module], own: bool = False) -> str:
    """`path` at its first call site, `path_1`, `path_2` at the later ones.

    Only a module's `own` call site may take its path.
    """
    name, count = path, 0
    while name in taken or ((count or not own) and name in modules):
        count += 1
        name = f"{path}_{count}"
    taken.add(name)
    return name


def _retarget(net: fx.GraphModule, node: fx.Node, path: str, module: nn.Module) -> None:
    net.add_submodule(path, module)
    paths = [*node.meta["paths"], path]
    node.meta["paths"] = list(dict.fromkeys(paths))
    operand = node.args[:1] or (node.kwargs["input"],)
    node.op, node.target, node.args, node.kwargs = "call_module", path, operand, {}


def _pool_before_activation(net: fx.GraphModule) -> None:
    """ReLU then max pooling becomes max pooling then ReLU: the same function of the input.

    A neuron then sees the pooled current, and no pooling acts on spikes.
    """
    modules = dict(net.named_modules())
    for pool in list(net.graph.nodes):
        relu = pool.args[0] if is_max_pool(pool, modules) and pool.args else None
        if not isinstance(relu, fx.Node) or not is_activation(relu, modules):
            continue
        if len(relu.users) > 1:
            continue
        lost = [path for path in relu.meta["paths"] if path not in pool.meta["paths"]]
        pool.replace_all_uses_with(relu)
        pool.args = (relu.args[0], *pool.args[1:])
        relu.args = (pool,)
        pool.append(relu)
        net.meta["moved"].update(dict.fromkeys([relu.name, *lost], pool.name))
        relu.name, pool.name = pool.name, f"{pool.name}_current"
        relu.meta["paths"], pool.meta["paths"] = pool.meta["paths"], []


def _to_logits(net: fx.GraphModule) -> None:
    """Leaves a final softmax out: what is before it are logits of the same answers."""
    output = next(node for node in reversed(net.graph.nodes) if node.op == "output")
    last, modules = output.args[0], dict(net.named_modules())
    if not isinstance(last, fx.Node) or not is_softmax(last, modules) or len(last.users) > 1:
        return
    source = last.args[0] if last.args else last.kwargs["input"]
    assert isinstance(source, fx.Node)
    output.args = (source,)
    net.graph.erase_node(last)


def _views_as_reshapes(net: fx.GraphModule) -> bool:
    """Views of another shape, which need a contiguous tensor, become reshapes; whether any did."""
    views = [node for node in net.graph.nodes if node.op == "call_method" and node.target == "view"]
    views = [node for node in views if not any(isinstance(a, torch.dtype) for a in node.args)]
    for node in views:
        node.target = "reshape"
    return bool(views)


def is_softmax(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a softmax or its logarithm."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], (nn.Softmax, nn.LogSoftmax))
    return node.target in SOFTMAXES


def is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node calls a ReLU or a ReLU6 module."""
    return node.op == "call_module" and type(modules[str(node.target)]) in ACTIVATIONS


def is_max_pool(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is max pooling, as a module or as a function."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], MAX_POOLS)
    return node.op == "call_function" and node.target in MAX_POOL_FUNCTIONS


def resolve(net: fx.GraphModule, path: str) -> fx.Node:
    """The node that a dotted module path (its last node) or a node name means.

    Raises:
        UserError: for an unknown place, or a ReLU that moved behind its max pooling.
    """
    nodes = {node.name: node for node in net.graph.nodes}
    inside = [node for node in nodes.values() if path in node.meta.get("paths", ())]
    name = path.replace(".", "_")
    if path in net.meta["moved"] or name in net.meta["moved"]:
        pool = net.meta["moved"].get(path) or net.meta["moved"][name]
        while pool in net.meta["moved"]:
            pool = net.meta["moved"][pool]
        raise UserError(
            f"tap {path!r}",
            "this ReLU now stands behind the max pooling that followed it",
            f"tap {pool!r}, the pooled activation, instead",
        )
    if inside:
        return inside[-1]
    if name in nodes:
        return nodes[name]
    known = {p for node in nodes.values() for p in node.meta.get("paths", ())}
    raise unknown("tap", path, known or nodes)


def walk(net: fx.GraphModule, inputs: Any, rule: Rule) -> Any:
    """Runs a graph on one input; `rule(node, function, args, kwargs)` says what a call does."""
    modules = dict(net.named_modules())
    values: dict[fx.Node, Any] = {}
    left = {node: len(node.users) for node in net.graph.nodes}

    def value(node: fx.Node) -> Any:
        result = values[node]
        left[node] -= 1
        if not left[node]:
            del values[node]
        return result

    def fetch(args: Any) -> Any:
        seen: dict[fx.Node, Any] = {}
        return fx.node.map_arg(
            args, lambda n: seen[n] if n in seen else seen.setdefault(n, value(n))
        )

    for node in net.graph.nodes:
        if node.op == "placeholder":
            values[node] = inputs
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(net)
        elif node.op == "output":
            return fetch(node.args[0])
        else:
            args, kwargs = fetch((node.args, node.kwargs))
            values[node] = rule(node, _function(node, modules), args, kwargs)
            if not left[node]:
                del values[node]
    raise AssertionError("a graph ends with its output")


def _function(node: fx.Node, modules: dict[str, nn.Module]) -> Callable[..., Any]:
    if node.op == "call_module":
        return modules[str(node.target)]
    if node.op == "call_function":
        return node.target  # type: ignore[return-value]
    name = str(node.target)
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def plain(node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The rule that simply calls."""
    return function(*args, **kwargs)


def shapes(net: fx.GraphModule, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape at every node, for an example batch "B ..."; neurons keep their input's shape.

    So do norms, which are not run either: one without running statistics refuses a single image.
    """
    found: dict[str, tuple[int, ...]] = {}

    def rule(node: fx.Node, function: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(function, SHAPED):
            result = (*args, *kwargs.values())[0]
        else:
            result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            found[node.name] = tuple(result.shape)
        return result

    modes = {module: module.training for module in net.modules()}
    net.eval()
    with torch.no_grad():
        walk(net, still(example), rule)
    for module, mode in modes.items():
        module.training = mode
    return found
