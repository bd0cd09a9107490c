"""Rate-based backpropagation (arXiv 2410.11488), derived again in plain loops and tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import EXACT, RULES, SURROGATES, gradients, images, moving, network, neurons, student
from spikelet.convert import convert
from spikelet.encode import repeat
from spikelet.execute import bptt, rate
from spikelet.neuron import IF, LIF, Neuron
from spikelet.slopes import by_jvp, closed_form, respond

Slope = Callable[[float], float]

# ---- the surrogates' slopes, written again --------------------------------------------------


def sigmoid(u: float) -> float:
    return 4 * math.exp(-4 * abs(u)) / (1 + math.exp(-4 * abs(u))) ** 2


def arctangent(u: float) -> float:
    return 1 / (1 + (math.pi * u) ** 2)


def triangle(u: float) -> float:
    return max(0.0, 1 - abs(u))


def rectangle(u: float) -> float:
    return 1.0 if abs(u) < 0.5 else 0.0


SLOPES: dict[str, Slope] = {
    "sigmoid": sigmoid,
    "arctangent": arctangent,
    "triangle": triangle,
    "rectangle": rectangle,
}


# ---- one neuron, one number at a time -------------------------------------------------------


@dataclass
class Loop:
    """One neuron over time: what it sends, and three slopes of its means."""

    spikes: list[float] = field(default_factory=list)
    potentials: list[float] = field(default_factory=list)
    slope: float = 0.0
    potential_slope: float = 0.0
    threshold_slope: float = 0.0
    threshold_potential_slope: float = 0.0


def loop(currents: list[float], slope: Slope, theta: float, v: float, rule: dict) -> Loop:
    """Methods 3.2: the current's slopes by the recursion, the threshold's by the chain rule.

    rho is dh/dI; with q = sg(u), u = h / theta - 1: ds/dh = q / theta, ds/dtheta = q (dh/dtheta -
    h / theta) / theta, and what is sent is theta s.
    """
    leak, gain, rest = rule["leak"], rule["gain"], rule["v_reset"]
    steps, rho, sent, dv = len(currents), gain, 0.0, 0.0
    run = Loop()
    for current in currents:
        h = leak * (v - rest) + rest + gain * current
        u = h / theta - 1
        q, s = slope(u), float(u >= 0)
        ds = q * (leak * dv - h / theta) / theta
        if rule["signed"] and sent > 0:
            q += slope(u + 1)
            ds = q * (leak * dv - h / theta) / theta
            s -= float(h < 0)
        dh = leak * dv
        run.slope += rho * q / steps
        run.potential_slope += rho / steps
        run.threshold_slope += (s + theta * ds) / steps
        run.threshold_potential_slope += dh / steps
        sent += s
        run.spikes.append(s)
        run.potentials.append(h)
        factor, change = reset_factor(rule, s, h - rest, q / theta, theta), 0.0
        if rule["reset"] == "soft":
            v = h - theta * s
            change = -s if rule["detach"] else -s - theta * ds
            dv = dh + change
        else:
            v = h * (1 - s) + rest * s
            dv = dh * (1 - s) - (0.0 if rule["detach"] else (h - rest) * ds)
        rho = gain + leak * factor * rho
    return run


def reset_factor(rule: dict, s: float, above: float, derivative: float, theta: float) -> float:
    """f_t of the table in methods 3.2, in general form; `derivative` is ds/dh."""
    if rule["reset"] == "soft":
        return 1.0 if rule["detach"] else 1 - theta * derivative
    return 1 - s if rule["detach"] else (1 - s) - above * derivative


def rules() -> dict[str, dict]:
    """Every variant, as constants of the loop."""
    table = {}
    for kind, leak, gain in (("IF", 1.0, 1.0), ("LIF", 0.5, 1.0), ("decay", 0.6, 0.4)):
        for reset, detach, rest in RULES:
            for signed in (False, True) if reset == "soft" else (False,):
                name = f"{kind}-{reset}{rest:g}-{'detached' if detach else 'full'}"
                table[name + "-signed" * signed] = {
                    "leak": leak, "gain": gain, "reset": reset, "detach": detach,
                    "v_reset": rest, "signed": signed,
                }  # fmt: skip
    return table


RULE = rules()


def neuron_of(rule: dict, surrogate: str, theta: Tensor, initial: Tensor, learn: bool) -> Neuron:
    own = {k: rule[k] for k in ("reset", "detach", "v_reset", "signed")}
    own |= {"threshold": theta, "initial": initial, "learn_threshold": learn}
    own["surrogate"] = SURROGATES[surrogate]
    if rule["leak"] == 1:
        return IF(**own).double()
    return LIF(tau=1 / (1 - rule["leak"]), input_decay=rule["gain"] != 1, **own).double()


THETA = torch.tensor([0.75, 1.0, 1.5], dtype=torch.float64)
START = torch.tensor([0.25, 0.0, 0.5], dtype=torch.float64)


def some_currents(steps: int, constant: bool = False) -> Tensor:
    """Currents "T 2 3", on both sides of the threshold and below zero."""
    generator = torch.Generator().manual_seed(5)
    currents = 0.6 + 0.9 * torch.randn(
        1 if constant else steps, 2, 3, generator=generator, dtype=torch.float64
    )
    return currents.expand(steps, 2, 3)


def by_loops(currents: Tensor, rule: dict, surrogate: str) -> dict[str, Tensor]:
    """Every result of the loop for currents "T 2 3", "T 2 3" or "2 3"."""
    runs = [
        [loop(currents[:, b, c].tolist(), SLOPES[surrogate], float(THETA[c]), float(START[c]), rule)
         for c in range(3)]
        for b in range(2)
    ]  # fmt: skip
    table = {}
    for name in Loop.__dataclass_fields__:
        value = torch.tensor([[getattr(r, name) for r in row] for row in runs]).double()
        table[name] = value.movedim(-1, 0) if value.ndim == 3 else value
    return table


def equal(ours: Tensor | None, theirs: Tensor, tolerance: float = 1e-6) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", RULE)
def test_eligibility(name: str, surrogate: str) -> None:
    """Values, and slopes of output, potential and threshold, each by loops."""
    rule, steps = RULE[name], 5
    currents = some_currents(steps)
    expected = by_loops(currents, rule, surrogate)
    spikes = expected["spikes"]
    assert 0 < float((spikes > 0).double().mean()) < 1
    fixed = neuron_of(rule, surrogate, THETA, START, learn=False)
    for response in (closed_form(fixed, currents, steps), respond(fixed, currents, steps)):
        equal(response.output, spikes * THETA)
        equal(response.slope, expected["slope"])
    response = by_jvp(neuron_of(rule, surrogate, THETA, START, learn=True), currents, True)
    equal(response.output, spikes * THETA)
    equal(response.slope, expected["slope"])
    equal(response.potential, expected["potentials"])
    equal(response.potential_slope, expected["potential_slope"])
    assert response.parameters is not None
    equal(response.parameters["threshold"][0], expected["threshold_slope"])
    equal(response.parameters["threshold"][1], expected["threshold_potential_slope"])


@pytest.mark.parametrize("name", RULE)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_constant_current_may_be_given_once(name: str, steps: int) -> None:
    neuron = neuron_of(RULE[name], "sigmoid", THETA, START, learn=False)
    currents = some_currents(steps, constant=True)
    once, many = closed_form(neuron, currents[:1], steps), closed_form(neuron, currents, steps)
    assert torch.equal(once.output, many.output)
    assert torch.equal(once.slope, many.slope)
    expected = by_loops(currents, RULE[name], "sigmoid")
    equal(once.slope, expected["slope"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IF-soft0-full", "LIF-hard-0.2-full", "decay-soft0-detached"])
def test_fused_eligibility(name: str) -> None:
    """The compiled recursion gives the same spikes and slopes, for steps and shapes of any size."""
    neuron = neuron_of(RULE[name], "sigmoid", THETA, START, learn=False)
    for steps in (1, 3, 5):
        for currents in (some_currents(steps), some_currents(steps, constant=True)[:1]):
            fast, slow = (closed_form(neuron, currents, steps, fuse) for fuse in (True, False))
            assert torch.equal(fast.output, slow.output)
            equal(fast.slope, slow.slope, 1e-9)


def test_published_eligibility() -> None:
    """With leak 0.2 and detached soft reset rho is 1, 1.2, 1.24, 1.248."""
    neuron = LIF(tau=1.25).double()
    assert neuron.detached
    run = by_jvp(neuron, torch.zeros(4, 1, 1, dtype=torch.float64), potential=True)
    equal(run.potential_slope, torch.full((1, 1), (1 + 1.2 + 1.24 + 1.248) / 4).double())


# ---- the same neuron, differentiated in reverse ---------------------------------------------


def smooth(u: Tensor, surrogate: str) -> Tensor:
    """H(u) with the gradient of the surrogate, by its primitive and not by its slope."""
    primitive = SURROGATES[surrogate].primitive(u)
    return primitive + ((u >= 0).to(u) - primitive).detach()


def unrolled(currents: Tensor, theta: Tensor, start: Tensor, rule: dict, surrogate: str) -> Tensor:
    """What a neuron sends, theta * s "T ...", for reverse-mode differentiation."""
    v, sent, outputs = start.expand_as(currents[0]), torch.zeros_like(currents[0]), []
    for current in currents:
        h = rule["leak"] * (v - rule["v_reset"]) + rule["v_reset"] + rule["gain"] * current
        s = smooth(h / theta - 1, surrogate)
        if rule["signed"]:
            s = s - (1 - smooth(h / theta, surrogate)) * (sent > 0)
        sent = sent + s.detach()
        r = s.detach() if rule["detach"] else s
        soft = rule["reset"] == "soft"
        v = h - (theta * r if soft else r * (h - rule["v_reset"]))
        outputs.append(theta * s)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    ("name", "surrogate"),
    [*((name, "sigmoid") for name in RULE), *(("decay-hard-0.2-full", s) for s in SURROGATES)],
)
def test_reverse_mode_of_the_scan_mean(name: str, surrogate: str) -> None:
    """Slopes are the gradient of the mean for a shift of the current and for the threshold."""
    rule, currents = RULE[name], some_currents(4)
    shift = torch.zeros_like(currents[0], requires_grad=True)
    theta = THETA.expand(2, 3).clone().requires_grad_()
    mean = unrolled(currents + shift, theta, START, rule, surrogate).mean(0)
    by_shift, by_theta = torch.autograd.grad(mean.sum(), [shift, theta])
    response = by_jvp(neuron_of(rule, surrogate, THETA, START, learn=True), currents)
    equal(response.slope, by_shift)
    assert response.parameters is not None
    equal(response.parameters["threshold"][0], by_theta)


# ---- whole networks -------------------------------------------------------------------------


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", EXACT)
def test_logits_are_the_means_of_the_unrolled_ones(name: str, training: bool, still: bool) -> None:
    """Acceptance test 1; here even each step's logits are the same."""
    x = repeat(images(name), 4) if still else moving(name)
    runs = []
    for execute in (bptt, rate):
        net = student(name).train(training)
        torch.manual_seed(1)
        runs.append(execute(net, x))
    assert float(runs[0].mean_logits.detach().std()) > 0
    torch.testing.assert_close(runs[1].mean_logits, runs[0].mean_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(runs[1].logits, runs[0].logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", neurons())
def test_first_neuron_has_the_exact_gradient(name: str, steps: int = 3) -> None:
    """Acceptance test 2: conv-bn-neuron-mean-linear under direct coding equals BPTT at any T."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(36, 3),
    ).double()  # fmt: skip
    neuron = neurons(threshold=0.7, initial=0.2, learn_threshold=True)[name]
    found = []
    for execute in (bptt, rate):
        net = convert(model, neuron).double()
        logits = execute(net, repeat(images(), steps)).mean_logits
        found.append(gradients(net, F.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))))
    assert {name: g.shape for name, g in found[0].items()} == {
        name: g.shape for name, g in found[1].items()
    }
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-8, atol=1e-10)
    assert float(found[0]["2.threshold"].abs()) > 0


@pytest.mark.parametrize("name", EXACT)
def test_one_step_equals_bptt(name: str) -> None:
    """Acceptance test 3, with a learned threshold for each channel."""
    found = []
    for execute in (bptt, rate):
        net = student(name, IF(threshold=0.8, initial=0.3, learn_threshold=True))
        torch.manual_seed(1)
        logits = execute(net, moving(name, steps=1)).mean_logits
        found.append(gradients(net, logits.square().sum()))
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
def test_running_statistics_change_once(still: bool) -> None:
    """Acceptance test 6: unbiased over T B H W, like ordinary batch norm of the folded batch."""
    model = network()
    net = convert(model, IF()).double()
    steps = 3
    x = repeat(images(), steps) if still else moving(steps=steps)
    before = {k: v.clone() for k, v in net.bn1.state_dict().items()}
    rate(net, x).mean_logits.sum().backward()
    currents = F.conv2d(x.reshape(-1, *x.shape[2:]), net.conv1.weight, padding=1)
    count = currents[:, 0].numel()
    for c in range(currents.shape[1]):
        values = currents[:, c].flatten()
        mean = values.sum() / count
        variance = (values - mean).square().sum() / (count - 1)
        for key, value in (("running_mean", mean), ("running_var", variance)):
            expected = 0.9 * before[key][c] + 0.1 * value
            torch.testing.assert_close(getattr(net.bn1, key)[c], expected, rtol=1e-9, atol=1e-9)
    assert int(net.bn1.num_batches_tracked) == int(before["num_batches_tracked"]) + 1
    other = convert(model, IF()).double()
    bptt(other, x)
    for (key, ours), theirs in zip(
        net.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_other_momenta(momentum: float | None) -> None:
    states = []
    for execute in (bptt, rate):
        net = student()
        for module in (net.bn1, net.bn2):
            module.momentum = momentum
        for seed in range(3):
            execute(net, moving(seed=seed))
        states.append(net.state_dict())
    for key in states[0]:
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-9, atol=1e-9, msg=key)


def test_divide_by_steps_scales_the_gradient_only() -> None:
    x, found, logits = moving(steps=4), [], []
    for divide in (False, True):
        net = student()
        trace = rate(net, x, divide_by_steps=divide)
        logits.append(trace.logits)
        found.append(gradients(net, trace.mean_logits.square().sum()))
    assert torch.equal(logits[0], logits[1])
    for key in found[0]:
        torch.testing.assert_close(found[1][key] * 4, found[0][key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_a_repeated_image_may_be_given_in_full(name: str) -> None:
    """An expanded view and a contiguous copy of it give the same values and gradients."""
    x, found = repeat(images(name), 4), []
    for given in (x, x.contiguous()):
        net = student(name)
        torch.manual_seed(1)
        logits = rate(net, given).logits
        found.append({"logits": logits.detach(), **gradients(net, logits.mean(0).square().sum())})
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-9, atol=1e-9, msg=key)


# ---- the batch-norm rule of methods 3.4 -----------------------------------------------------


def stop(x: Tensor) -> Tensor:
    return x.detach()


def norm_by_the_rule(x: Tensor, spikes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Methods 3.4 with autograd: x the mean "B C", spikes "N C"."""
    mu = stop(spikes.mean(0)) + (x.mean(0) - stop(x.mean(0)))
    within = (x - mu).square().mean(0)
    var = torch.relu(stop(spikes.var(0, unbiased=False)) + (within - stop(within)))
    return weight * (x - mu) / (var + 1e-5).sqrt() + bias


def test_batch_norm_rule() -> None:
    """Values of the statistics from the spikes, gradients from the means: linear-bn-mean."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()  # fmt: skip
    net = convert(model, IF(detach=False)).double()
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    trace = rate(net, x, {"1": ("mean",)})
    cotangent = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    ours = gradients(net, (trace.taps["1"].mean * cotangent).sum())
    weight, bias = net.get_parameter("0.weight"), net.get_parameter("0.bias")
    spikes = (x @ weight.T + bias).flatten(0, 1)
    mean = x.mean(0) @ weight.T + bias
    value = norm_by_the_rule(
        mean, spikes, net.get_parameter("1.weight"), net.get_parameter("1.bias")
    )
    torch.testing.assert_close(trace.taps["1"].mean, value)
    theirs = gradients(net, (value * cotangent).sum())
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-8, atol=1e-9, msg=key)
    assert float(theirs["0.weight"].abs().max()) > 1e-3


# ---- a small network by hand ----------------------------------------------------------------


def shifts(x: Tensor) -> list[Tensor]:
    """The nine views of "B C H W", padded by one, that a 3x3 kernel sees."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    return [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def conv_forward(x: Tensor, weight: Tensor) -> Tensor:
    taps = weight.flatten(2)
    return sum(torch.einsum("bchw,dc->bdhw", s, taps[:, :, k]) for k, s in enumerate(shifts(x)))


def conv_backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight."""
    d_weight = torch.stack([torch.einsum("bchw,bdhw->dc", s, grad) for s in shifts(x)], 2)
    taps = weight.flatten(2)
    d_x = torch.zeros_like(x)
    for k, moved in enumerate(shifts(grad)):
        d_x += torch.einsum("bdhw,dc->bchw", moved, taps[:, :, 8 - k])
    return d_x, d_weight.reshape(weight.shape)


def columns(value: Tensor) -> Tensor:
    """ "C" against "B C H W"."""
    return value[None, :, None, None]


class Norm:
    """Batch norm by hand over "T B C H W": spikes' statistics, the mean's gradient."""

    def __init__(self, module: nn.BatchNorm2d, x: Tensor) -> None:
        self.weight, self.bias = module.weight.detach(), module.bias.detach()
        self.mean = x.mean((0, 1, 3, 4))
        self.deviation = (x.var((0, 1, 3, 4), unbiased=False) + 1e-5).sqrt()
        self.normal = (x.mean(0) - columns(self.mean)) / columns(self.deviation)
        self.value = torch.stack(
            [(y - columns(self.mean)) / columns(self.deviation) for y in x]
        ) * columns(self.weight) + columns(self.bias)

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of input, weight, bias: with mu and var as functions of the mean input."""
        over = (0, 2, 3)
        d_bias, d_weight = grad.sum(over), (grad * self.normal).sum(over)
        count = grad[:, 0].numel()
        centred = grad - columns(d_bias / count) - self.normal * columns(d_weight / count)
        return centred * columns(self.weight / self.deviation), d_weight, d_bias


def fire_by_hand(currents: Tensor, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """IF, soft reset in the gradient, v0 = 0.25: output "T ...", slopes for current and theta."""
    v, rho = torch.full_like(currents[0], 0.25), torch.ones_like(currents[0])
    slope, d_theta, dv = (torch.zeros_like(v) for _ in range(3))
    output = []
    for current in currents:
        h = v + current
        sigma = torch.sigmoid(4 * (h / theta - 1))
        q, s = 4 * sigma * (1 - sigma), (h >= theta).double()
        slope += rho * q
        sent_slope = s + q * (dv - h / theta)
        d_theta += sent_slope
        dv = dv - sent_slope
        rho = 1 + (1 - q) * rho
        v = h - theta * s
        output.append(theta * s)
    return torch.stack(output), slope / len(currents), d_theta / len(currents)


@pytest.mark.parametrize("still", [True, False], ids=["image", "moving"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_small_network_by_hand(steps: int, still: bool) -> None:
    """conv-bn-IF, conv-bn plus skip, IF, mean, linear: forward and backward written out."""
    theta = 0.75
    net = student("residual", IF(threshold=theta, initial=0.25, learn_threshold=True))
    x = repeat(images(), steps).contiguous() if still else moving(steps=steps)
    w1, w2 = net.conv1.weight.detach(), net.conv2.weight.detach()
    read = net.linear.weight.detach()
    # forward, every step
    norm1 = Norm(net.bn1, torch.stack([conv_forward(f, w1) for f in x]))
    sent1, e1, t1 = fire_by_hand(norm1.value, theta)
    norm2 = Norm(net.bn2, torch.stack([conv_forward(f, w2) for f in sent1]))
    sent2, e2, t2 = fire_by_hand(norm2.value + sent1, theta)
    pooled = sent2.mean((3, 4))
    logits = (pooled @ read.T + net.linear.bias.detach()).mean(0)
    # backward, on the means
    labels = torch.tensor([0, 1, 2, 0])
    g = (torch.softmax(logits, 1) - F.one_hot(labels, 3)) / len(labels)
    expected = {"linear.weight": g.T @ pooled.mean(0), "linear.bias": g.sum(0)}
    g_sent2 = ((g @ read) / 64)[:, :, None, None].expand_as(sent2[0])
    expected["relu2.threshold"] = (g_sent2 * t2).sum()
    g_current2 = g_sent2 * e2
    g_conv2, expected["bn2.weight"], expected["bn2.bias"] = norm2.backward(g_current2)
    g_sent1, expected["conv2.weight"] = conv_backward(sent1.mean(0), w2, g_conv2)
    g_sent1 = g_sent1 + g_current2
    expected["relu1.threshold"] = (g_sent1 * t1).sum()
    g_conv1, expected["bn1.weight"], expected["bn1.bias"] = norm1.backward(g_sent1 * e1)
    _, expected["conv1.weight"] = conv_backward(x.mean(0), w1, g_conv1)
    # the same by the engine
    given = repeat(images(), steps) if still else x
    trace = rate(net, given)
    torch.testing.assert_close(trace.mean_logits, logits, rtol=1e-9, atol=1e-10)
    ours = gradients(net, F.cross_entropy(trace.mean_logits, labels))
    assert ours.keys() == expected.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-8, atol=1e-10, msg=key)
