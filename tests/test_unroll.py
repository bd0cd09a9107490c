"""Backpropagation through time written out, against automatic differentiation of the scan."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import (
    CppCompileError,
    InductorError,
    InvalidCxxCompiler,
    TritonMissing,
)

import spikelet.execute
from small import MODELS, SURROGATES, gradients, images, moving, neurons, spread, student
from spikelet import compiling
from spikelet.bench import Case, Setting, foreign
from spikelet.bench.memory import saved_bytes
from spikelet.bench.subject import subject
from spikelet.encode import repeat
from spikelet.execute import bptt
from spikelet.neuron import IF, LIF, PLIF, Integrator, Neuron
from spikelet.recipe import default_recipe
from spikelet.unroll import unrolled, usable

SHAPE = (3, 4, 5)  # B C N
PRECISIONS = [torch.float32, torch.float64]


def currents(steps: int = 4, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64):
    """Random currents "T B C ..." of which about a third of the neurons fire at each step."""
    generator = torch.Generator().manual_seed(steps)
    return (torch.randn(steps, *shape, generator=generator, dtype=torch.float64) + 0.3).to(dtype)


def twins(
    neuron: Integrator, x: Tensor, fuse: bool = False
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(output, gradient of a weighted sum) of the written-out form and of the recorded scan."""
    found = []
    for run in (lambda y: unrolled(neuron, y, fuse), neuron):
        leaf = x.detach().clone().requires_grad_()
        output = run(leaf)
        weight = currents(len(output) + 7, tuple(output.shape[1:]))[: len(output)]
        (gradient,) = torch.autograd.grad((output * weight.to(output)).sum(), leaf)
        found.append((output.detach(), gradient))
    return found[0], found[1]


def agree(neuron: Integrator, x: Tensor, fuse: bool = False, tolerance: float = 1e-6) -> None:
    """The same spikes bit by bit; gradients up to `tolerance` of the largest."""
    (ours, our_gradient), (theirs, their_gradient) = twins(neuron, x, fuse)
    assert torch.equal(ours, theirs)
    assert 0 < float(ours.ne(0).double().mean()) < 1
    assert spread([our_gradient - their_gradient]) <= tolerance * spread([their_gradient])


def per_channel(**fields: object) -> dict[str, Neuron]:
    """Every variant of a neuron, with a threshold and a start for each of four channels."""
    start = torch.tensor([0.0, 0.3, -0.2, 0.1])
    return neurons(threshold=torch.tensor([0.5, 0.75, 1.0, 1.3]), initial=start, **fields)


# ---- one neuron -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_it_is_the_scan(surrogate: str, dtype: torch.dtype) -> None:
    """Every reset, detached or not, signed or not, for one to eight steps."""
    for neuron in per_channel(surrogate=SURROGATES[surrogate]).values():
        for steps in (1, 2, 3, 8):
            agree(neuron, currents(steps, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 3, 3), (1, 4, 2, 3, 2), (4, 4, 1, 1)])
def test_any_shape_and_one_threshold(shape: tuple[int, ...]) -> None:
    for neuron in (LIF(threshold=0.8, initial=0.1), *per_channel().values()):
        agree(neuron, currents(shape=shape))


def test_channels_last_stay_last() -> None:
    """Values and gradient are those of contiguous currents, and lie as the currents do."""
    x = currents(shape=(2, 4, 3, 5))
    last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    for neuron in per_channel().values():
        expected, _ = twins(neuron, x)
        leaf = last.clone(memory_format=torch.preserve_format).requires_grad_()
        output = unrolled(neuron, leaf)
        assert output.stride() == last.stride()
        assert torch.equal(output, expected[0])
        weight = currents(len(x) + 7, tuple(x.shape[1:]))[: len(x)]
        (gradient,) = torch.autograd.grad((output * weight).sum(), leaf)
        torch.testing.assert_close(gradient, expected[1])
        assert gradient.stride() == last.stride()


@pytest.mark.parametrize("name", ["IF-soft0-full", "LIF-hard-0.2-full", "LIF-signed-full"])
def test_a_current_that_is_the_same_at_each_step(name: str) -> None:
    """Its gradient is the sum over the steps."""
    neuron, found = per_channel()[name], []
    for run in (lambda y: unrolled(neuron, y), neuron):
        image = currents(1)[0].requires_grad_()
        weight = torch.linspace(-1, 1, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
        loss = (run(repeat(image, 5)) * weight).sum()
        found.append(torch.autograd.grad(loss, image)[0])
    assert spread([found[0] - found[1]]) <= 1e-6 * spread(found)


def test_bfloat16_currents() -> None:
    """No spike flips; output and gradient stay in bf16, two roundings from the scan's."""
    for name, neuron in per_channel().items():
        (ours, our_gradient), (theirs, their_gradient) = twins(
            neuron, currents(8, dtype=torch.bfloat16)
        )
        assert ours.dtype == our_gradient.dtype == their_gradient.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.bfloat16()), name
        error = spread([our_gradient.float() - their_gradient.float()])
        assert error <= 2**-7 * spread([their_gradient.float()]), name


