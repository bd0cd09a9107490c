"""Rate-based backpropagation with time outside against the order by layers, its slow twin."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, fx, nn

from small import MODELS, assert_same, gradients, images, moving, neurons, student
from spikelet.bench.memory import allocations
from spikelet.bench.subject import Subject
from spikelet.carry import Closed, Forward, carry
from spikelet.convert import convert
from spikelet.distill import Distiller
from spikelet.encode import Direct, repeat
from spikelet.errors import UserError
from spikelet.execute import gives, rate
from spikelet.models import build_model
from spikelet.neuron import IF, LIF, PLIF, Neuron, per_channel
from spikelet.norm import FrozenNorm, freeze_norms
from spikelet.recipe import Training, default_recipe
from spikelet.slopes import respond
from spikelet.spike import Sigmoid, fire
from spikelet.stepwise import planned
from spikelet.terms import CrossEntropy
from spikelet.train import load
from spikelet.train.job import distill, load_data, teach

STEPS, SEED = 4, 1
by_step = partial(rate, order="time")
ORDERS = (rate, by_step)


def fixed(net: nn.Module, how: str = "frozen") -> nn.Module:
    """A network whose norms have fixed statistics: frozen and training, or in eval mode."""
    return freeze_norms(net).train() if how == "frozen" else net.eval()


def input_of(name: str, still: bool) -> Tensor:
    return repeat(images(name), STEPS) if still else moving(name, STEPS)


def both(run: Callable[[Callable], tuple[Tensor, nn.Module, Tensor]]) -> None:
    """Asserts equal logits and gradients; `run` gives (logits, network, loss) of an order."""
    found = []
    for execute in ORDERS:
        torch.manual_seed(SEED)
        logits, net, loss = run(execute)
        found.append((logits.detach(), gradients(net, loss)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-10)
    assert_same(found[1][1], found[0][1])
    assert any(float(value.abs().max()) > 0 for value in found[0][1].values())


# ---- the same values and gradients ------------------------------------------------------------


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("how", ["frozen", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_both_orders_are_the_same(name: str, how: str, still: bool) -> None:
    """Logits of each step and all gradients, with a loss that weighs the steps unevenly."""

    def run(execute: Callable) -> tuple[Tensor, nn.Module, Tensor]:
        net = fixed(student(name, IF(0.75, 0.25, learn_threshold=how == "eval")), how)
        logits = execute(net, input_of(name, still)).logits
        weights = torch.linspace(1, 2, STEPS, dtype=logits.dtype).view(-1, 1, 1)
        return logits, net, (weights * (logits + 1).square()).sum()

    both(run)


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("name", ["stages", "concatenate", "max pool of spikes", "dropout"])
def test_taps_are_the_same(name: str, still: bool) -> None:
    """The means at every call that gives a tensor, each with a gradient of its own."""

    def run(execute: Callable) -> tuple[Tensor, nn.Module, Tensor]:
        net = fixed(student(name))
        places = [n.name for n in net.graph.nodes if n.op == "call_module"]
        trace = execute(net, input_of(name, still), places)
        values = [trace.logits, *(trace.taps[path].mean for path in places)]
        loss = sum((i + 1) * value.square().sum() for i, value in enumerate(values))
        return torch.cat([value.flatten() for value in values]), net, loss

    both(run)


def every_neuron() -> dict[str, Neuron]:
    table = neurons(threshold=0.75, initial=0.25)
    table |= {f"{k}-learned": v for k, v in neurons(threshold=0.75, learn_threshold=True).items()}
    for reset, decay in (("soft", False), ("hard", True)):
        table[f"PLIF-{reset}"] = PLIF(1.6, decay, 0.75, reset=reset, learn_threshold=decay)
    return table | {"Tired": Tired()}


class Tired(Neuron):
    """Rests for one step after a spike; its state holds whole numbers, and one of Python's."""

    def __init__(self) -> None:
        super().__init__(0.75, 0.25, learn_threshold=True)
        self.share = nn.Parameter(torch.tensor(0.9))

    def start(self, current: Tensor) -> dict[str, Any]:
        rest = torch.zeros_like(current, dtype=torch.long)
        return {"v": self.share * current, "rest": rest, "time": 0}

    def step(self, state: dict[str, Any], current: Tensor) -> tuple[Any, Tensor, Tensor]:
        theta = per_channel(self.theta, current)
        h = self.share * state["v"] + current / (1 + 0.1 * state["time"])
        s = fire(h / theta - 1, Sigmoid()) * (state["rest"] == 0)
        return {"v": h - s * theta, "rest": (s > 0).long(), "time": state["time"] + 1}, s, h


