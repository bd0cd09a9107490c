"""Relations between the ways of running a network: `ann`, `bptt`, `rate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import (
    MODELS,
    Residual,
    gradients,
    images,
    moving,
    network,
    neurons,
    scattered,
    student,
)
from spikelet.convert import convert
from spikelet.encode import Direct, repeat
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, gives, rate
from spikelet.graph import capture
from spikelet.neuron import IF, LIF, Neuron
from spikelet.norm import freeze_norms
from spikelet.rate import add_later
from spikelet.slopes import eligibility
from spikelet.spike import Sigmoid, fire
from spikelet.trace import Trace

FIELDS = ("mean", "spikes", "current", "potential")
NEURON = {
    "residual": "relu2", "stages": "layer2", "max pool": "3", "dropout": "2", "mlp": "4",
    "depthwise": "1", "one-dimensional": "2", "concatenate": "join", "max pool of spikes": "2",
}  # fmt: skip
"""The path of one neuron in each network."""


def both(run: Callable[[Callable, nn.Module], Tensor], make: Callable[[], nn.Module]) -> list:
    """Gradients of a scalar under `bptt` and under `rate`, with the same masks of dropout."""
    found = []
    for execute in (bptt, rate):
        net = make()
        torch.manual_seed(1)
        found.append(gradients(net, run(execute, net)))
    return found


def close(found: list[dict[str, Tensor]], tolerance: float = 1e-9) -> None:
    for key in found[0]:
        torch.testing.assert_close(
            found[1][key], found[0][key], rtol=tolerance, atol=tolerance, msg=key
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_one_step_is_bptt(name: str, training: bool) -> None:
    """Logits and gradients, learned thresholds included, for an image given as one step."""
    found = both(
        lambda execute, net: (execute(net, images(name).unsqueeze(0)).logits + 1).square().sum(),
        lambda: student(name, IF(0.75, 0.25, learn_threshold=True)).train(training),
    )
    close(found)
    assert any(float(g.abs().max()) > 0 for key, g in found[0].items() if "threshold" in key)


@pytest.mark.parametrize("name", neurons())
def test_one_step_is_bptt_for_every_neuron(name: str) -> None:
    make = partial(student, "residual", neurons(threshold=0.75, learn_threshold=True)[name])
    close(both(lambda execute, net: execute(net, moving(steps=1)).logits.square().sum(), make))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["residual", "stages", "max pool", "mlp", "dropout"])
def test_fields_at_one_step_are_those_of_bptt(name: str, field: str) -> None:
    """Values and gradients of a tap's fields, for weights and learned thresholds."""
    path, values = NEURON[name], []

    def run(execute: Callable, net: nn.Module) -> Tensor:
        tap = execute(net, moving(name, 1), {path: (field,)}).taps[path]
        value = getattr(tap, field)
        values.append(value.detach())
        weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        return (value * weight).sum()

    close(both(run, lambda: student(name, IF(0.75, 0.25, learn_threshold=True))))
    torch.testing.assert_close(values[1], values[0])


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("name", NEURON)
def test_fields_have_the_values_of_every_step(name: str, still: bool) -> None:
    path = NEURON[name]
    x, taps = repeat(images(name), 4) if still else moving(name), []
    for execute in (bptt, rate):
        torch.manual_seed(1)
        taps.append(execute(student(name), x, {path: FIELDS}).taps[path])
    for field in FIELDS:
        a, b = (getattr(tap, field) for tap in taps)
        assert a.shape == b.shape, field
        torch.testing.assert_close(b, a, msg=field)
    assert taps[0].spikes.shape == (4, *taps[0].mean.shape)
    torch.testing.assert_close(taps[0].spikes.mean(0) * 0.75, taps[0].mean)
    assert set(taps[1].spikes.detach().unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("field", ["spikes", "current", "potential"])
def test_steps_of_a_field_have_the_gradient_of_the_mean(field: str) -> None:
    """Under `rate` every step of a field moves as the mean does."""
    found = []
    for pick in ("first", "last", "mean"):
        net = student("stages")
        value = getattr(rate(net, moving("stages"), {"layer2": (field,)}).taps["layer2"], field)
        chosen = {"first": value[0], "last": value[-1], "mean": value.mean(0)}[pick]
        found.append(gradients(net, (chosen * torch.arange(16.0).reshape(4, 4)).sum()))
    close(found[:2])
    close(found[1:])
    assert float(found[0]["layer1.0.weight"].abs().max()) > 0


def test_the_mean_of_the_first_neurons_potential_has_the_exact_gradient() -> None:
    """A potential's mean is not the mean of what was sent: it has its own slope."""
    for neuron in (IF(0.75, learn_threshold=True), LIF(tau=1.25, threshold=0.5)):
        found = both(
            lambda execute, net: execute(net, repeat(images(), 3), {"relu1": ("potential",)})
            .taps["relu1"].potential.mean(0).square().sum(),
            lambda neuron=neuron: student("residual", neuron),
        )  # fmt: skip
        close(found)


def test_the_mean_of_a_tap_is_what_propagates() -> None:
    net = student("residual")
    trace = rate(net, moving(), {"relu2": ("spikes",), "pool": ("mean",)})
    tap = trace.taps["relu2"]
    torch.testing.assert_close(tap.mean, 0.75 * tap.spikes.mean(0))
    torch.testing.assert_close(trace.taps["pool"].mean, tap.mean.mean((2, 3), keepdim=True))
    logits = net.linear(trace.taps["pool"].mean.flatten(1))
    torch.testing.assert_close(trace.mean_logits, logits)


@pytest.mark.parametrize("execute", [bptt, rate])
@pytest.mark.parametrize("name", MODELS)
def test_every_place_can_be_tapped(name: str, execute: Callable) -> None:
    """Shape, finite values and gradients, at every call that gives a tensor per image."""
    net = student(name)
    places = [n.name for n in net.graph.nodes if n.op == "call_module"]
    trace = execute(net, moving(name), places)
    assert list(trace.taps) == places
    for path, tap in trace.taps.items():
        assert len(tap.mean) == 4, path
        assert bool(torch.isfinite(tap.mean).all()), path
    found = gradients(net, sum(tap.mean.square().sum() for tap in trace.taps.values()))
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert trace.logits.shape == (4, 4, 3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("execute", [bptt, rate])
@pytest.mark.parametrize("name", MODELS)
def test_images_do_not_see_each_other(name: str, execute: Callable, batch: int) -> None:
    """In eval mode an image's logits are the same in any batch; also in a batch of one."""
    net = student(name).eval()
    x = repeat(images(name, 5), 3)
    whole, part = execute(net, x).logits, execute(net, x[:, :batch]).logits
    torch.testing.assert_close(part, whole[:, :batch])


@pytest.mark.parametrize("name", ["stages", "dropout", "mlp"])
def test_no_gradient_is_recorded_where_none_is_wanted(name: str) -> None:
    net = student(name)
    with torch.no_grad():
        trace = rate(net, moving(name), {NEURON[name]: FIELDS})
    assert not trace.logits.requires_grad
    assert not trace.taps[NEURON[name]].potential.requires_grad


@pytest.mark.parametrize("frozen", ["weights", "norms", "everything but the classifier"])
def test_frozen_parts(frozen: str) -> None:
    """Some parameters need no gradient: the others get the same as ever."""
    whole, part = student("stages"), student("stages")
    for key, p in part.named_parameters():
        norm = p.ndim == 1 and ".1." in key
        chosen = {"weights": p.ndim > 1, "norms": norm}.get(frozen, "linear" not in key)
        p.requires_grad_(not chosen)
    expected = gradients(whole, rate(whole, moving("stages")).logits.square().sum())
    found = gradients(part, rate(part, moving("stages")).logits.square().sum())
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], msg=key)


