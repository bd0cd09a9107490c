"""Conversion: what stands where, thresholds by brute force, and that it approaches the ANN."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import EXACT, MODELS, PICTURE, Residual, Stages, images, network
from spikelet import vision
from spikelet.convert import Offset, best_threshold, bias_of, convert, correct
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture, is_activation
from spikelet.neuron import IF, LIF, Neuron

CALIBRATION, TEST = images("stages", 32, 11).float(), images("stages", 32, 12).float()


def places(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, Neuron)]


def mean_rates(net: nn.Module, x: Tensor, steps: int) -> dict[str, Tensor]:
    """The mean of what each neuron sends (or of an ANN's activation), per channel."""
    named = dict(net.named_modules())
    nodes = [
        node.name
        for node in net.graph.nodes
        if node.op == "call_module"
        and (isinstance(named[node.target], Neuron) or is_activation(node, named))
    ]
    execute = bptt if any(isinstance(m, Neuron) for m in net.modules()) else ann
    with torch.no_grad():
        taps = execute(net, repeat(x, steps), nodes).taps
    return {name: tap.mean.transpose(0, 1).flatten(1).mean(1) for name, tap in taps.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_left_as_it_was(name: str, training: bool) -> None:
    model = network(name).train(training)
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    net = convert(model, calibrate=images(name, 8))
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {id(p) for p in model.parameters()}.isdisjoint({id(p) for p in net.parameters()})
    dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert net.training == training
    assert all(m.training == training for m in dropouts), "dropout in the mode of the model"


def test_each_place_gets_its_own_copy_of_the_neuron() -> None:
    prototype = LIF(tau=3.0, threshold=0.5, detach=True)
    net = convert(Stages(), prototype)
    found = [net.get_submodule(path) for path in places(net)]
    assert places(net) == ["layer1.2", "layer2.2", "relu", "layer3.2"]
    assert all(isinstance(n, LIF) and n.tau == 3.0 and n.detached for n in found)
    assert len({id(n) for n in [prototype, *found]}) == 5


@pytest.mark.parametrize(
    "given, said",
    [
        (CALIBRATION.tolist(), "got list"),
        (CALIBRATION.byte(), "got torch.uint8"),
        (CALIBRATION[0], "expected the 4 axes of a batch, it has 3"),
        (CALIBRATION * math.nan, "values that are not finite"),
    ],
)
def test_what_nothing_can_be_calibrated_with_is_told(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"`calibrate.*{said}"):
        convert(Stages(), IF(), calibrate=given)


def test_learned_thresholds_stay_learned_after_calibration() -> None:
    net = convert(Stages(), IF(learn_threshold=True), calibrate=CALIBRATION)
    names = [n for n, p in net.named_parameters() if n.endswith("threshold")]
    assert len(names) == 4
    assert net.get_parameter("layer2.2.threshold").shape == (8,)


def test_every_obstacle_is_listed_at_once() -> None:
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.GroupNorm(2, 4))
            self.out = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(4, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stage(x)
            x = torch.sigmoid(x) * F.relu(x)
            return self.out(x).softmax(1).mean((2, 3))

    with pytest.raises(UserError) as caught:
        convert(Blocked())
    for word in ("stage.1: GELU", "stage.2: GroupNorm", "out.0: LeakyReLU", "sigmoid",
                 "product of two signals", "softmax", "6 places"):  # fmt: skip
        assert word in str(caught.value), word


class Reshaped(nn.Module):
    """A network whose ReLUs see another layout than the layer before them makes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(2, 16, 2, stride=2)
        self.pads = nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(1))
        self.halves = nn.Unflatten(1, (2, 8))
        self.mix = nn.Linear(16, 16, bias="bias" in way)
        self.out = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == "flat":
            x = x.view(x.size(0), x.size(1) * x.shape[2] * x.shape[3])
        elif self.way == "parts":
            x, other = x.chunk(2, 1)
            x = torch.cat([F.relu(other), x], 1)
        elif self.way == "padded":
            x = F.relu(self.pads(x))
            x = torch.stack(torch.split(x, 8, 1), 2).movedim(2, 1).sum(1)
        elif self.way == "unflattened":
            x = F.pixel_unshuffle(torch.swapaxes(self.halves(x).sum(1), 2, 3), 2)
        elif self.way == "pixels":
            x = F.pixel_shuffle(x, 2)
        else:
            x = self.mix(x.flatten(2).transpose(1, 2))
        return self.out(F.relu(x).flatten(1))


@pytest.mark.parametrize(
    "way", ["flat", "parts", "pixels", "padded", "unflattened", "tokens", "tokens with bias"]
)
def test_any_layout_in_front_of_a_relu(way: str) -> None:
    torch.manual_seed(3)
    x = torch.randn(64, 2, 8, 8)
    model = Reshaped(way)
    model(x)
    net = convert(model, calibrate=x, steps=64)
    with torch.no_grad():
        found, wanted = bptt(net.eval(), repeat(x, 64)).mean_logits, model.eval()(x)
    assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.999
    plainly = bptt(convert(model).eval(), repeat(x, 2)).logits  # where nothing is calibrated
    assert plainly.shape == (2, 64, 3) and bool(plainly.isfinite().all())


def test_a_final_softmax_is_left_out() -> None:
    """What is before it are logits of the same answers; elsewhere it is in the way."""
    for last in (nn.Softmax(1), nn.LogSoftmax(1)):
        body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.randn(16, 4)
        torch.testing.assert_close(capture(nn.Sequential(body, last))(x), body(x))
        with pytest.raises(UserError, match="unless it is attention"):
            convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), last, nn.Linear(8, 3)))


def test_many_obstacles_are_not_all_listed() -> None:
    gelus = [module for _ in range(12) for module in (nn.Linear(4, 4), nn.GELU())]
    with pytest.raises(UserError, match=r"12 places cannot .* and 4 more; or give") as caught:
        convert(nn.Sequential(*gelus, nn.ReLU()))
    assert str(caught.value).count("retrain the ANN") == 8


def test_wrapped_models() -> None:
    """What torch.compile wraps is found; what is scripted has nothing to trace."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    compiled = torch.compile(model, backend="eager")
    assert places(convert(compiled)) == places(convert(model))
    with pytest.raises(UserError, match=r"give the nn.Module it was made of"):
        convert(torch.jit.trace(model, torch.randn(2, 4)))


def test_outputs_besides_logits_are_told() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(UserError, match=r"its forward gave tuple, expected logits alone; leave"):
        ann(Several(), torch.ones(1, 2, 3))


def test_a_model_that_cannot_be_copied_is_told() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    model(torch.randn(2, 4))
    with pytest.raises(UserError, match=r"it cannot be copied .*remove_weight_norm"):
        convert(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: convert(nn.Sequential(nn.Linear(2, 2))), "no ReLU"),
        (lambda: convert(Residual(), steps=0), "steps"),
    ],
)
def test_bad_arguments(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_best_threshold_by_brute_force(steps: int) -> None:
    """Among 25 shares of the channel's maximum, the least squared quantisation error."""
    generator = torch.Generator().manual_seed(steps)
    a = torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64).relu() ** 2
    found = best_threshold(a, steps)
    for c in range(3):
        values = a[:, c].flatten().tolist()
        table = {}
        for i in range(25):
            theta = (0.15 + (1 - 0.15) * i / 24) * max(values)
            error = 0.0
            for value in values:
                count = min(max(int(value * steps / theta + 0.5), 0), steps)
                error += (count * theta / steps - value) ** 2
            table[theta] = error
        best = min(table, key=table.__getitem__)
        assert float(found[c]) == pytest.approx(best, rel=1e-6)