def test_a_fixed_plif_is_an_lif() -> None:
    plif = PLIF(tau=1.8, threshold=0.7).requires_grad_(False)
    agree(plif, currents(5))
    (ours, gradient), _ = twins(plif, currents(5))
    (theirs, expected), _ = twins(LIF(tau=1.8, threshold=0.7, detach=True), currents(5))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_a_second_derivative_is_refused() -> None:
    x = currents().requires_grad_()
    (gradient,) = torch.autograd.grad(unrolled(IF(), x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_what_is_left_to_the_scan() -> None:
    x = currents()
    assert usable(IF(), x) and usable(LIF(signed=True), x)
    assert not usable(IF(), x[0, 0])
    assert not usable(IF(), x[:, :0])
    for neuron in (IF(learn_threshold=True), PLIF()):
        assert not usable(neuron, x)
        assert usable(neuron.requires_grad_(False), x)
        with torch.no_grad():
            assert usable(neuron.requires_grad_(True), x)


def test_forward_mode_goes_through_the_scan() -> None:
    """A directional derivative of the whole run, which the written-out form cannot give."""
    net, x, way = student("mlp").eval(), moving("mlp"), moving("mlp", seed=9)
    weight = torch.linspace(-1, 1, 4 * 4 * 3, dtype=torch.float64).reshape(4, 4, 3)

    def run(y: Tensor) -> Tensor:
        return (bptt(net, y).logits * weight).sum()

    _, forward = torch.func.jvp(run, (x,), (way,))
    leaf = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad(run(leaf), leaf)
    torch.testing.assert_close(forward, (backward * way).sum())


# ---- networks ---------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """`bptt` with every neuron's scan recorded."""

    def run(*args: object, **kwargs: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(spikelet.execute, "usable", lambda *_: False)
            return bptt(*args, **kwargs)

    yield run


def both(name: str, neuron: Neuron, x: Tensor, plain: Callable) -> None:
    """Logits, a tap's mean and gradients of the two ways through one network."""
    found = []
    for run in (bptt, plain):
        net = student(name, neuron).train()
        calls = [node for node in net.graph.nodes if node.op == "call_module"]
        path = next(c.name for c in calls if isinstance(net.get_submodule(c.target), Neuron))
        torch.manual_seed(1)
        trace = run(net, x, {path: ("mean", "current")})
        tap = trace.taps[path]
        loss = trace.logits.square().sum() + tap.mean.square().sum() + tap.current.sin().sum()
        found.append((trace, tap, gradients(net, loss)))
    (ours, our_tap, mine), (theirs, their_tap, expected) = found
    assert torch.equal(ours.logits, theirs.logits)
    torch.testing.assert_close(our_tap.mean, their_tap.mean)
    assert torch.equal(our_tap.current, their_tap.current)
    for key, value in expected.items():
        assert spread([mine[key] - value]) <= 1e-6 * max(spread([value]), 1e-3), key


@pytest.mark.parametrize("name", MODELS)
def test_networks(name: str, plain: Callable) -> None:
    both(name, IF(0.75, 0.25), moving(name), plain)
    both(name, LIF(threshold=0.6, reset="hard", v_reset=-0.1), moving(name, 2), plain)
    both(name, IF(0.75, signed="max pool" not in name), repeat(images(name), 4), plain)


@pytest.mark.parametrize("field", ["spikes", "potential"])
def test_taps_inside_a_neuron_keep_their_gradients(field: str, plain: Callable) -> None:
    """Also where the other neurons are written out."""
    found = []
    for run in (bptt, plain):
        net = student("residual", IF(0.75, 0.25))
        value = getattr(run(net, moving(), {"relu2": (field,)}).taps["relu2"], field)
        weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        found.append(gradients(net, (value * weight).sum()))
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, msg=key)
    assert spread([found[0]["conv1.weight"]]) > 0


@pytest.mark.parametrize("name", ["residual", "max pool", "mlp"])
def test_autocast(name: str, plain: Callable) -> None:
    """What propagates is in bf16, taps' means and parameters' gradients in fp32, near as before."""
    found, path = [], {"residual": "relu1", "max pool": "3", "mlp": "1"}[name]
    for run in (bptt, plain):
        net = student(name, IF(0.75)).float().train()
        with torch.autocast("cpu", torch.bfloat16):
            trace = run(net, moving(name, batch=8).float(), {path: ("mean",)})
        assert trace.taps[path].mean.dtype == torch.float32
        found.append(gradients(net, trace.mean_logits.float().square().sum()))
    for key, value in found[1].items():
        assert found[0][key].dtype == torch.float32
        assert spread([found[0][key] - value]) <= 0.05 * max(spread([value]), 0.1), key


# ---- memory and compilation -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_nothing_but_currents_is_kept(dtype: torch.dtype) -> None:
    for neuron in per_channel().values():
        x = currents(8, dtype=dtype).requires_grad_()
        kept = saved_bytes(lambda neuron=neuron, x=x: unrolled(neuron, x).float().mean())
        values = neuron.theta.nbytes + neuron.initial.nbytes
        assert kept == x.nbytes + values


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_more_is_kept_than_by_spikingjelly(precision: str) -> None:
    pytest.importorskip(foreign.PACKAGES["jelly"], reason="it is not installed")
    setting = Setting(model="small-cnn", width=4, size=8, batch=4, threads=1)
    kept = [
        saved_bytes(subject(setting, Case(engine, precision, 4)).loss)
        for engine in ("bptt", "jelly")
    ]
    assert kept[0] <= 1.01 * kept[1]


def test_compiled_is_the_same() -> None:
    """One kernel each way for all layers: another shape, batch or threshold compiles nothing."""
    if not compiling.compiles(torch.device("cpu")):
        pytest.skip("there is no C++ compiler that works")
    counted = importlib.import_module("torch._dynamo.utils").counters["stats"]
    neuron = LIF(tau=1.8, threshold=torch.tensor([0.5, 0.75, 1.0, 1.3]), initial=0.1)
    spent = compiling.seconds_compiling()
    agree(neuron, currents(2, (3, 4, 6, 6), torch.float32), fuse=True)
    assert compiling.seconds_compiling() > spent
    before, spent = counted["unique_graphs"], compiling.seconds_compiling()
    agree(neuron, currents(2, (3, 4, 6, 6), torch.float32), fuse=True)
    assert compiling.seconds_compiling() == spent
    agree(LIF(tau=1.8), currents(2, (5, 7, 3, 2), torch.float32), fuse=True)
    agree(neuron, currents(2, (4, 4, 4, 4), torch.float32), fuse=True)
    assert counted["unique_graphs"] == before >= 2


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled or said so far; what is compiled within is forgotten."""
    monkeypatch.setattr(compiling, "_told", set())
    compiling.compiled.cache_clear()
    yield
    compiling.compiled.cache_clear()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Any]:
    """A torch whose compilation fails; the forms that it was asked for."""
    asked = []

    def compile_(form: Any, dynamic: bool) -> Any:
        def kernel(*_: Any, **__: Any) -> Any:
            asked.append(form)
            raise error

        return kernel

    monkeypatch.setattr(torch, "compile", compile_)
    return asked


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InductorError(InvalidCxxCompiler(), None), r"for cpu \(No working C\+\+ compiler.*\)$"),
        (InductorError(CppCompileError(["c++"], "killed"), None), r"\(C\+\+ compile error\)$"),
        (TritonMissing(None), r"\(Cannot find a working triton installation\)$"),
    ],
    ids=["absent", "broken", "triton"],
)
@pytest.mark.usefixtures("anew")
def test_without_a_compiler_it_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """Also beside a GPU that is not used, and where a compiler is found that does not work."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = failing(monkeypatch, error)
    with pytest.warns(UserWarning, match=said) as told:
        agree(IF(0.75), currents(), fuse=True)
        agree(IF(0.75), currents(2), fuse=True)
    assert len(told) == 1
    assert len(asked) == len(set(asked)) == 2  # once forward, once backward
    assert not compiling.compiles(torch.device("cpu"))


@pytest.mark.usefixtures("anew")
def test_a_compiler_that_torch_cannot_run_is_none() -> None:
    """The same by torch's own search for one."""
    import torch._inductor.config as inductor

    def form(x: Tensor) -> Tensor:
        return 3 * x.relu() + 0.125

    x = torch.randn(5)
    none = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with inductor.patch(none), pytest.warns(UserWarning, match=r"No working C\+\+ compiler"):
        assert torch.equal(compiling.compiled(form)(x), form(x))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.usefixtures("anew")
def test_memory_that_is_full_is_not_a_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, wrapped: bool
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory")
    failing(monkeypatch, InductorError(full, None) if wrapped else full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        unrolled(IF(0.75), currents(), fuse=True)
    assert not recwarn.list


@pytest.mark.usefixtures("anew")
def test_known_forms_keep_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is handed over as a tuple: its shapes are what a form is, not its values."""
    monkeypatch.setattr(torch, "compile", lambda form, dynamic: form)
    run = compiling.compiled(lambda state, x: (state[0] + x,))
    state, spent = (torch.zeros(3),), compiling.seconds_compiling()
    state = run(state, torch.ones(3))
    kept, first = weakref.ref(state[0]), compiling.seconds_compiling()
    state = run(state, torch.ones(3))
    assert kept() is None
    assert spent < first == compiling.seconds_compiling()


def test_recipes_compile_what_they_unroll() -> None:
    """On all data but the digits, as they do for `rate`."""
    found = {
        data: default_recipe("distill", {"kind": data}, "twkd").execute
        for data in ("digits", "cifar10")
    }
    assert found == {"digits": {"kind": "bptt"}, "cifar10": {"kind": "bptt", "fuse": True}}
    assert default_recipe("distill", {"kind": "cifar10"}, "qann").execute == {"kind": "quantised"}
