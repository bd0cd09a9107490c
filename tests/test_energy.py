"""Operation counts against loops, autograd and other tools; energy against arithmetic by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import EXACT, MODELS, images, moving, network, scattered, student
from spikelet.convert import convert
from spikelet.encode import Poisson, repeat
from spikelet.errors import UserError
from spikelet.examine.energy import examine, sentences
from spikelet.execute import ann, bptt
from spikelet.graph import capture
from spikelet.measure.costs import FP32, HOROWITZ, INT8, INT8_32, PRECISIONS
from spikelet.measure.counts import Counts, joined
from spikelet.measure.definitions import definitions
from spikelet.measure.energy import (
    ACCOUNTINGS,
    Part,
    against,
    crossing,
    of_ann,
    of_quantised,
    of_student,
)
from spikelet.measure.operations import operations, set_bits
from spikelet.measure.synapses import synapses_of
from spikelet.measure.traffic import traffic
from spikelet.models import build_model
from spikelet.neuron import IF, LIF
from spikelet.quantise import quantised
from watched import STEPS, seen, watched

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


# ---- fan-out ------------------------------------------------------------------------------


def random_convolution(draw: random.Random, dimensions: int = 2) -> nn.Module:
    """A convolution with everything that changes who reads what."""
    groups = draw.choice((1, 1, 2))
    kernel = tuple(draw.choice((1, 2, 3)) for _ in range(dimensions))
    same = draw.random() < 0.25 and all(size % 2 for size in kernel)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](
        2 * groups,
        3 * groups,
        kernel,
        stride=1 if same else tuple(draw.choice((1, 2, 3)) for _ in range(dimensions)),
        padding="same" if same else tuple(draw.choice((0, 1, 2)) for _ in range(dimensions)),
        dilation=draw.choice((1, 2)),
        groups=groups,
    )


def looped(conv: Any, size: tuple[int, ...]) -> Tensor:
    """How often each position is read, by visiting every output position and every tap."""
    output = conv(torch.zeros(1, conv.in_channels, *size)).shape[2:]
    before = [
        (d * (k - 1)) // 2 if conv.padding == "same" else p
        for d, k, p in zip(
            conv.dilation, conv.kernel_size, conv.padding if conv.padding != "same" else size,
            strict=True,
        )
    ]  # fmt: skip
    reads = torch.zeros(size)
    for place in itertools.product(*(range(n) for n in output)):
        for tap in itertools.product(*(range(k) for k in conv.kernel_size)):
            at = tuple(
                o * s + t * d - b
                for o, s, t, d, b in zip(
                    place, conv.stride, tap, conv.dilation, before, strict=True
                )
            )
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                reads[at] += 1
    return reads * conv.out_channels // conv.groups


@pytest.mark.parametrize("seed", range(20))
def test_fan_out_is_what_a_loop_counts(seed: int) -> None:
    draw = random.Random(seed)
    dimensions = draw.choice((1, 2, 2, 3))
    conv = random_convolution(draw, dimensions)
    size = tuple(draw.choice((5, 6, 7)) for _ in range(dimensions))
    found = synapses_of(conv, (), {}).fan_out(size)
    assert torch.equal(found, looped(conv, size).double())


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_fan_out_is_the_gradient_of_a_convolution_of_ones(mode: str, stride: int) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), stride, padding=1, groups=2, padding_mode=mode, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 4, 6, 5, requires_grad=True)
    (reads,) = torch.autograd.grad(conv(x).sum(), x)
    found = synapses_of(conv, (), {}).fan_out((6, 5))
    assert torch.equal(found.expand(4, 6, 5), reads[0].double())


def test_functions_have_the_synapses_of_modules() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2)
    given = {"stride": (2, 2), "padding": 1, "dilation": 2, "groups": 2}
    assert synapses_of(F.conv2d, (None, conv.weight, conv.bias), given) == synapses_of(conv, (), {})
    linear = nn.Linear(5, 3)
    assert synapses_of(F.linear, (None, linear.weight, linear.bias), {}) == synapses_of(
        linear, (), {}
    )
    assert synapses_of(nn.ReLU(), (), {}) is None


# ---- counts -------------------------------------------------------------------------------


def inputs_of(net: nn.Module, run: Any) -> dict[str, list[Tensor]]:
    """What arrives at every layer while `run` runs, seen through hooks."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, path=path: found.setdefault(path.replace(".", "_"), []).append(args[0])
        )
        for path, module in net.named_modules()
        if isinstance(module, LAYERS)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def convolved(layer: nn.Module, mask: Tensor) -> Tensor:
    """The weights that meet a non-zero input, by running the layer with ones: "(T B)"."""
    ones = type(layer).__new__(type(layer))
    ones.__dict__ = {**layer.__dict__, "_parameters": dict(layer._parameters)}
    ones._parameters["weight"] = torch.ones_like(layer.weight, dtype=torch.float64)
    ones._parameters["bias"] = None
    return ones(mask.double()).flatten(1).sum(1)