def test_silent_channels_get_a_positive_threshold() -> None:
    a = torch.rand(6, 4, 5)
    a[:, 1] = 0
    assert bool((best_threshold(a, 4) > 0).all())
    assert torch.equal(best_threshold(torch.zeros(6, 4), 4), torch.ones(4) * best_threshold(
        torch.zeros(6, 4), 4)[0])  # fmt: skip
    alone = best_threshold(a[:1, :, :1], 4)
    assert bool((alone > 0).all() and torch.isfinite(alone).all())


@pytest.mark.parametrize("name", EXACT)
def test_conversion_approaches_the_network(name: str) -> None:
    """The error of the logits falls with T, in eval mode."""
    model, x = network(name).eval(), images(name, 16, 5)
    with torch.no_grad():
        goal, error = model(x), {}
        for steps in (2, 64):
            net = convert(model, IF(), steps=steps, calibrate=images(name, 32, 6), sweeps=1).eval()
            error[steps] = float((bptt(net, repeat(x, steps)).mean_logits - goal).square().mean())
        assert error[64] < 0.5 * error[2]
        assert error[64] < 0.2 * float((goal - goal.mean(0)).square().mean())


def test_agreement_grows_with_steps() -> None:
    model = network("stages").float().eval()
    agreement = {}
    with torch.no_grad():
        goal = model(TEST).argmax(1)
        for steps in (1, 8, 32):
            net = convert(model, steps=steps, calibrate=CALIBRATION).eval()
            answer = bptt(net, repeat(TEST, steps)).mean_logits.argmax(1)
            agreement[steps] = float((answer == goal).float().mean())
    assert agreement[32] >= 0.9
    assert agreement[32] >= agreement[8] >= agreement[1] - 0.05


