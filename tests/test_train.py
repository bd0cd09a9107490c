"""Training: exact resumption, schedules, averages, logs, and stopping in time."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spikelet.checkpoint import load_state, save_state
from spikelet.errors import UserError
from spikelet.recipe import Recipe, Training
from spikelet.train import Interrupted, card, digest, env, fit, read_json, read_recipe, write_recipe
from spikelet.train.schedule import learning_rate, optimiser, parameter_groups


class Classifier(nn.Module):
    """A distiller's stand-in with batch norm, dropout and noise from the generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.student = nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Flatten(),
                nn.Linear(4 * 16, 3),
            )
        self.seen: list[float] = []
        self.on_step: Callable[[int], None] = lambda step: None

    def forward(
        self, images: Tensor, labels: Tensor, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.on_step(len(self.seen))
        self.seen.append(progress)
        noise = torch.rand(images.shape, generator=generator, device=images.device)
        logits = self.student(images + 0.1 * noise)
        entropy, size = F.cross_entropy(logits, labels), logits.square().mean()
        parts = {"ce": entropy.detach(), "size": size.detach()}
        return entropy + 0.01 * (1 - progress) * size, parts


class Epochs:
    """Augmented batches that can start anywhere, 5 an epoch, the last one smaller."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(5)
        self.labels = torch.arange(36) % 3
        self.images = torch.randn(36, 1, 6, 6, generator=made) + self.labels.view(-1, 1, 1, 1)
        self.before: Callable[[int, int], None] = lambda epoch, index: None

    def __len__(self) -> int:
        return 5

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(36, generator=torch.Generator().manual_seed(epoch)).split(8)
        for index in range(skip, len(self)):
            self.before(epoch, index)
            change = torch.Generator().manual_seed(1000 * epoch + index)
            images = self.images[order[index]].roll(
                int(torch.randint(3, (1,), generator=change)), -1
            )
            yield images, self.labels[order[index]]


TRAINING = Training(epochs=3, learning_rate=0.05, warmup_epochs=0.5, ema=0.9, clip=5.0)


def train(
    run: Path | None, training: Training = TRAINING, distiller: nn.Module | None = None, **more: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The same run each time: `more` says how it differs."""
    distiller = Classifier() if distiller is None else distiller
    if not more.get("resume"):
        torch.manual_seed(1)
    options = {"console": Console(quiet=True), "batches": Epochs()} | more
    history = fit(distiller, training=training, seed=7, run=run, **options)
    return distiller, history


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History without what the clock says."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in history]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("steps", [0, 2, 5, 8])
def test_a_run_resumed_is_bit_identical(tmp_path: Path, name: Any, steps: int) -> None:
    training = Training(
        epochs=3, optimiser=name, learning_rate=0.02, warmup_epochs=0.5, ema=0.9, clip=1.0
    )
    whole, history = train(None, training)
    train(tmp_path, training, stop_after=steps)
    torch.rand(100)
    console = Console(file=StringIO(), width=200)
    resumed, again = train(tmp_path, training, Classifier(seed=99), resume=True, console=console)
    goes_on = f"goes on at epoch {steps // 5 + 1}, batch {steps % 5 + 1}"
    assert (goes_on in console.file.getvalue()) is (steps > 0)
    assert_same(whole, resumed)
    assert timeless(history) == timeless(again)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == again


def test_interrupted_between_batches_and_resumed(tmp_path: Path) -> None:
    whole, history = train(None)
    batches = Epochs()

    def interrupt(epoch: int, index: int) -> None:
        if (epoch, index) == (1, 3):
            raise KeyboardInterrupt

    batches.before = interrupt
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, batches=batches)
    assert caught.value.code == 130
    assert str(caught.value) == f"spikelet distill --resume {tmp_path}"
    assert load_state(tmp_path / "checkpoint")["progress"]["batch"] == 3
    resumed, again = train(tmp_path, resume=True)
    assert_same(whole, resumed)
    assert timeless(history) == timeless(again)


def test_interrupted_within_a_step_continues_from_the_last_exact_state(tmp_path: Path) -> None:
    whole, _ = train(None)
    distiller = Classifier()

    def interrupt(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    distiller.on_step = interrupt
    with pytest.raises(Interrupted):
        train(tmp_path, distiller=distiller)
    progress = load_state(tmp_path / "checkpoint")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 0)
    assert_same(whole, train(tmp_path, resume=True)[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_after_the_step(tmp_path: Path, number: int, code: int) -> None:
    whole, _ = train(None)
    before = signal.getsignal(number)
    distiller = Classifier()
    distiller.on_step = lambda step: os.kill(os.getpid(), number) if step == 6 else None
    write_recipe(tmp_path, Recipe("teach", {"kind": "digits"}))
    with pytest.raises(Interrupted, match="spikelet teach --resume") as caught:
        train(tmp_path, distiller=distiller)
    assert caught.value.code == code
    assert signal.getsignal(number) == before
    progress = load_state(tmp_path / "checkpoint")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)
    assert_same(whole, train(tmp_path, resume=True)[0])


def test_fit_outside_the_main_thread_leaves_signals_alone() -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(len(train(None)[1])))
    thread.start()
    thread.join()
    assert done == [3]