def numbered(path: str) -> str:
    """The name of the node of a module."""
    return f"_{path}" if path[0].isdigit() else path


@pytest.mark.parametrize("name", sorted(MODELS))
def test_arrivals_are_a_convolution_of_the_mask(name: str) -> None:
    net, x = student(name).eval(), moving(name, STEPS, 3)
    counts = operations(net, x)
    arrived = inputs_of(net, lambda: bptt(net, x))
    assert len(counts.layers) == len(arrived) > 0
    for layer in counts.layers:
        path = next(p for p in arrived if numbered(p) == layer.path)
        (value,) = arrived[path]
        module = dict(net.named_modules())[
            next(p for p, _ in net.named_modules() if p.replace(".", "_") == path)
        ]
        met = convolved(module, value.ne(0)).reshape(STEPS, 3).sum(0)
        assert torch.equal(layer.arrivals, met)
        every = convolved(module, torch.ones_like(value))[0]
        assert layer.inside == float(every)
        assert layer.nonzero.sum() == value.count_nonzero()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_ann_and_its_levels_are_counted_likewise(name: str) -> None:
    net, teacher, x = student(name).eval(), capture(network(name)).eval(), images(name, 3)
    for counts, model, run in (
        (operations(net, repeat(x, STEPS), "quantised"), net, quantised),
        (operations(teacher, repeat(x, STEPS), "ann"), teacher, ann),
    ):
        assert counts.steps == 1
        arrived = inputs_of(model, lambda model=model, run=run: run(model, repeat(x, STEPS)))
        total = sum(int(each[0].count_nonzero()) for each in arrived.values())
        assert sum(float(layer.nonzero.sum()) for layer in counts.layers) == total
        assert not counts.uncounted


KINDS = {
    "residual": ["image", "spikes", "multi-valued"],
    "stages": ["image", "multi-valued", "spikes", "multi-valued", "multi-valued"],
    "concatenate": ["image", "image", "image", "spikes"],
    "size of input": ["image", "spikes"],
    "functional dropout": ["image", "spikes"],
    "max pool": ["image", "spikes", "spikes"],
    "max pool of spikes": ["image", "multi-valued"],
    "dropout": ["image", "multi-valued", "spikes"],
    "depthwise": ["image", "spikes", "spikes", "multi-valued"],
    "mlp": ["image", "spikes", "spikes"],
    "one-dimensional": ["image", "multi-valued", "spikes"],
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_kinds_are_those_of_the_graph(name: str) -> None:
    counts = operations(student(name), repeat(images(name), STEPS))
    assert [layer.input for layer in counts.layers] == KINDS[name]
    assert [layer.constant for layer in counts.layers].count(True) == (
        2 if name == "concatenate" else 1
    )


class Added(nn.Module):
    """A sum of two activations, of which one can be silent, before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.one, self.two = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(self.left(x)) + self.two(self.right(x)))


def added(silent: bool = False) -> tuple[nn.Module, Tensor]:
    net = convert(Added(), IF(threshold=0.5))
    if silent:
        nn.init.zeros_(net.right.weight)
    return net, torch.randn(STEPS, 3, 6)


def test_a_sum_is_multi_valued_even_if_it_holds_one_spike_train() -> None:
    net, x = added(silent=True)
    last = operations(net, x).layers[-1]
    assert last.input == "multi-valued"
    assert torch.equal(last.events, last.arrivals) and last.arrivals.sum() > 0


class Shifted(nn.Module):
    """Spikes plus a number, before a layer."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.first, self.last, self.number = nn.Linear(6, 6), nn.Linear(6, 3), number
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)) + self.number)


@pytest.mark.parametrize(("number", "kind"), [(0, "spikes"), (0.5, "current")])
def test_what_is_added_decides(number: float, kind: str) -> None:
    counts = operations(convert(Shifted(number)), torch.randn(STEPS, 3, 6))
    assert counts.layers[-1].input == kind and not counts.additions