@pytest.mark.parametrize("name", ["IF-signed-full", "LIF-hard-0.2-full", "PLIF-hard", "Tired"])
def test_neurons_in_a_network(name: str) -> None:
    def run(execute: Callable) -> tuple[Tensor, nn.Module, Tensor]:
        net = fixed(student("residual", every_neuron()[name]))
        logits = execute(net, moving(steps=5)).logits
        return logits, net, logits.square().sum()

    both(run)


@pytest.mark.parametrize("name", every_neuron())
def test_carried_slopes_are_those_of_the_scan(name: str) -> None:
    """One neuron with a threshold per channel, by `slopes.respond` over all steps at once."""
    neuron = every_neuron()[name].double()
    neuron.set_threshold(torch.tensor([0.5, 0.75, 1.5]), torch.tensor([0.0, 0.25, 0.1]))
    neuron.double()
    currents = 0.5 + torch.randn(7, 4, 3, 2, dtype=torch.float64)
    expected = respond(neuron, currents, 7)
    carried = carry(neuron, currents[0], 7)
    with torch.no_grad():
        output = torch.stack([carried.step(current) for current in currents])
        found = carried.means()
    torch.testing.assert_close(output, expected.output)
    torch.testing.assert_close(found.output, expected.mean_output)
    torch.testing.assert_close(found.slope, expected.slope)
    assert found.parameters.keys() == (expected.parameters or {}).keys()
    for key, slope in found.parameters.items():
        torch.testing.assert_close(slope, expected.parameters[key][0], msg=key)
    assert isinstance(carried, Forward if any(True for _ in neuron.parameters()) else Closed)


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "ms-resnet18"])
def test_whole_models_in_single_precision(name: str) -> None:
    """The same spikes, so that every mean agrees to rounding."""
    x = torch.randn(3, 3, 16, 16)
    model = build_model(name, classes=5, channels=3, size=16, width=4, seed=0)
    found = []
    for execute in ORDERS:
        net = fixed(convert(model, IF(), steps=STEPS, calibrate=x))
        spiking = [n.name for n in net.graph.nodes if isinstance(_module(net, n), Neuron)]
        trace = execute(net, repeat(x, STEPS), spiking)
        loss = trace.logits.square().sum()
        found.append((trace, gradients(net, loss)))
    torch.testing.assert_close(found[1][0].logits, found[0][0].logits, rtol=1e-5, atol=1e-5)
    for path in found[0][0].taps:
        ours, theirs = (trace.taps[path].mean for trace, _ in found)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=path)
    assert_same(found[1][1], found[0][1], 1e-4)


def _module(net: fx.GraphModule, node: fx.Node) -> Any:
    return net.get_submodule(node.target) if node.op == "call_module" else None


@pytest.mark.parametrize("name", ["residual", "mlp", "dropout", "max pool", "depthwise"])
def test_bfloat16_autocast(name: str) -> None:
    """The same spikes; gradients differ by the roundings that a folded norm leaves out."""
    x, found = repeat(images(name, 8).float(), STEPS), []
    for execute in ORDERS:
        net = fixed(student(name).float())
        torch.manual_seed(SEED)
        with torch.autocast("cpu", torch.bfloat16):
            logits = execute(net, x).logits.float()
        found.append((logits, gradients(net, logits.square().sum())))
    assert torch.equal(found[1][0], found[0][0])
    for key, value in found[0][1].items():
        close = 0.02 * float(value.abs().max())
        torch.testing.assert_close(found[1][1][key], value, rtol=0.05, atol=close, msg=key)