def quantised(model: nn.Module, net: nn.Module, x: Tensor, steps: int) -> Tensor:
    """Logits of `Stages` with each ReLU as the quantised activation of the student's neuron."""

    def act(value: Tensor, path: str) -> Tensor:
        theta = net.get_submodule(path).threshold.reshape(1, -1, 1, 1)
        return (value * steps / theta + 0.5).floor().clamp(0, steps) * theta / steps

    def layer(path: str, value: Tensor) -> Tensor:
        stage = model.get_submodule(path)
        return act(stage[1](stage[0](value)), f"{path}.2")

    x = layer("layer2", model.down(layer("layer1", x)))
    x = act(model.conv(x) + x, "relu")
    return model.linear(layer("layer3", model.down(x)).mean((2, 3)))


@pytest.mark.parametrize("steps", [4, 8])
def test_signed_spikes_match_the_quantised_network(steps: int) -> None:
    """Methods 8.20b: at equal thresholds unevenness is most of binary spikes' error."""
    error = {False: 0.0, True: 0.0}
    for seed, signed in itertools.product(range(4), error):
        model = network("stages", seed).float().eval()
        with torch.no_grad():
            net = convert(model, IF(signed=signed), steps=steps, calibrate=CALIBRATION, sweeps=0)
            answer = bptt(net.eval(), repeat(TEST, steps)).mean_logits
            goal = quantised(model, net, TEST, steps)
        error[signed] += float((answer - goal).square().mean() / goal.var()) / 4
    assert error[True] < 0.9 * error[False]
    assert error[True] < 0.05


@pytest.mark.parametrize("name", ["stages", "depthwise", "one-dimensional", "mlp"])
def test_corrections_reduce_mean_rate_errors(name: str) -> None:
    model, x = network(name).eval(), images(name, 24, 6)
    goal, error = mean_rates(capture(model).eval(), x, 1), []
    for sweeps in (0, 1, 2):
        net = convert(model, IF(), steps=4, calibrate=x, sweeps=sweeps).eval()
        rates = mean_rates(net, x, 4)
        error.append(sum(float((rates[k] - goal[k]).square().sum()) for k in goal))
    assert error[1] < error[0]
    assert error[2] < 0.5 * error[0]


def test_one_correction_shifts_the_bias_by_the_error() -> None:
    model = network("stages").eval()
    net = convert(model, IF(), steps=4, calibrate=images("stages", 16, 6), sweeps=0).eval()
    x = images("stages", 16, 6)
    goal, before = mean_rates(capture(model).eval(), x, 1), mean_rates(net, x, 4)
    bias = net.get_parameter("layer1.1.bias").detach().clone()
    with torch.no_grad():
        correct(net, x, 4, goal)
    shift = net.get_parameter("layer1.1.bias").detach() - bias
    torch.testing.assert_close(shift, goal["layer1_2"] - before["layer1_2"])


def test_an_offset_stands_where_no_layer_has_a_bias() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Dropout(0.1), nn.ReLU(),
        nn.Flatten(), nn.Linear(108, 4, bias=False), nn.ReLU(), nn.Linear(4, 3),
    )  # fmt: skip
    net = convert(model, calibrate=torch.randn(8, *PICTURE))
    offsets = {name: m for name, m in net.named_modules() if isinstance(m, Offset)}
    assert list(offsets) == ["1_offset", "4_offset", "7_offset"]
    modules = dict(net.named_modules())
    for node in net.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], Neuron):
            assert bias_of(node.args[0], modules) is not None
    plain = convert(model)
    x = torch.randn(4, *PICTURE)
    reference = capture(model).eval()
    for path, module in reference.named_modules():
        if isinstance(module, nn.ReLU):
            reference.set_submodule(path, IF())
    torch.testing.assert_close(
        bptt(plain.eval(), repeat(x, 3)).logits, bptt(reference, repeat(x, 3)).logits
    )


def test_everything_lies_where_the_model_does() -> None:
    """Neurons and offsets are made on the model's device."""
    model = nn.Sequential(
        nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()
    ).to("meta")  # fmt: skip
    net = convert(model, IF(threshold=torch.ones(()) * 0.5))
    devices = {name: x.device.type for name, x in [*net.named_parameters(), *net.named_buffers()]}
    assert set(devices.values()) == {"meta"}, devices