def test_a_finished_run_resumed_returns_at_once(tmp_path: Path) -> None:
    finished, history = train(tmp_path)
    again = Classifier(seed=3)
    assert train(tmp_path, distiller=again, resume=True)[1] == history
    assert again.seen == []
    assert_same(finished, again)


def test_any_iterable_of_batches_will_do(tmp_path: Path) -> None:
    data = TensorDataset(Epochs().images, Epochs().labels)

    def loader() -> Any:
        return DataLoader(data, batch_size=8, shuffle=True)

    whole, _ = train(None, batches=loader())
    train(tmp_path, batches=loader(), stop_after=8)  # stored at the end of the first epoch
    assert load_state(tmp_path / "checkpoint")["progress"]["epoch"] == 1
    assert_same(whole, train(tmp_path, batches=loader(), resume=True)[0])
    train(tmp_path, stop_after=8)
    with pytest.raises(UserError, match="within an epoch"):
        train(tmp_path, batches=loader(), resume=True)


def test_measuring_sees_averaged_weights_and_leaves_no_trace() -> None:
    distiller, seen = Classifier(), []

    def evaluate() -> dict[str, float]:
        assert not distiller.training
        assert not torch.is_grad_enabled()
        seen.append(distiller.student[0].weight.clone())
        return {"accuracy": float(torch.rand(()))}

    _, history = train(None, distiller=distiller, evaluate=evaluate)
    assert_same(distiller, train(None)[0])
    assert torch.equal(seen[-1], distiller.student[0].weight)
    assert not distiller.training
    raw, _ = train(None, Training(epochs=3, learning_rate=0.05, warmup_epochs=0.5, clip=5.0))
    assert not torch.equal(raw.student[0].weight, distiller.student[0].weight)
    assert [row["validation"].keys() for row in history] == [{"accuracy"}] * 3


def test_the_average_is_the_recursion() -> None:
    distiller, path = Classifier(), []
    distiller.on_step = lambda step: path.append(distiller.student[5].bias.detach().double())
    training = Training(epochs=2, learning_rate=0.05, momentum=0.0, ema=0.5)
    train(None, training, distiller)
    raw = Classifier()
    train(None, Training(epochs=2, learning_rate=0.05, momentum=0.0), raw)
    expected = path[0]
    for update, value in enumerate([*path[1:], raw.student[5].bias.detach().double()]):
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(distiller.student[5].bias.double(), expected, atol=1e-6, rtol=0)


def test_the_log_holds_means_over_images() -> None:
    distiller, batches = Classifier(), Epochs()
    _, history = train(None, Training(epochs=1, learning_rate=1e-9), distiller, batches=batches)
    sums, count = 0.0, 0
    torch.manual_seed(1)
    other, generator = Classifier(), torch.Generator().manual_seed(7)
    for images, labels in batches.epoch(0):
        _, parts = other(images, labels, 0.0, generator)
        sums, count = sums + float(parts["ce"]) * len(images), count + len(images)
    assert history[0]["parts"]["ce"] == pytest.approx(sums / count, rel=1e-5)
    assert history[0]["step"] == 5
    assert distiller.seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_one_line_an_epoch_with_warnings(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=40)
    health = {
        "layer1.0": {"rate": 0.0, "dead": 1.0, "saturated": 0.0},
        "layer2.0": {"rate": 0.5, "dead": 0.0, "saturated": 0.95},
    }
    train(tmp_path, console=console, evaluate=lambda: {"accuracy": 0.5}, health=lambda: health)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 9
    for part in (
        "epoch 1/3",
        "loss",
        "ce",
        "size",
        "learning rate",
        "validation accuracy 50.00 %",
        "images/s",
        "firing rate by layer 0.250",
    ):
        assert part in lines[0]
    assert "no spike at all in layer1.0" in lines[1]
    assert "every step in layer2.0" in lines[2]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["health"] == health


def test_the_bar_is_drawn_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    train(None, console=console)
    assert "ETA" in console.file.getvalue()