def test_spikes_of_a_sum_are_counted_one_by_one() -> None:
    net, x = added()
    counts = operations(net, x)
    taps = bptt(net, x, dict.fromkeys(("one", "two"), ("mean", "spikes"))).taps
    left, right = (taps[path].spikes for path in ("one", "two"))
    assert torch.equal(counts.layers[-1].events, 6 * (left + right).double().sum((0, 2)))
    assert torch.equal(counts.layers[-1].arrivals, 6 * ((left + right) > 0).double().sum((0, 2)))
    (addition,) = counts.additions  # one train is there already, the other one is added
    assert torch.equal(addition.arrivals, right.double().sum((0, 2))) and addition.separable


POOLS = {
    "overlapping": nn.AvgPool2d(3, 2, 1),
    "ceiling": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "uneven": nn.AdaptiveAvgPool2d((3, 2)),
    "one": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("pool", POOLS)
def test_spikes_reach_through_a_pooling_as_often_as_it_shows_them(pool: str) -> None:
    """The slope of (weights of ones) after (window sums) at each spike, by autograd."""
    net = nn.Sequential(POOLS[pool], nn.Conv2d(2, 3, 2, padding=1), nn.Flatten(1))
    spikes = (torch.rand(STEPS, 3, 2, 7, 5) < 0.3).float()
    counts = operations(net, spikes, shown="spikes")
    x = torch.zeros(1, 2, 7, 5, dtype=torch.float64, requires_grad=True)
    conv = nn.Conv2d(2, 3, 2, padding=1, bias=False).double()
    nn.init.ones_(conv.weight)
    shown = POOLS[pool](x)
    sizes = [  # how many entries each window has: what its average divides by
        1 / torch.autograd.grad(shown[0, 0, i, j], x, retain_graph=True)[0].max()
        for i, j in itertools.product(*(range(n) for n in shown.shape[2:]))
    ]
    windows = torch.stack(sizes).reshape(shown.shape[2:])
    (reach,) = torch.autograd.grad(conv(shown * windows).sum(), x)
    expected = (spikes.double() * reach).sum((0, 2, 3, 4))
    torch.testing.assert_close(counts.layers[0].events, expected)
    assert counts.layers[0].input == "multi-valued"


def test_a_silent_network_accumulates_nothing() -> None:
    for name in sorted(MODELS):
        net = student(name, IF(threshold=1e6))
        counts = operations(net, repeat(images(name), STEPS))
        assert counts.rate == 0
        driven = [layer for layer in counts.layers if layer.input in ("spikes", "multi-valued")]
        assert all(float(layer.arrivals.sum()) == 0 for layer in driven) and driven
        assert all(float(each.arrivals.sum()) == 0 for each in counts.additions)
        strict = of_student(counts, FP32)[0]
        assert all(strict.sum(name).driven == 0 for name in ACCOUNTINGS)


def test_counts_are_linear_in_spikes() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.Flatten())
    first = torch.rand(STEPS, 5, 2, 8, 8) < 0.2
    second = (torch.rand(STEPS, 5, 2, 8, 8) < 0.3) & ~first
    each = [
        operations(net, x.float(), shown="spikes").layers[0].arrivals
        for x in (first, second, first | second)
    ]
    assert torch.equal(each[0] + each[1], each[2])


def test_every_neuron_is_updated_and_every_spike_resets() -> None:
    net, x = student("mlp", LIF(tau=2.0, threshold=0.5)).eval(), moving("mlp", STEPS, 5)
    counts = operations(net, x)
    paths = [cell.path for cell in counts.cells]
    spikes = bptt(net, x, dict.fromkeys(paths, ("mean", "spikes"))).taps
    for cell in counts.cells:
        assert torch.equal(cell.spikes, spikes[cell.path].spikes.double().sum((0, 2)))
        assert cell.count == spikes[cell.path].spikes[0, 0].numel() and cell.leaks
    total = sum(s.spikes.detach().double().sum() for s in spikes.values())
    assert counts.rate == pytest.approx(float(total) / (5 * STEPS * 20))


def test_both_signs_are_accumulates() -> None:
    net = student("mlp", IF(threshold=0.4, signed=True, initial=0.2)).eval()
    x = 3 * moving("mlp", 8, 16)
    counts = operations(net, x)
    assert sum(float(cell.negative.sum()) for cell in counts.cells) > 0
    spikes = bptt(net, x, {counts.cells[0].path: ("mean", "spikes")}).taps
    sent = spikes[counts.cells[0].path].spikes
    assert torch.equal(counts.layers[1].arrivals, 8 * sent.abs().double().sum((0, 2)))