def test_a_second_conversion_starts_from_the_graph() -> None:
    """A captured model converts like the model."""
    model, x = network("stages").eval(), images("stages")
    runs = [
        bptt(convert(m, IF(), calibrate=images("stages", 16)), repeat(x, 2)).logits
        for m in (model, capture(model))
    ]
    assert torch.equal(*runs)


def test_state_moves_between_students_of_one_model() -> None:
    model, x = network("stages").eval(), images("stages")
    net = convert(model, calibrate=images("stages", 16)).eval()
    other = convert(network("stages", seed=5).eval(), calibrate=images("stages", 16, 3)).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(bptt(other, repeat(x, 2)).logits, bptt(net, repeat(x, 2)).logits)
    twin = copy.deepcopy(net)
    assert torch.equal(rate(twin, repeat(x, 2)).logits, rate(net, repeat(x, 2)).logits)


# ---- other people's networks ------------------------------------------------------------------


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_resnet18_of_others(source: str) -> None:
    if source == "torchvision":
        model = vision.torchvision().models.resnet18(num_classes=5)
    else:
        pytest.importorskip("timm", reason="timm is not installed")
        model = vision.plain(vision.timm().create_model("resnet18", num_classes=5))
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    net = capture(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    spiking = convert(model.train())
    assert len(places(spiking)) == 17
    stage = ["layer1", "layer2", "layer3", "layer4"]
    trace = rate(spiking, repeat(x, 2), stage)
    assert trace.logits.shape == (2, 2, 5)
    assert [tuple(trace.taps[s].mean.shape[1:]) for s in stage] == [
        (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1),
    ]  # fmt: skip
    trace.mean_logits.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in spiking.parameters())


def test_what_is_frozen_in_the_model_can_be_trained_in_the_student() -> None:
    """Else its training would change nothing but what conversion adds, without a word."""
    model = network("stages").requires_grad_(False)
    net = convert(model, calibrate=images("stages", 8))
    weights = [name for name, value in net.named_parameters() if value.ndim > 1]
    assert weights
    assert all(net.get_parameter(name).requires_grad for name in weights)
    assert not any(value.requires_grad for value in model.parameters()), "the model stays"
    bptt(net, repeat(images("stages", 4), 2)).mean_logits.sum().backward()
    assert all(net.get_parameter(name).grad is not None for name in weights)


def test_thresholds_stay_as_they_are_set() -> None:
    """Those of the neurons, which are no weights of the model, learn only where asked to."""
    net = convert(network("stages"), IF(), calibrate=images("stages", 8))
    neurons = [module for module in net.modules() if isinstance(module, Neuron)]
    assert not any(value.requires_grad for each in neurons for value in each.parameters())


@pytest.mark.parametrize("alpha", [-1.0, 3.0])
def test_a_scaled_sum_is_shifted_behind_the_sum(alpha: float) -> None:
    """The bias of one of its sides would come times alpha."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(torch.add(self.a(x), self.b(x), alpha=alpha)).flatten(1)

    torch.manual_seed(0)
    x = torch.randn(64, 2, 6, 6)
    model = Sum()
    with torch.no_grad():
        wanted = model(x).unflatten(1, (3, 16)).mean((0, 2))

    def off(sweeps: int) -> float:
        net = convert(model, steps=2, calibrate=x, sweeps=sweeps)
        with torch.no_grad():
            mean = bptt(net, repeat(x, 2)).mean_logits.unflatten(1, (3, 16)).mean((0, 2))
        return float((mean - wanted).abs().max())

    assert "relu_offset" in dict(convert(model, steps=2).named_modules())
    assert off(4) < off(1) < off(0)


@pytest.mark.parametrize("neuron", [IF(), IF(dither=0.25, signed=True), LIF(tau=2.0)])
def test_calibration_in_pieces_is_calibration_at_once(
    neuron: Neuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("spikelet.convert")
    x = images("stages", 32, 11)
    whole = convert(network("stages"), neuron, steps=3, calibrate=x)
    seen: list[int] = []
    monkeypatch.setattr(module, "PIECE", 3 * 5 * x[0].numel())
    forward = type(neuron).forward
    monkeypatch.setattr(
        type(neuron), "forward", lambda self, x: seen.append(x.shape[1]) or forward(self, x)
    )
    parts = convert(network("stages"), neuron, steps=3, calibrate=x)
    assert 1 <= max(seen) < len(x)
    assert sum(seen) % len(x) == 0
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)