@pytest.mark.parametrize("how", ["weights", "norms", "everything but the classifier"])
def test_frozen_parts(how: str) -> None:
    def run(execute: Callable) -> tuple[Tensor, nn.Module, Tensor]:
        net = fixed(student("stages"))
        for key, p in net.named_parameters():
            chosen = {"weights": p.ndim > 1, "norms": p.ndim == 1 and ".1." in key}
            p.requires_grad_(not chosen.get(how, "linear" not in key))
        logits = execute(net, moving("stages")).logits
        return logits, net, logits.square().sum()

    both(run)


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
def test_the_input_has_a_gradient(still: bool) -> None:
    net, found = fixed(student("stages")), []
    for execute in ORDERS:
        x = (images("stages") if still else moving("stages")).requires_grad_()
        logits = execute(net, repeat(x, STEPS) if still else x).logits
        found.append(torch.autograd.grad(logits.square().sum(), x)[0])
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["stages", "dropout", "mlp"])
def test_without_gradients(name: str) -> None:
    net = fixed(student(name, IF(0.75, learn_threshold=True)), "eval")
    with torch.no_grad():
        traces = [execute(net, moving(name), taps) for execute in ORDERS for taps in ((), ["0"])
                  if name != "stages" or not taps]  # fmt: skip
    for trace in traces:
        assert not trace.logits.requires_grad
        torch.testing.assert_close(trace.logits, traces[0].logits)
    tapped = [trace.taps["0"].mean for trace in traces if trace.taps]
    torch.testing.assert_close(tapped[:1], tapped[1:])


def test_the_gradient_can_be_divided_by_the_steps() -> None:
    found = []
    for divided in (False, True):
        net = fixed(student())
        loss = by_step(net, moving(), divide_by_steps=divided).logits.square().sum()
        found.append(gradients(net, loss))
    assert_same({k: STEPS * v for k, v in found[1].items()}, found[0])


# ---- a convolution and its norm as one --------------------------------------------------------


def test_norms_are_folded_where_nobody_reads_between() -> None:
    """All but the norm of the still part; a tap of the convolution keeps its own apart."""
    net = fixed(student("stages"))
    nodes = {node.name: node for node in net.graph.nodes}
    for still, tap, count in ((True, None, 2), (False, None, 3), (False, "layer2_0", 2)):
        plan = planned(net, still, {nodes[tap]: {"mean"}} if tap else {})
        assert len(plan.folded) == count, (still, tap)
    assert not planned(fixed(student("mlp")), False, {}).folded