@pytest.mark.parametrize("execute", [bptt, rate])
def test_the_input_has_a_gradient(execute: Callable) -> None:
    """For an image shown at each step: saliency maps read it."""
    net = student("stages").eval()
    image = images("stages").requires_grad_()
    (grad,) = torch.autograd.grad(execute(net, repeat(image, 1)).logits.square().sum(), image)
    assert grad.shape == image.shape
    assert float(grad.abs().max()) > 0
    if execute is rate:
        other = images("stages").requires_grad_()
        logits = bptt(net, repeat(other, 1)).logits
        torch.testing.assert_close(grad, torch.autograd.grad(logits.square().sum(), other)[0])


@pytest.mark.parametrize("execute", [bptt, rate])
@pytest.mark.parametrize("name", ["residual", "mlp", "dropout", "max pool", "depthwise"])
def test_bfloat16_autocast(name: str, execute: Callable) -> None:
    """Finite, near single precision, and parameters keep their type."""
    x, runs = repeat(images(name, 8).float(), 4), []
    for enabled in (False, True):
        net = student(name).float().eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            trace = execute(net, x, {NEURON[name]: ("mean", "potential")})
            loss = F.cross_entropy(trace.mean_logits.float(), torch.arange(8) % 3)
        runs.append((trace.mean_logits.float(), gradients(net, loss)))
        assert trace.taps[NEURON[name]].mean.dtype == torch.float32
    for key, value in runs[1][1].items():
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value).all()), key
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=0.2, atol=0.2)


