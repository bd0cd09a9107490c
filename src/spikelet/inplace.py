"""Operations in place in a traced graph: whoever reads what they changed reads their result.

A trace has an edge from each value to those who read it, whatever happens to it in between. A
`y.add_(z)` whose result is not read, or another name of y, would so stand for y as it was before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from spikelet.errors import UserError

Memory = tuple[fx.Node, ...]  # what made a tensor, then the views that lead to this part of it

MARK = "in place"
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
ASSIGNING = {f"__i{name.strip('_')}__": getattr(operator, name) for name in OPERATORS}
ASSIGNING["__idiv__"] = operator.truediv  # a tensor's own name of `/=`
UNCHANGING = ("requires_grad_",)
SIZES = ("size", "dim", "numel", "stride", "shape", "ndim", "dtype", "device")
VIEWS = {  # of a method, function or attribute that gives the same memory, at times or always
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "unfold"),
    *("squeeze", "unsqueeze", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "t"),
    *("swapdims", "narrow", "select", "expand", "expand_as", "broadcast_to", "diagonal", "detach"),
    *("chunk", "split", "tensor_split", "unbind", "getitem", "contiguous", "to", "type_as"),
    *("float", "double", "half", "bfloat16", "type", "T", "mT", "H", "mH", "data", "real"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
}


class Assigned(fx.Proxy):
    """A traced value that tells `y += z`, which changes y, from `y = y + z`, which does not."""


def _assigning(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def assign(value: Any, other: Any) -> Any:
        result = function(value, other)
        result.node.meta[MARK] = True
        return result

    return assign


for _name, _function in ASSIGNING.items():
    setattr(Assigned, _name, _assigning(_function))


def later_uses_see(net: fx.GraphModule) -> None:
    """Whoever reads a tensor after an operation in place on it reads the result, by any name.

    Raises:
        UserError: if the tensor is then read through a view, or was changed through one.
    """
    modules = dict(net.named_modules())
    order = {node: i for i, node in enumerate(net.graph.nodes)}
    memory, sharing = _attributes(net)
    numbers: set[fx.Node] = set()
    for node in net.graph.nodes:
        if _number(node, numbers):
            numbers.add(node)
        elif node not in memory:
            changed = _changed(node, modules)
            held = None if changed is None else memory.get(changed)
            memory[node] = held or _memory(node, modules, memory)
            others = sharing.setdefault(memory[node][0], [])
            if held is not None:
                _redirect(net, node, others, memory, order)
            others.append(node)


def _attributes(net: fx.GraphModule) -> tuple[dict[fx.Node, Memory], dict[fx.Node, list[fx.Node]]]:
    """Memory of the tensors that a model holds, each a node at every place that reads it."""
    first: dict[str, fx.Node] = {}
    memory: dict[fx.Node, Memory] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in net.graph.nodes:
        if node.op == "get_attr":
            memory[node] = (first.setdefault(str(node.target), node),)
            sharing.setdefault(memory[node][0], []).append(node)
    return memory, sharing


def _redirect(
    net: fx.GraphModule,
    node: fx.Node,
    others: list[fx.Node],
    memory: dict[fx.Node, Memory],
    order: dict[fx.Node, int],
) -> None:
    """Gives an operation's result to those who read the same memory after it."""
    for other in others:
        later = [user for user in other.users if order[user] > order[node] and not _size(user)]
        if memory[other] == memory[node]:
            for user in later:
                user.replace_input_with(other, node)
        elif later and not _apart(memory[other], memory[node]):
            raise UserError(
                f"model {type(net).__name__}",
                f"{node.name} works in place on memory that it shares with {other.name}, a view, "
                f"which {later[0].name} reads after it: a graph cannot tell that",
                "let it make a new tensor: y = y + z in place of y += z, or inplace=False",
            )


def _apart(one: Memory, other: Memory) -> bool:
    """Whether two parts of a tensor are other entries of it, such as two of its chunks."""
    for mine, theirs in zip(one, other, strict=False):
        if mine is not theirs:
            entries = [n.args[1] for n in (mine, theirs) if n.target is operator.getitem]
            whole = [entry for entry in entries if isinstance(entry, int) and entry >= 0]
            return len(whole) == 2 and whole[0] != whole[1]
    return False


def _number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node is a size, or what is computed of sizes: nothing changes it in place."""
    if _size(node):
        return True
    arithmetic = node.op == "call_function" and _home(node) in ("_operator", "builtins", "math")
    sources = node.all_input_nodes
    return arithmetic and bool(sources) and all(source in numbers for source in sources)


def _size(node: fx.Node) -> bool:
    """Whether a node asks a tensor for what no operation on its values changes."""
    return (node.op == "call_method" or node.target is getattr) and _name_of(node) in SIZES


def _home(node: fx.Node) -> str | None:
    return getattr(node.target, "__module__", None)


def _name_of(node: fx.Node) -> str:
    if node.target is getattr:
        return str(node.args[1])
    return str(getattr(node.target, "__name__", node.target))


def _operand(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _changed(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The tensor that a node changes in place."""
    changed = _operand(node)
    if node.op == "call_module":
        changes = bool(getattr(modules[str(node.target)], "inplace", False))
    elif node.op in ("call_function", "call_method"):
        name = _name_of(node)
        named = name.endswith("_") and not name.endswith("__") and _home(node) != "_operator"
        changes = named and name not in UNCHANGING
        changes = changes or name in ASSIGNING or bool(node.kwargs.get("inplace"))
        changes = changes or node.meta.pop(MARK, False)
        if "out" in node.kwargs:
            changes, changed = True, node.kwargs["out"]
    else:
        changes = False
    return changed if changes and isinstance(changed, fx.Node) else None


def _memory(node: fx.Node, modules: dict[str, nn.Module], memory: dict[fx.Node, Memory]) -> Memory:
    """The memory of a result: its own, that of its operand, or a part of that."""
    source = _operand(node)
    if not isinstance(source, fx.Node) or source not in memory:
        return (node,)
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Identity):
            return memory[source]
        shared = isinstance(module, (nn.Flatten, nn.Unflatten, _DropoutNd))
    else:
        shared = node.op in ("call_function", "call_method") and _name_of(node) in VIEWS
    return (*memory[source], node) if shared else (node,)