@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["", "zero scale"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_folded_norm_has_the_gradient_of_the_two_calls(
    bias: bool, affine: bool, scale: float
) -> None:
    """Strides, groups, dilation, and a scale that is zero, by automatic differentiation."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, 2, 2, 2, groups=2, bias=bias)
    norm = nn.BatchNorm2d(6, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
        with torch.no_grad():
            norm.weight[2] *= scale
    last = nn.Linear(6 * 16, 3)
    model = nn.Sequential(nn.ReLU(), conv, norm, nn.ReLU(), nn.Flatten(), last)
    net = convert(model.double().eval(), LIF(threshold=0.4)).double().eval()
    x = torch.randn(STEPS, 2, 4, 8, 8, dtype=torch.float64)
    assert planned(net, False, {}).folded

    def run(execute: Callable) -> tuple[Tensor, nn.Module, Tensor]:
        logits = execute(net, x).logits
        return logits, net, logits.square().sum()

    both(run)


# ---- what it refuses --------------------------------------------------------------------------


def test_norms_of_the_batch_are_refused() -> None:
    net = student("stages").train()
    with pytest.raises(UserError, match=r"norm 'layer1\.1'.*freeze_norms.*norm = 'frozen'"):
        by_step(net, moving("stages"))
    assert by_step(net.eval(), moving("stages")).logits.shape == (STEPS, 4, 3)


@pytest.mark.parametrize("field", ["spikes", "current", "potential"])
def test_fields_of_single_steps_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"tap 'relu2'.*{field}.*order = 'layers'"):
        by_step(fixed(student()), moving(), {"relu2": ("mean", field)})


def test_windows_are_refused() -> None:
    with pytest.raises(UserError, match=r"windows = 2.*one window.*layers"):
        by_step(fixed(student()), moving(), windows=2)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UserError, match="order"):
        rate(fixed(student()), moving(), order="tim")  # type: ignore[arg-type]


class Neighbours(Neuron):
    """A neuron whose layer shares one potential."""

    elementwise = False

    def start(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)

    def step(self, state: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = state + current.mean(1, keepdim=True)
        s = fire(h - 1, Sigmoid())
        return h - s, s, h


def test_a_recurrent_neuron_is_refused() -> None:
    net = fixed(student("mlp", Neighbours()))
    with pytest.raises(UserError, match=r"Neighbours.*bptt"):
        by_step(net, moving("mlp"))


def test_it_gives_means() -> None:
    assert gives(by_step) == "mean"
    terms = {"t": CrossEntropy(per_step=True)}
    with pytest.raises(UserError, match="single steps"):
        Distiller(
            fixed(student(calibrated=True)), terms=terms, execute=by_step, encode=Direct(STEPS)
        )


# ---- memory -----------------------------------------------------------------------------------


def peak(name: str, execute: Callable, steps: int, still: bool, neuron: Neuron) -> int:
    """Bytes of all tensors at once, at most, in one forward and backward pass."""
    net, seen = fixed(student(name, neuron)), images(name, 16)
    x = repeat(seen, steps) if still else moving(name, steps, 16)
    made = Subject(net, seen, torch.arange(16) % 3, lambda _: execute(net, x).logits, "fp32")
    return max(itertools.accumulate(allocations(made)))


@pytest.mark.parametrize(
    ("name", "still"), [("residual", True), ("stages", False), ("max pool of spikes", False)]
)
def test_the_peak_does_not_depend_on_steps(name: str, still: bool) -> None:
    """Within 2 % from T = 2 to 16, the logits "T B K" included; the other order's doubles."""
    ours = [peak(name, by_step, steps, still, IF(0.75)) for steps in (2, 16)]
    assert max(ours) <= 1.02 * min(ours), ours
    theirs = [peak(name, rate, steps, still, IF(0.75)) for steps in (2, 16)]
    assert theirs[1] > 2 * max(theirs[0], ours[1])


def test_the_peak_with_learned_parameters_does_not_depend_on_steps() -> None:
    neuron = PLIF(1.6, learn_threshold=True)
    ours = [peak("residual", by_step, steps, True, neuron) for steps in (2, 16)]
    assert max(ours) <= 1.02 * min(ours), ours


# ---- recipes ----------------------------------------------------------------------------------

DATA = {"kind": "digits", "train": 200, "validation": 40}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stepwise") / "teacher"
    training = Training(epochs=4, batch=50, learning_rate=0.1, clip=1.0)
    model = {"kind": "small-cnn", "width": 4}
    recipe = default_recipe("teach", DATA, model=model, training=training)
    teach(recipe, out, console=QUIET, device="cpu", dataset=load_data(recipe))
    return out


def run(taught: Path, out: Path, order: str, norm: str) -> dict[str, Any]:
    recipe = default_recipe(
        "distill", DATA, "logits", norm=norm, steps=2, teacher={"run": str(taught)},
        training=Training(epochs=1, batch=50, learning_rate=0.01), augment=[],
        execute={"kind": "rate", "order": order},
    )  # fmt: skip
    return distill(recipe, out, console=QUIET, device="cpu", dataset=load_data(recipe))


def test_a_recipe_trains_step_by_step(taught: Path, tmp_path: Path) -> None:
    """The same weights as by layers; afterwards the run is measured in the same order."""
    rows = [run(taught, tmp_path / order, order, "frozen")["rows"] for order in ("layers", "time")]
    assert [row["accuracy"] for row in rows[0]] == [row["accuracy"] for row in rows[1]]
    nets = [load(tmp_path / order).net for order in ("layers", "time")]
    assert any(isinstance(module, FrozenNorm) for module in nets[1].modules())
    for key, value in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_a_recipe_with_trained_norms_is_refused_before_training(
    taught: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"norm '.*norm = 'frozen'"):
        run(taught, tmp_path / "run", "time", "train")
    assert not (tmp_path / "run").exists()


# ---- compiled ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [IF(0.75), LIF(threshold=0.5, reset="hard"), IF(signed=True)])
def test_the_compiled_step_is_the_same(neuron: Neuron) -> None:
    found = []
    for fuse in (False, True):
        net = fixed(student("stages", neuron).float())
        logits = by_step(net, moving("stages").float(), fuse=fuse).logits
        found.append((logits, gradients(net, logits.square().sum())))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert_same(found[1][1], found[0][1], 1e-5)
