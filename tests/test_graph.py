"""Graphs in normal form: the same function, names that survive, taps and cuts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import (
    MODELS,
    PICTURE,
    Residual,
    Stages,
    Untracked,
    block,
    images,
    max_pooled,
    network,
    student,
)
from spikelet.convert import convert
from spikelet.cuts import after, cuts, stages, until
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import ACTIVATIONS, capture, resolve, shapes
from spikelet.neuron import IF, Neuron


class Spelt(nn.Module):
    """Two layers with one activation between them, spelt in some way."""

    def __init__(self, spell: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.act = nn.ReLU()
        self.in_place = nn.ReLU(inplace=True)
        self.six = nn.ReLU6()
        self.spell = spell

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.spell(self, self.first(x)))


def discarded(module: nn.Module, x: Tensor) -> Tensor:
    """The result of an operation in place is not used, its operand is."""
    module.in_place(x)
    return x


def discarded_function(module: nn.Module, x: Tensor) -> Tensor:
    F.relu_(x)
    return x


def around(module: nn.Module, x: Tensor) -> Tensor:
    """A skip around an activation in place carries the activated value."""
    y = module.in_place(x)
    return 2 * y + x


SPELLINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "nn.ReLU": lambda m, x: m.act(x),
    "nn.ReLU in place": lambda m, x: m.in_place(x),
    "nn.ReLU6": lambda m, x: m.six(2 * x),
    "F.relu": lambda m, x: F.relu(x),
    "F.relu in place": lambda m, x: F.relu(x, inplace=True),
    "F.relu by keyword": lambda m, x: F.relu(input=x),
    "F.relu_": lambda m, x: F.relu_(x),
    "F.relu6": lambda m, x: F.relu6(2 * x),
    "torch.relu": lambda m, x: torch.relu(x),
    "torch.relu_": lambda m, x: torch.relu_(x),
    "x.relu()": lambda m, x: x.relu(),
    "x.relu_()": lambda m, x: x.relu_(),
    "x.clamp(min=0)": lambda m, x: x.clamp(min=0),
    "x.clamp(0)": lambda m, x: x.clamp(0),
    "x.clamp_(min=0.0)": lambda m, x: x.clamp_(min=0.0),
    "clamp_ discarded": lambda m, x: (x.clamp_(min=0), x)[1],
    "x.clamp_min(0)": lambda m, x: x.clamp_min(0),
    "torch.clamp": lambda m, x: torch.clamp(x, min=0),
    "torch.clamp by keyword": lambda m, x: torch.clamp(input=x, min=0, max=None),
    "torch.clamp_min": lambda m, x: torch.clamp_min(x, 0),
    "torch.clip to 6": lambda m, x: torch.clip(2 * x, 0, 6),
    "discarded": discarded,
    "discarded function": discarded_function,
    "skip around one in place": around,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_an_activation(name: str) -> None:
    """One neuron, and the same function of the input before conversion."""
    model, x = Spelt(SPELLINGS[name]), torch.randn(5, 6)
    net = capture(model)
    found = [m for m in net.modules() if isinstance(m, ACTIVATIONS)]
    used = [n for n in net.graph.nodes if type(resolve_module(net, n)) in ACTIVATIONS]
    assert len(used) == 1, found
    torch.testing.assert_close(net(x), model(x))
    spiking = convert(model, IF())
    assert len([n for n in spiking.graph.nodes if isinstance(resolve_module(spiking, n), IF)]) == 1


@pytest.mark.parametrize("bounds", [(-1, None), (None, 0), (0, 1), (1, None)])
def test_a_clamp_of_other_bounds_is_no_activation(bounds: tuple[Any, Any]) -> None:
    model = Spelt(lambda m, x: m.act(x).clamp(*bounds))
    assert len([m for m in capture(model).modules() if isinstance(m, nn.ReLU)]) == 1
    with pytest.raises(UserError, match=r"clamp\(\)"):
        convert(model, IF())


def resolve_module(net: nn.Module, node: object) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def test_one_module_at_many_places_becomes_many_neurons() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.act(self.b(self.act(self.a(x))))) + self.act(x))

    model, x = Shared(), torch.randn(5, 6)
    expected, net = model(x.clone()), convert(model)
    paths = [name for name, module in net.named_modules() if isinstance(module, Neuron)]
    assert len(paths) == 4
    assert {"act", "act_1", "act_2"} <= set(paths)
    assert len({id(net.get_submodule(path)) for path in paths}) == 4
    torch.testing.assert_close(capture(model)(x.clone()), expected)


def test_a_new_module_never_takes_the_place_of_another() -> None:
    """A function's node name may be that of a module which does something else."""

    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.Linear(6, 6)
            self.dropout = nn.Dropout(0.25)
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(F.relu(x), 0.75, self.training)
            return self.last(self.dropout(F.relu(self.relu(x))))

    model, x = Clash().eval(), torch.randn(5, 6)
    net = capture(model).eval()
    torch.testing.assert_close(net(x), model(x))
    rates = [m.p for n in net.graph.nodes if isinstance(m := resolve_module(net, n), nn.Dropout)]
    assert rates == [0.75, 0.25]