def test_first_spikes_of_a_constant_image_are_the_levels() -> None:
    """Over T steps of a constant current a neuron sends as many spikes as its level says."""
    net, x = student("mlp").eval(), repeat(images("mlp", 6), STEPS)
    found = quantised(net, x, [operations(net, x).cells[0].path])
    cell = operations(net, x).cells[0]
    level = found.taps[cell.path].mean.detach() * STEPS / 0.75
    assert torch.equal(cell.spikes, level.round().double().sum(1))
    bits = [sum(bin(round(float(v))).count("1") for v in row) for row in level]
    counted = operations(net, x, "quantised").layers[1]
    assert counted.events.tolist() == [8 * count for count in bits]


def test_set_bits() -> None:
    assert set_bits(torch.arange(9.0), 8).tolist() == [bin(n).count("1") for n in range(9)]


def test_encoded_spikes_are_accumulates_from_the_first_layer_on() -> None:
    net, x = student("mlp"), images("mlp").abs()
    counts = operations(net, Poisson(STEPS)(x.unsqueeze(2)).squeeze(3), shown="spikes")
    assert counts.layers[0].input == "spikes" and not counts.layers[0].constant
    shown = operations(net, moving("mlp", STEPS), "quantised", "spikes").layers[0]
    assert shown.input == "image"  # without time their mean is what a layer sees


@pytest.mark.parametrize("name", ["residual", "mlp"])
@pytest.mark.parametrize("way", ["spiking", "quantised"])
def test_batches_join(name: str, way: Any) -> None:
    net, x = student(name), images(name, 7)
    whole = operations(net, repeat(x, STEPS), way)
    parts = joined([operations(net, repeat(part, STEPS), way) for part in x.split(3)])
    for one, other in zip(
        [*whole.layers, *whole.cells, *whole.additions],
        [*parts.layers, *parts.cells, *parts.additions],
        strict=True,
    ):
        for key, value in vars(one).items():
            same = getattr(other, key)
            assert torch.equal(value, same) if isinstance(value, Tensor) else value == same


def test_counting_leaves_a_network_as_it_was() -> None:
    net = student("residual").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    operations(net, repeat(images("residual"), STEPS))
    assert net.training and all(
        torch.equal(value, before[name]) for name, value in net.state_dict().items()
    )


def test_what_cannot_be_counted_is_named() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(x, x.transpose(1, 2)) * x.sum()

    assert set(operations(Attention(), torch.ones(1, 2, 3, 3), "ann").uncounted) == {
        "matmul",
        "mul",
    }


def test_published_count_of_resnet20() -> None:
    """40.55 million multiply-accumulates without shortcuts, as its authors' table rounds to 41."""
    net = build_model("resnet20", classes=10, channels=3, size=(32, 32), width=16, seed=0)
    counts = operations(net, torch.zeros(1, 1, 3, 32, 32), "ann")
    assert sum(layer.dense for layer in counts.layers) == 40_551_040


# ---- other tools --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jelly() -> ModuleType:
    return pytest.importorskip(
        "spikingjelly.activation_based.op_counter", reason="spikingjelly is not installed"
    )


@pytest.fixture(scope="module")
def neurobench() -> ModuleType:
    return pytest.importorskip("neurobench.metrics.workload", reason="neurobench is not installed")


def random_network(seed: int, theta: float = 1.0, width: int = 6) -> tuple[nn.Module, Tensor]:
    """Convolutions of any geometry with neurons of threshold 1, linear layers, an image."""
    draw = random.Random(seed)
    layers: list[nn.Module] = []
    x = torch.randn(2, draw.choice((2, 4)), 9, 8, generator=torch.Generator().manual_seed(seed))
    shape = x
    for _ in range(draw.choice((1, 2, 3))):
        groups = draw.choice((1, 2))
        conv = nn.Conv2d(
            shape.shape[1],
            width,
            draw.choice((1, 2, 3)),
            stride=draw.choice((1, 2)),
            padding=draw.choice((0, 1, 2)),
            groups=groups,
            bias=draw.random() < 0.5,
        )
        nn.init.normal_(conv.weight, std=0.6)
        shape = conv(shape)
        layers += [conv, IF(threshold=theta, initial=0.5)]
    features = shape[0].numel()
    layers += [nn.Flatten(), nn.Linear(features, 7), IF(threshold=theta, initial=0.5)]
    layers += [nn.Linear(7, 3)]
    return capture(nn.Sequential(*layers)).eval(), repeat(x, STEPS)