@pytest.mark.parametrize("execute", [bptt, rate])
def test_bfloat16_autocast_in_training(execute: Callable) -> None:
    net, x = student("stages").float().train(), repeat(images("stages", 8).float(), 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = execute(net, x).mean_logits.float().square().mean()
    for key, value in gradients(net, loss).items():
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value).all()), key
    assert all(b.dtype != torch.bfloat16 for b in net.buffers())


def test_norms_without_running_statistics() -> None:
    """They use the batch's also in eval mode: spikes' statistics, at every T."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    ).double().eval()  # fmt: skip
    net = convert(model).double().eval()
    runs = [execute(net, moving(), ["4"]) for execute in (bptt, rate)]
    torch.testing.assert_close(runs[1].logits, runs[0].logits)
    torch.testing.assert_close(runs[1].taps["4"].mean, runs[0].taps["4"].mean)


# ---- refusals and options ---------------------------------------------------------------------


class Lateral(Neuron):
    """A recurrent neuron: its current has the mean of the layer's last spikes."""

    elementwise = False

    def start(self, current: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(current), torch.zeros_like(current)

    def step(self, state: tuple[Tensor, Tensor], current: Tensor):
        h = 0.5 * state[0] + current + state[1].mean(1, keepdim=True)
        s = fire(h / self.theta - 1, Sigmoid())
        return (h - self.theta * s, s), s, h


def test_a_recurrent_neuron_is_for_bptt() -> None:
    net = convert(Residual().double(), Lateral()).double()
    with pytest.raises(UserError, match=r"Lateral.*own current alone.*bptt"):
        rate(net, moving())
    assert bptt(net, moving()).logits.shape == (4, 4, 3)


def test_each_says_what_it_gives() -> None:
    assert [gives(e) for e in (ann, bptt, rate)] == ["steps", "steps", "mean"]
    assert gives(partial(rate, divide_by_steps=True)) == "mean"
    assert gives(partial(partial(rate), divide_by_steps=True)) == "mean"


@pytest.mark.parametrize("execute", [bptt, rate])
def test_an_ann_is_no_spiking_network(execute: Callable) -> None:
    with pytest.raises(UserError, match="convert it"):
        execute(Residual(), moving())


def test_a_spiking_network_is_no_ann() -> None:
    with pytest.raises(UserError, match="rate or bptt"):
        ann(student(), moving())


@pytest.mark.parametrize("steps", [0, -1])
def test_encoders_want_a_step(steps: int) -> None:
    with pytest.raises(UserError, match="steps"):
        Direct(steps)(images())
    assert Direct(3)(images()).shape == (3, *images().shape)
    assert Direct(3)(images()).stride(0) == 0


@pytest.mark.parametrize("name", MODELS)
def test_ann_runs_the_mean_of_its_input(name: str) -> None:
    model, x = network(name).eval(), moving(name)
    for net in (model, capture(model).eval()):
        torch.testing.assert_close(ann(net, x).logits, model(x.mean(0)).unsqueeze(0))
        still = repeat(images(name), 4)
        torch.testing.assert_close(ann(net, still).mean_logits, model(images(name)))


class Untraceable(nn.Module):
    """A forward with a branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        return self.last(y if y.sum() > -1 else -y)


def test_ann_taps_modules_of_what_cannot_be_traced() -> None:
    """Their outputs, and no hook stays behind, also after an error."""
    net, x = Untraceable().double(), moving("mlp")
    trace = ann(net, x, ["first", "act"])
    torch.testing.assert_close(trace.taps["first"].mean, net.first(x.mean(0)))
    torch.testing.assert_close(trace.taps["act"].mean, net.first(x.mean(0)).relu())
    with contextlib.suppress(RuntimeError):
        ann(net, x[..., :3], ["first", "act"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("taps", [["nowhere"], {"act": ("potential",)}, {"act": ("spikes",)}])
def test_ann_refuses_what_module_outputs_cannot_give(taps: object) -> None:
    net = Untraceable().double()
    with pytest.raises(UserError):
        ann(net, moving("mlp"), taps)
    assert not any(m._forward_hooks for m in net.modules())


def test_ann_pre_activations() -> None:
    net, x = capture(network("stages")).eval(), moving("stages")
    tap = ann(net, x, {"layer1": ("mean", "potential", "current")}).taps["layer1"]
    assert tap.spikes is None
    assert torch.equal(tap.potential, tap.current)
    torch.testing.assert_close(tap.potential[0].relu(), tap.mean)
    assert float(tap.potential.detach().min()) < 0
    with pytest.raises(UserError, match="neurons only"):
        ann(net, x, {"layer1": ("spikes",)})


# ---- memory -----------------------------------------------------------------------------------


def saved_bytes(execute: Callable[..., Trace], net: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that the graph keeps for its backward pass, parameters aside."""
    known = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}
    held: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = execute(net, x).mean_logits.square().sum()
    total = sum(size for _, size in held.values())
    loss.backward()
    return total


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("name", ["residual", "max pool", "dropout", "mlp"])
def test_memory_of_rate_does_not_depend_on_steps(name: str, still: bool) -> None:
    """Acceptance test 5: within 2 % for T = 2 to 16, where BPTT's grows with T."""

    def of(execute: Callable, steps: int) -> int:
        x = repeat(images(name), steps) if still else moving(name, steps)
        return saved_bytes(execute, student(name), x)

    ours = [of(rate, steps) for steps in (2, 4, 8, 16)]
    assert max(ours) <= 1.02 * min(ours), ours
    theirs = [of(bptt, steps) for steps in (2, 8)]
    assert theirs[1] > 2.5 * theirs[0]
    assert theirs[1] > 3 * ours[2]


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned threshold"])
@pytest.mark.parametrize("norms", ["train", "eval", "frozen"])
@pytest.mark.parametrize("name", NEURON)
def test_fused_is_the_same(
    name: str, norms: str, learn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms and sums that wait for their neuron give logits, taps, statistics, gradients alike.

    The recursion itself is not compiled here; that is a slow test.
    """
    monkeypatch.setattr("spikelet.slopes.fused", lambda: eligibility)
    found, logits, states, means = [], [], [], []
    for fuse in (False, True):
        net = student(name, IF(0.75, 0.25, learn_threshold=learn)).train(norms != "eval")
        if norms == "frozen":
            freeze_norms(net)
        torch.manual_seed(1)
        trace = rate(net, moving(name, 3), {NEURON[name]: ("mean", "current")}, fuse=fuse)
        found.append(gradients(net, (trace.logits + 1).square().sum()))
        logits.append(trace.logits.detach())
        states.append(net.state_dict())
        means.append(trace.taps[NEURON[name]])
    close(found)
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(means[1].mean, means[0].mean)
    torch.testing.assert_close(means[1].current, means[0].current)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=key)


class Sums(nn.Module):
    """Residual sums of all kinds: of two norms, a norm and spikes, read once or twice, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = [norm(conv(x)) for norm, conv in zip(self.norms, self.convs, strict=False)]
        one = self.relus[0](both[0] + both[1])
        two = self.relus[1](both[2] + one)
        three = self.relus[2](torch.add(two, both[3]))
        raw = self.convs[4](three) + three
        four = self.relus[3](raw)
        five = self.relus[4](torch.add(raw, four, alpha=0.5) + 0.1)
        return self.head((four + five).mean((2, 3)))


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sums_wait_for_their_neuron(
    training: bool, tapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same logits, taps and gradients as sums made at once; a sum that is tapped has its value."""
    monkeypatch.setattr("spikelet.slopes.fused", lambda: eligibility)
    torch.manual_seed(0)
    model = scattered(Sums().double())
    taken = []
    monkeypatch.setattr(
        "spikelet.execute.add_later", lambda a, b: taken.append(add_later(a, b)) or taken[-1]
    )
    found, traces = [], []
    for fuse in (False, True):
        net = convert(model, IF(0.75, 0.25)).double().train(training)
        taps = ["add", "add_1", "norms.0"] if tapped else []
        trace = rate(net, moving("residual", 3), taps, fuse=fuse)
        loss = (trace.logits + 1).square().sum()
        loss = loss + sum(tap.mean.square().sum() for tap in trace.taps.values())
        found.append(gradients(net, loss))
        traces.append(trace)
    close(found)
    torch.testing.assert_close(traces[1].logits, traces[0].logits)
    for path, tap in traces[0].taps.items():
        torch.testing.assert_close(traces[1].taps[path].mean, tap.mean)
    assert len([one for one in taken if one is not None]) == (1 if tapped else 3)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", NEURON)
def test_without_gradients_the_same_and_no_slopes(
    name: str, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference takes no means along, and answers the same logits and fields."""
    monkeypatch.setattr("spikelet.slopes.fused", lambda: eligibility)
    taps = {NEURON[name]: FIELDS}
    for x in (moving(name, 3), repeat(images(name), 3)):
        net = student(name).eval()
        recorded = rate(net, x, taps, fuse=fuse)
        with torch.no_grad():
            trace = rate(net, x, taps, fuse=fuse)
        torch.testing.assert_close(trace.logits, recorded.logits, rtol=0, atol=0)
        for field in FIELDS:
            one, other = (getattr(t.taps[NEURON[name]], field) for t in (trace, recorded))
            torch.testing.assert_close(one, other.detach(), msg=field)


def test_fused_runs_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spikes travel in the precision of the currents; gradients stay close to fp32's."""
    monkeypatch.setattr("spikelet.slopes.fused", lambda: eligibility)
    found = []
    for half in (False, True):
        net = student("residual").float().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            trace = rate(net, moving("residual", 3).float(), fuse=True)
        found.append(gradients(net, trace.mean_logits.float().square().sum()))
    for key, exact in found[0].items():
        similar = F.cosine_similarity(exact.flatten(), found[1][key].float().flatten(), dim=0)
        assert float(exact.norm()) < 1e-6 or float(similar) > 0.8, key