class Poisoned(Classifier):
    """Gives a part that is not finite at one step, or a gradient that is not."""

    def __init__(self, step: int, how: str) -> None:
        super().__init__()
        self.step, self.how = step, how

    def forward(self, images: Tensor, labels: Tensor, progress: float, generator: Any) -> Any:
        bad = len(self.seen) == self.step
        loss, parts = super().forward(images, labels, progress, generator)
        if bad and self.how == "part":
            return loss * math.nan, parts | {"size": torch.tensor(math.inf)}
        if bad:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss, parts


@pytest.mark.parametrize(
    ("how", "step", "says"),
    [
        ("part", 7, "part 'size' is not finite at epoch 2, batch 3"),
        ("gradient", 9, "a parameter after the step is not finite at epoch 2, batch 5"),
    ],
)
def test_divergence_stops_and_keeps_the_last_good_state(
    tmp_path: Path, how: str, step: int, says: str
) -> None:
    training = Training(epochs=3, learning_rate=0.05)
    with pytest.raises(UserError, match=says) as caught:
        train(tmp_path, training, Poisoned(step, how))
    assert caught.value.argument == "learning_rate = 0.05"
    assert "clip" in caught.value.fix
    stored = load_state(tmp_path / "checkpoint")
    assert stored["progress"]["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in stored["model"].values())
    assert_same(train(tmp_path, training, resume=True)[0], train(None, training)[0])


LISTED = [(torch.randn(6, 1, 6, 6), torch.arange(6) % 3)]


def test_listed_images_that_are_not_finite_are_told() -> None:
    bad = [*LISTED, (LISTED[0][0] * math.nan, LISTED[0][1])]
    with pytest.raises(UserError, match="`batches`: images of epoch 1, batch 2 are not finite"):
        train(None, batches=bad)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"images": 1, "labels": 2}, "got a dict"),
        (LISTED[0][0], "got a Tensor"),
        ((1.0, 2), "got a tuple of 2"),
        ((LISTED[0][0],), "got a tuple of 1"),
    ],
)
def test_batches_of_something_else_are_told(batch: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"`batches`: expected tensors.*{said}"):
        train(None, batches=[batch])


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_without_bf16_is_told(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    there = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.ops.mkldnn, there, lambda: fast, raising=False)
    console = Console(file=StringIO(), width=200)
    train(None, Training(epochs=1, precision="bf16"), batches=LISTED, console=console)
    assert ("this processor has no bf16" in console.file.getvalue()) is not fast


def test_a_checkpoint_by_the_clock_is_never_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    training = Training(epochs=3, learning_rate=0.05, checkpoint_minutes=1e-9)
    with pytest.raises(UserError, match="epoch 2, batch 3"):
        train(tmp_path, training, Poisoned(7, "gradient"))
    progress = load_state(tmp_path / "checkpoint")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)
    assert_same(train(tmp_path, training, resume=True)[0], train(None, training)[0])


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    distiller, stored = Classifier(), []

    def look(step: int) -> None:
        progress = load_state(tmp_path / "checkpoint")["progress"]
        stored.append(5 * progress["epoch"] + progress["batch"])

    distiller.on_step = look
    train(tmp_path, Training(epochs=2, learning_rate=0.05, checkpoint_minutes=1e-9), distiller)
    assert stored == list(range(10))


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    train(tmp_path, stop_after=2)
    other = Training(epochs=4, learning_rate=0.05, warmup_epochs=0.5, ema=0.9, clip=5.0)
    with pytest.raises(UserError, match=r"`epochs = 4`.*started with 3"):
        train(tmp_path, other, resume=True)
    with pytest.raises(UserError, match="none is stored there"):
        train(tmp_path / "empty", resume=True)
    with pytest.raises(UserError, match="no run to resume"):
        train(None, resume=True)


@pytest.mark.parametrize("stored", ["cuda", None], ids=["said", "older"])
def test_a_run_goes_on_on_another_device_with_other_draws(
    tmp_path: Path, stored: str | None
) -> None:
    """A generator's state is of use on its own type of device alone; the line says which."""
    train(tmp_path, stop_after=2)
    state = load_state(tmp_path / "checkpoint")
    assert state.pop("device") == "cpu"
    state["generators"]["distiller"] = torch.zeros(16, dtype=torch.uint8)  # as long as CUDA's
    ends = []
    for name in ("a", "b"):
        shutil.copytree(tmp_path / "checkpoint", tmp_path / name / "checkpoint")
        more = {} if stored is None else {"device": stored}
        save_state(tmp_path / name / "checkpoint", state | more)
        console = Console(file=StringIO(), width=200)
        ends.append(train(tmp_path / name, resume=True, console=console))
        begun = "begun on another device" if stored is None else "begun on cuda"
        assert f"{begun}, it continues on cpu" in console.file.getvalue()
        assert load_state(tmp_path / name / "checkpoint")["device"] == "cpu"
    (one, history), (other, _) = ends
    assert len(history) == 3
    assert_same(one, other)