def by_name(counts: Counts) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in definitions(counts)}


def jelly_counts(jelly: ModuleType, net: nn.Module, x: Tensor) -> tuple[float, float]:
    """SpikingJelly's SynOps and MACs per image."""
    spikes, products = jelly.SynOpCounter(), jelly.MACCounter()
    with torch.no_grad(), jelly.DispatchCounterMode([spikes, products]):
        bptt(net, x)
    return spikes.get_total() / x.shape[1], products.get_total() / x.shape[1]


@pytest.mark.parametrize("seed", range(20))
def test_synops_of_spikingjelly(jelly: ModuleType, seed: int) -> None:
    net, x = random_network(seed)
    synops, macs = jelly_counts(jelly, net, x)
    ours = by_name(operations(net, x))
    assert ours["exact"]["accumulates"] == ours["SpikingJelly"]["accumulates"] == synops
    assert ours["SpikingJelly"]["macs"] == macs


def neurobench_counts(neurobench: ModuleType, net: nn.Module, x: Tensor) -> dict[str, float]:
    """NeuroBench's synaptic operations per image."""
    from neurobench.models import TorchModel

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return bptt(self.net, x.transpose(0, 1)).mean_logits

    model, metric = TorchModel(Run()), neurobench.SynapticOperations()
    model.register_hooks()
    batch = x.transpose(0, 1)
    with torch.no_grad():
        logits = model(batch)
        found = metric(model, logits, (batch, logits.argmax(1)))
    model.cleanup_hooks()
    return found


@pytest.mark.parametrize("seed", range(20))
def test_effective_operations_of_neurobench(neurobench: ModuleType, seed: int) -> None:
    net, x = random_network(seed)
    theirs, ours = neurobench_counts(neurobench, net, x), by_name(operations(net, x))["NeuroBench"]
    assert ours["accumulates"] == theirs["Effective_ACs"]
    assert ours["macs"] == theirs["Effective_MACs"]
    assert ours["dense"] == theirs["Dense"]


def test_other_tools_miss_spikes_that_are_not_one(
    jelly: ModuleType, neurobench: ModuleType
) -> None:
    """What propagates is theta s. Both tools look for values of 0 and 1 (NeuroBench also -1)."""
    net, x = random_network(3, theta=0.75)
    ours = operations(net, x)
    accumulates = by_name(ours)["exact"]["accumulates"]
    assert accumulates > 0 and jelly_counts(jelly, net, x)[0] == 0
    theirs = neurobench_counts(neurobench, net, x)
    assert theirs["Effective_ACs"] == 0
    assert theirs["Effective_MACs"] == by_name(ours)["NeuroBench"]["macs"] + accumulates


def test_spikingjelly_has_no_signed_spikes(jelly: ModuleType, neurobench: ModuleType) -> None:
    """To it they are dense MACs; NeuroBench counts both signs, as we do."""
    torch.manual_seed(0)
    net = capture(
        nn.Sequential(nn.Linear(6, 12), IF(signed=True, initial=0.5), nn.Linear(12, 3))
    ).eval()
    x = 4 * torch.randn(8, 5, 6)
    ours = operations(net, x)
    assert sum(float(cell.negative.sum()) for cell in ours.cells) > 0
    assert jelly_counts(jelly, net, x) == (0, by_name(ours)["SpikingJelly"]["macs"])
    theirs = neurobench_counts(neurobench, net, x)
    assert theirs["Effective_ACs"] == by_name(ours)["exact"]["accumulates"]


def test_padding_is_input_to_spikingjelly_and_papers(
    jelly: ModuleType, neurobench: ModuleType
) -> None:
    """For MACs of an image the kernel's weights outside of it count there, not to NeuroBench."""
    net = capture(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), IF(), nn.Flatten(), nn.Linear(9, 2)))
    x = repeat(torch.randn(1, 1, 3, 3), 1)
    assert jelly_counts(jelly, net.eval(), x)[1] == 9 * 9
    layer = operations(net, x).layers[0]
    assert (layer.dense, layer.inside) == (81, 49)  # 4 corners x 4, 4 edges x 6, 1 x 9
    assert neurobench_counts(neurobench, net, x)["Effective_MACs"] == 49