@pytest.mark.parametrize("name", MODELS)
def test_normal_form_is_the_same_function(name: str) -> None:
    """In both modes, running statistics included; the model is left as it was."""
    for training in (True, False):
        model = network(name).train(training)
        before = copy.deepcopy(model.state_dict())
        net, x = capture(model), images(name)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert model.training == training
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        torch.testing.assert_close(net(x), expected)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(net.state_dict()[key], value, msg=key)


def test_a_graph_in_normal_form_is_copied_with_its_names() -> None:
    net = capture(network("max pool"))
    other = capture(net)
    assert other is not net
    assert [n.name for n in other.graph.nodes] == [n.name for n in net.graph.nodes]
    assert other.meta["moved"] == net.meta["moved"]
    for a, b in zip(net.graph.nodes, other.graph.nodes, strict=True):
        assert a.meta["paths"] == b.meta["paths"]
    assert all(p is not q for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_names_survive_conversion(name: str) -> None:
    """Every place of the teacher is a place of the student, of the same shape."""
    teacher, net = capture(network(name)), student(name)
    theirs, ours = shapes(teacher, images(name)), shapes(net, images(name))
    assert theirs.items() <= ours.items()
    for node in teacher.graph.nodes:
        for path in node.meta["paths"]:
            assert resolve(teacher, path).name == resolve(net, path).name, path
    assert set(network(name).state_dict()) <= set(net.state_dict())


@pytest.mark.parametrize("path", ["layer1", "layer1.2", "layer1_2"])
@pytest.mark.parametrize("execute", [ann, bptt, rate])
def test_taps_by_module_path_and_by_node_name(path: str, execute: Callable) -> None:
    """A module path means its last node."""
    net = capture(network("stages")) if execute is ann else student("stages")
    x = images("stages").unsqueeze(0)
    trace = execute(net, x, [path, "layer1.2"])
    assert torch.equal(trace.taps[path].mean, trace.taps["layer1.2"].mean)
    assert float(trace.taps[path].mean.detach().min()) >= 0


def test_unknown_places_are_answered_with_near_ones() -> None:
    net = student("stages")
    with pytest.raises(UserError, match="did you mean layer"):
        rate(net, images("stages").unsqueeze(0), ["layer9"])
    with pytest.raises(UserError, match="field 'spike'"):
        rate(net, images("stages").unsqueeze(0), {"layer1": ("spike",)})
    with pytest.raises(UserError, match="neurons only"):
        rate(net, images("stages").unsqueeze(0), {"layer1.0": ("spikes",)})


@pytest.mark.parametrize("execute", [ann, bptt, rate])
def test_the_input_is_no_tap(execute: Callable) -> None:
    """It is refused with a sentence, or given; never a KeyError."""
    net = capture(network("stages")) if execute is ann else student("stages")
    x = images("stages").unsqueeze(0)
    try:
        trace = execute(net, x, ["x"])
    except UserError as error:
        assert "x" in str(error)
    else:
        assert torch.equal(trace.taps["x"].mean, x[0])


# ---- max pooling ----------------------------------------------------------------------------


class PooledOutside(nn.Module):
    """A stage that ends in a ReLU, pooled after it; functions, modules, two pools in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = block(2, 3), block(3, 4)
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer1(x))
        x = F.max_pool2d(F.max_pool2d(self.layer2(x), 2), kernel_size=2)
        return self.linear(torch.flatten(x, 1))


@pytest.mark.parametrize("make", [max_pooled, PooledOutside])
def test_max_pooling_goes_before_the_activation(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(4, *PICTURE)
    net = capture(model)
    torch.testing.assert_close(net(x), model(x))
    spiking = convert(model)
    order = [node.name for node in spiking.graph.nodes]
    for node in spiking.graph.nodes:
        if isinstance(resolve_module(spiking, node), nn.MaxPool2d) or node.target is F.max_pool2d:
            before = node.args[0]
            assert not isinstance(resolve_module(spiking, before), Neuron), order


def test_a_moved_place_is_refused_with_the_new_one() -> None:
    net = student_of(PooledOutside())
    x = torch.randn(2, *PICTURE).unsqueeze(0)
    for path in ("layer1", "layer1.2", "layer1_2", "layer2"):
        with pytest.raises(UserError, match="behind the max pooling") as caught:
            rate(net, x, [path])
        assert "tap '" in caught.value.fix
    pooled = rate(net, x, {"pool": ("mean", "spikes")}).taps["pool"]
    assert pooled.mean.shape == (2, 3, 4, 4)
    teacher = capture(PooledOutside())
    assert ann(teacher, x, ["pool"]).taps["pool"].mean.shape == (2, 3, 4, 4)


def test_the_fix_of_a_moved_place_can_be_followed() -> None:
    """Two pools in a row: the place named is the last one's."""
    net, x = student_of(PooledOutside()), torch.randn(2, *PICTURE).unsqueeze(0)
    with pytest.raises(UserError) as caught:
        rate(net, x, ["layer2"])
    place = caught.value.fix.split("'")[1]
    assert rate(net, x, [place]).taps[place].mean.shape == (2, 4, 1, 1)


def student_of(model: nn.Module) -> nn.Module:
    return convert(model, IF())


def test_an_activation_used_twice_is_not_moved() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.linear = block(2, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            pooled = F.adaptive_max_pool2d(x, 1) + F.adaptive_avg_pool2d(x, 1)
            return self.linear(torch.flatten(pooled, 1))

    model, x = Twice(), torch.randn(4, *PICTURE)
    net = capture(model)
    assert not net.meta["moved"]
    torch.testing.assert_close(net(x), model(x))


# ---- cuts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in MODELS if n != "size of input"])
def test_after_of_until_is_the_whole(name: str) -> None:
    """For every cut that a network offers."""
    net, x = capture(network(name)).eval(), images(name)
    places = cuts(net)
    assert len(places) >= 3
    for node in places:
        whole = after(net, node.name)(until(net, node.name)(x))
        torch.testing.assert_close(whole, net(x), msg=node.name)


def test_parts_share_modules_and_run_as_spiking_networks() -> None:
    net, x = student("stages").eval(), images("stages").expand(3, -1, -1, -1, -1)
    first, second = until(net, "layer2"), after(net, "layer2")
    assert first.get_parameter("layer1.0.weight") is net.get_parameter("layer1.0.weight")
    between = rate(first, x).logits
    whole = rate(net, x).logits
    torch.testing.assert_close(rate(second, between).logits, whole)


@pytest.mark.parametrize("path", ["conv1", "bn2", "conv2"])
def test_a_cut_inside_a_residual_names_the_edge(path: str) -> None:
    net = capture(Residual())
    if path == "conv1":
        after(net, path)
        return
    with pytest.raises(UserError, match=r"the edge relu1 -> add goes around it"):
        after(net, path)
    assert path not in [node.name for node in cuts(net)]


def test_a_cut_beside_a_projection_names_the_edge() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.main = block(2, 3), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = F.relu(self.main(x) + self.side(x))
            return self.linear(x.mean((2, 3)))

    net = capture(Projected())
    with pytest.raises(UserError, match="stem_2 -> side goes around"):
        after(net, "main")
    with pytest.raises(UserError, match="main -> add goes around"):
        after(net, "side")
    assert {"stem_2", "add", "relu"} <= {node.name for node in cuts(net)}


def test_stages_are_the_last_place_of_each_resolution() -> None:
    assert stages(capture(Stages()), images("stages").float()) == {
        64: "layer1_2",
        16: "relu",
        4: "layer3_2",
    }
    net = student("stages")
    assert list(stages(net, images("stages")).values()) == ["layer1_2", "relu", "layer3_2"]
    assert stages(capture(network("mlp")), images("mlp")) == {-1: "_2", -2: "_4"}


def test_shapes_leave_no_trace() -> None:
    net = student("stages").train()
    before = copy.deepcopy(net.state_dict())
    found = shapes(net, images("stages"))
    assert net.training
    assert net.get_submodule("layer1.1").training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert found["layer1_2"] == (4, 4, 8, 8)


def test_a_norm_without_statistics_has_the_shape_of_its_input() -> None:
    """Of one image, which such a norm refuses; against what layers give for two."""
    model, x = Untracked(), torch.randn(2, 6)
    net = capture(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(x[:1])
    seen: dict[str, tuple[int, ...]] = {}
    for path in ("layer", "norm", "linear"):
        module = net.get_submodule(path)
        module.register_forward_hook(lambda m, i, y, path=path: seen.update({path: y.shape[1:]}))
    net(x)
    found = shapes(net, x[:1])
    assert {path: found[path] for path in seen} == {path: (1, *s) for path, s in seen.items()}
    assert found["norm_1"] == found["norm"] == (1, 8)


def test_arguments_beyond_the_images_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(
            self, pictures: Tensor, noise: Tensor | None = None, deep: bool = False, *, k: int = 2
        ) -> Tensor:
            if noise is not None:
                pictures = pictures + noise
            return pictures if deep else F.relu(self.layer(pictures)) * k

    model, x = Optional(), torch.randn(5, 4)
    net = capture(model)
    assert [n.name for n in net.graph.nodes if n.op == "placeholder"] == ["x"]
    assert torch.equal(net(x), model(x))

    class Needy(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return F.relu(x * mask)

    with pytest.raises(UserError, match="forward needs mask besides the images; give"):
        capture(Needy())


def test_what_cannot_be_traced_says_so() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"torch.fx cannot trace its forward.*data-dependent"):
        capture(Branching())