def test_a_stored_state_of_the_same_device_need_not_say_so(tmp_path: Path) -> None:
    whole, _ = train(None)
    train(tmp_path, stop_after=2)
    state = load_state(tmp_path / "checkpoint")
    del state["device"]
    save_state(tmp_path / "checkpoint", state)
    console = Console(file=StringIO(), width=200)
    resumed, _ = train(tmp_path, resume=True, console=console)
    assert "begun on" not in console.file.getvalue()
    assert_same(whole, resumed)


def test_bf16_trains() -> None:
    kinds = []
    distiller = Classifier()
    distiller.student[5].register_forward_hook(lambda *args: kinds.append(args[-1].dtype))
    _, history = train(None, Training(epochs=2, learning_rate=0.05, precision="bf16"), distiller)
    assert set(kinds) == {torch.bfloat16}
    assert history[1]["loss"] < history[0]["loss"]
    assert distiller.student[5].weight.dtype == torch.float32


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    training = Training(epochs=10, learning_rate=2.0, warmup_epochs=2)
    rates = [learning_rate(training, step, 10) for step in range(101)]
    assert rates[:20] == pytest.approx([0.1 * (step + 1) for step in range(20)])
    for step in range(20, 101):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 20) / 80))
    constant = Training(epochs=2, learning_rate=2.0, schedule="constant")
    assert {learning_rate(constant, step, 10) for step in range(20)} == {2.0}


def test_norms_biases_thresholds_and_leaks_are_not_decayed() -> None:
    module = nn.Module()
    module.convolution, module.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    module.threshold, module.leak = nn.Parameter(torch.ones(2, 1, 1)), nn.Parameter(torch.ones(()))
    module.fixed = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    decayed, free = parameter_groups(module, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(module.convolution.weight)]
    assert (decayed["weight_decay"], free["weight_decay"], len(free["params"])) == (0.1, 0.0, 5)
    adaptive = optimiser(module, Training(optimiser="adamw", momentum=0.8, beta2=0.95))
    assert isinstance(adaptive, torch.optim.AdamW)
    assert {group["betas"] for group in adaptive.param_groups} == {(0.8, 0.95)}
    with pytest.raises(UserError, match="no parameter"):
        parameter_groups(nn.ReLU(), 0.1)


def test_batches_must_be_countable() -> None:
    with pytest.raises(UserError, match="number is unknown"):
        train(None, batches=iter([]))
    with pytest.raises(UserError, match="there are none"):
        train(None, batches=[])


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(epochs=1, learning_rate=0.05, tensorboard=True)
    with pytest.raises(UserError, match="run folder is needed"):
        train(None, training)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(tmp_path, training)
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    train(tmp_path, training)
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_run_folder_says_what_was_run(tmp_path: Path) -> None:
    recipe = Recipe("distill", {"kind": "digits"}, steps=3)
    write_recipe(tmp_path, recipe)
    assert read_recipe(tmp_path) == recipe
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "absent.json")
    content = env("cpu", {"train": "abc"})
    json.dumps(content)
    assert content["versions"]["torch"] == torch.__version__
    assert content["data"] == {"train": "abc"}
    assert str(Path.cwd()) not in json.dumps(content)
    assert len(digest(tmp_path / "recipe.json")) == 64


def test_the_card_names_data_licence_and_teacher() -> None:
    class Data:
        name, licence, classes = "digits", "CC BY 4.0", ("0", "1")
        mean, std, hashes = (0.5,), (0.2,), {"train": "abc"}

    made = card(Recipe("distill", {"kind": "digits"}), Data(), {"weights": "sha"})  # type: ignore[arg-type]
    json.dumps(made)
    assert made["data"]["licence"] == "CC BY 4.0"
    assert made["teacher"] == {"weights": "sha"}
    for steps, encode, words in (
        (4, {"kind": "direct"}, "for 4 time steps, less accurate after fewer, that"),
        (1, {"kind": "direct"}, "for 1 time step that"),
        (4, {"kind": "mixed"}, "for 1 to 4 time steps that"),
    ):
        mine = Recipe("distill", {"kind": "digits"}, steps=steps, encode=encode)
        assert words in card(mine, Data())["intended_use"]  # type: ignore[arg-type]