def test_neurobench_leaves_out_pruned_weights(neurobench: ModuleType) -> None:
    """A weight of exactly zero is no operation there; here every arriving spike counts."""
    net, x = random_network(5)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight[0] = 0
    ours = operations(net, x)
    less = float(ours.layers[-1].arrivals.mean()) / 3
    theirs = neurobench_counts(neurobench, net, x)["Effective_ACs"]
    assert less > 0 and theirs == pytest.approx(by_name(ours)["exact"]["accumulates"] - less)


def test_a_sum_is_macs_to_spikingjelly_unless_it_looks_binary(jelly: ModuleType) -> None:
    torch.manual_seed(0)
    net = convert(Added(), IF(threshold=1.0, initial=0.5)).eval()
    x = 2 * torch.randn(STEPS, 3, 6)
    assert float(operations(net, x).layers[-1].events.max()) > 0
    assert jelly_counts(jelly, net, x)[0] == 0
    nn.init.zeros_(net.right.weight)
    counts = operations(net, x)
    assert jelly_counts(jelly, net, x)[0] == float(counts.layers[-1].events.mean()) > 0
    assert by_name(counts)["SpikingJelly"]["accumulates"] == 0  # known from the graph


def test_formula_of_the_papers_by_hand() -> None:
    net, x = random_network(2)
    counts = operations(net, x)
    arrived = list(inputs_of(net, lambda: bptt(net, x)).values())
    total = 0.0
    for layer, (value,) in list(zip(counts.layers, arrived, strict=True))[1:]:
        rate = float(value.ne(0).double().mean())
        total += 0.9 * rate * STEPS * layer.dense
    first = 4.6 * counts.layers[0].dense
    rows = by_name(counts)
    assert rows["papers' formula"]["picojoules"] == pytest.approx(total + STEPS * first)
    once = rows["papers' formula, first layer once"]["picojoules"]
    assert once == pytest.approx(total + first)


# ---- energy -------------------------------------------------------------------------------


def test_constants() -> None:
    assert (FP32.mac, FP32.add) == (pytest.approx(4.6), 0.9)
    assert (INT8.mac, INT8.add) == (pytest.approx(0.23), 0.03)
    assert (INT8_32.mac, INT8_32.add) == (pytest.approx(0.3), 0.1)
    assert "ISSCC 2014" in HOROWITZ.source
    assert FP32.level(3) == pytest.approx(2.7) and FP32.level(30) == FP32.mac


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_energy_of_a_student_by_hand(precision: Any) -> None:
    net, x = student("residual"), repeat(images("residual", 3), STEPS)
    counts = operations(net, x)
    first, second, last = counts.layers
    strict, favourable, recomputed = of_student(counts, precision)
    spikes = precision.add * second.arrivals.mean()
    image = precision.mac * first.inside
    assert strict.synapses.total == pytest.approx(
        float(image + spikes + precision.mac * last.arrivals.mean())
    )
    assert favourable.synapses.total == pytest.approx(
        float(image + spikes + precision.add * last.events.mean())
    )
    again = recomputed.synapses.total - strict.synapses.total
    assert again == pytest.approx((STEPS - 1) * image)
    sent = sum(float(cell.spikes.mean()) for cell in counts.cells)
    assert strict.neurons.total == pytest.approx(precision.add * (2 * 512 * STEPS + sent))
    skip, pool = counts.additions
    assert strict.additions.total == pytest.approx(
        float(precision.add * (skip.arrivals.mean() + pool.arrivals.mean()))
    )
    assert favourable.additions.total == pytest.approx(float(precision.add * skip.arrivals.mean()))


def test_traffic_by_hand() -> None:
    counts = operations(student("mlp"), repeat(images("mlp"), STEPS))
    moved = traffic(counts, FP32)
    first, rest = 6 * 12 + 12, 12 * 8 + 8 * 3 + 3
    assert moved.weights == 32 * (first + STEPS * rest)
    assert moved.potentials == 2 * 32 * STEPS * 20
    assert moved.signals == 32 * 6 + STEPS * 20 + STEPS * 20  # image, sent, read
    held = traffic(counts, FP32, by_layer=True)
    assert held.weights == 32 * (first + rest) and held.potentials == 0
    ann_counts = operations(network("mlp"), repeat(images("mlp"), STEPS), "ann")
    assert traffic(ann_counts, FP32).signals == 32 * (6 + 20 + 20)
    levels = operations(student("mlp"), repeat(images("mlp"), STEPS), "quantised")
    assert traffic(levels, FP32, STEPS).signals == 32 * 6 + 3 * (20 + 20)


def test_a_leak_is_a_multiplication() -> None:
    x = repeat(images("mlp"), STEPS)
    plain, leaky = (
        of_student(operations(student("mlp", n), x), FP32)[0].neurons.fixed
        for n in (IF(threshold=0.5), LIF(threshold=0.5))
    )
    assert leaky - plain == pytest.approx(3.7 * 20 * STEPS)


def rivals(name: str = "residual") -> dict[str, Any]:
    x = repeat(images(name, 5), STEPS)
    teacher = operations(network(name), x, "ann")
    levels = operations(student(name), x, "quantised")
    return {
        **{f"ann {e.name}": e for e in of_ann(teacher, FP32)},
        **{f"levels {e.name}": e for e in of_quantised(levels, FP32, STEPS)},
    }


@pytest.mark.parametrize("name", EXACT)
def test_skipping_zeros_is_never_dearer(name: str) -> None:
    found = rivals(name)
    for kind in ("ann", "levels"):
        dense, skipping = found[f"{kind} dense"], found[f"{kind} zero-skipping"]
        for accounting in ACCOUNTINGS:
            assert skipping.sum(accounting).total <= dense.sum(accounting).total


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_both_cost_the_same_at_the_break_even_rate(accounting: str) -> None:
    counts = operations(student("residual"), repeat(images("residual", 5), STEPS))
    mine = of_student(counts, FP32)[1]
    met = 0
    for name, rival in rivals().items():
        found = against(mine, rival, name, accounting, counts.rate)
        part = mine.sum(accounting)
        if found.break_even is not None:
            scale, met = found.break_even / counts.rate, met + 1
            assert part.fixed + scale * part.driven == pytest.approx(found.other)
            assert found.wins == (counts.rate < found.break_even)
        else:
            assert found.wins == (part.fixed < found.other)
    assert met or accounting != "arithmetic"


def test_crossing() -> None:
    assert crossing(Part(2.0, 1.0), 4.0, 0.1) == (
        pytest.approx(0.2),
        "cheaper below a mean firing rate of 0.200",
    )
    assert crossing(Part(4.0, 1.0), 4.0, 0.1) == (None, "dearer even when it is silent")
    assert crossing(Part(2.0, 1.0), 400.0, 0.1) == (None, "cheaper at every firing rate")
    assert crossing(Part(2.0, 0.0), 4.0, 0.0)[0] is None


# ---- of a run -----------------------------------------------------------------------------


def quiet(done: int, total: int, words: str) -> None:
    assert 0 <= done <= total and words


def test_a_subject_is_examined() -> None:
    net = student("residual").float()
    other = seen("qann", student("residual", seed=3).float(), "quantised")
    teacher = seen("teacher", network("residual").float(), "ann")
    subject = watched(seen("hybrid", net), teacher, others=(other,))
    found = examine(subject, quiet)
    json.dumps(found, allow_nan=False)
    names = {each["network"]: each["way"] for each in found["networks"]}
    assert names == {
        "teacher": "ann",
        "qann": "quantised",
        "hybrid with 5 levels": "quantised",
        "hybrid": "spiking",
    }
    assert found["images"] == 12 and len(found["sentences"]) == 2 + 3 + 3
    assert len(found["against"]) == 2 * 3 * 4 * (2 + 3 + 3)
    images = torch.cat([x for x, _ in subject.batches()])
    mine = operations(net, repeat(images, STEPS))
    assert found["definitions"][0]["accumulates"] == pytest.approx(
        float(mine.layers[1].arrivals.mean())
    )


def test_every_network_has_its_accuracy_on_the_counted_images() -> None:
    net, ordinary = student("residual").float(), network("residual").float()
    subject = watched(seen("hybrid", net), seen("teacher", ordinary, "ann"))
    found = {n["network"]: n["accuracy"] for n in examine(subject, quiet)["networks"]}
    pixels, labels = (torch.cat(parts) for parts in zip(*subject.batches(), strict=True))
    with torch.no_grad():
        ways = {
            "teacher": ordinary.eval()(pixels),
            "hybrid": bptt(net.eval(), repeat(pixels, STEPS)).mean_logits,
            "hybrid with 5 levels": quantised(net, repeat(pixels, STEPS)).mean_logits,
        }
    for name, logits in ways.items():
        rightly = [int(z.argmax()) == int(y) for z, y in zip(logits, labels, strict=True)]
        assert found[name] == pytest.approx(sum(rightly) / len(rightly)), name


def test_sentences_say_who_wins_and_who_does_not() -> None:
    counts = operations(student("residual"), repeat(images("residual", 5), STEPS))
    rows = [
        against(each, dataclasses.replace(rival, precision="fp32"), name, accounting, counts.rate)
        for each in of_student(counts, FP32)[:2]
        for name, rival in (
            ("a giant", dataclasses.replace(each, synapses=Part(1e9))),
            ("a dwarf", dataclasses.replace(each, synapses=Part(0.0), neurons=Part())),
        )
        for accounting in ACCOUNTINGS
    ]
    won, lost = sentences(rows)
    assert "costs less than a giant" in won and "8 of 8" in won
    assert "does not win against a dwarf" in lost and "0 of 8" in lost


def test_an_ann_alone_has_costs_but_no_rival() -> None:
    found = examine(watched(seen("teacher", network("residual").float(), "ann"), None), quiet)
    assert [each["network"] for each in found["networks"]] == ["teacher"]
    assert "against" not in found and found["energy"]


def test_a_network_that_cannot_be_levels_is_left_out_and_said() -> None:
    net = student("residual", LIF(threshold=0.5)).float()
    teacher = seen("teacher", network("residual").float(), "ann")
    found = examine(watched(seen("hybrid", net), teacher), quiet)
    (note,) = found["notes"]
    assert "hybrid with 5 levels is left out" in note and "leaks" in note
    assert {each["rival"] for each in found["against"]} == {
        "teacher (dense)",
        "teacher (zero-skipping)",
    }


def test_nothing_to_count_is_an_error() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    broken = seen("teacher", nn.Flatten(), "ann")
    broken = dataclasses.replace(broken, net=Untraceable())
    with pytest.raises(UserError, match="cannot trace"):
        examine(watched(broken, None), quiet)


def test_residual_of_currents_costs_nothing_unless_it_goes_elsewhere() -> None:
    class Two(nn.Module):
        def __init__(self, twice: bool) -> None:
            super().__init__()
            self.left, self.right, self.last = (nn.Linear(6, 6) for _ in range(3))
            self.relu, self.again, self.twice = nn.ReLU(), nn.ReLU(), twice

        def forward(self, x: Tensor) -> Tensor:
            left = self.left(x)
            total = left + self.right(x)
            return self.last(self.relu(total)) + (self.again(left) if self.twice else 0)

    x = repeat(torch.randn(3, 6), STEPS)
    assert operations(convert(scattered(Two(False))), x).additions == ()
    (first, *_) = operations(convert(scattered(Two(True))), x).additions
    assert first.kind == "current" and first.entries == 6


def test_a_membrane_shortcut_adds_currents_everywhere() -> None:
    """Its currents go to a neuron and, through an identity, to the next sum: all are added."""
    size = {"classes": 3, "channels": 2, "size": (8, 8), "width": 4, "seed": 0}
    net = convert(build_model("ms-resnet18", **size))
    counts = operations(net, torch.randn(STEPS, 2, 2, 8, 8))
    currents = [each for each in counts.additions if each.kind == "current"]
    assert [each.entries for each in currents] == [4 * 64, 4 * 64, 8 * 16, 16 * 4, 32]
    fixed = of_student(counts, FP32)[0].additions.fixed
    assert fixed == pytest.approx(0.9 * STEPS * sum(each.entries for each in currents))


def test_layers_written_as_functions_count_alike() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 4, 3, 2, 1), nn.Linear(64, 3)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(F.conv2d(x, self.first.weight, self.first.bias, 2, padding=1))
            return F.linear(x.flatten(1), self.last.weight, bias=self.last.bias)

    written = Written()
    plain = nn.Sequential(written.first, nn.ReLU(), nn.Flatten(), written.last)
    x = 2 * torch.randn(STEPS, 3, 2, 8, 8)
    nets = [convert(net, IF(threshold=0.3)) for net in (written, plain)]
    for one, other in zip(*(operations(net, x).layers for net in nets), strict=True):
        assert torch.equal(one.arrivals, other.arrivals) and one.arrivals.sum() > 0
        assert (one.kind, one.input, one.dense, one.parameters) == (
            other.kind,
            other.input,
            other.dense,
            other.parameters,
        )
