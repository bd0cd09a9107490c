"""From events to a spiking student: frames over steps, what a teacher sees, images for events."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from small import Stages, images, network, scattered
from spikelet.convert import convert
from spikelet.data import Split, hold_out
from spikelet.data.dataset import assemble
from spikelet.data.paired import Paired
from spikelet.distill import Distiller, match
from spikelet.encode import Direct, Latency, Poisson, fitted, over_steps, repeat, slid, still
from spikelet.errors import UserError
from spikelet.execute import ann, bptt, rate
from spikelet.graph import capture
from spikelet.measure import accuracy, accuracy_over_steps
from spikelet.measure.masking import curves, ends
from spikelet.measure.saliency import input_gradients, ranking
from spikelet.neuron import IF
from spikelet.recipe import TERMS, Training, build, default_recipe, terms_of
from spikelet.terms import CrossEntropy, Logits, Semantic
from spikelet.terms.semantic import misalignment
from spikelet.train import job

LABELS = torch.tensor([0, 1, 2, 0])


def frames(count=4, batch=4, channels=2, size=8, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    shape = (batch, count, channels, size, size)
    return torch.randn(shape, generator=drawn, dtype=torch.float64)


# ---- frames over steps --------------------------------------------------------------------


@pytest.mark.parametrize(("count", "steps"), [(4, 4), (4, 2), (4, 3), (3, 7), (5, 1), (1, 3)])
def test_steps_are_equal_parts_of_the_recording(count, steps):
    """Against the mean over a fine grid of moments, and the mean over time stays."""
    x, fine = frames(count), math.lcm(count, steps)
    moments = x.repeat_interleave(fine // count, 1)
    expected = moments.unflatten(1, (steps, fine // steps)).mean(2).transpose(0, 1)
    found = over_steps(x, steps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.mean(0), still(x))
    torch.testing.assert_close(Direct(steps)(x), found)
    torch.testing.assert_close(repeat(x, steps), found)


def test_a_still_image_is_repeated_and_still_itself():
    x = images()
    assert still(x) is x
    assert all(torch.equal(each, x) for each in Direct(3)(x))
    for encode in (Poisson(2), Latency(2)):
        with pytest.raises(UserError, match="encode direct"):
            encode(frames())


def test_an_ann_sees_the_mean_frame_whatever_the_steps():
    net, x = network("stages").eval(), frames()
    expected = net(x.mean(1))
    for steps in (1, 2, 3, 4):
        torch.testing.assert_close(ann(net, repeat(x, steps)).logits[0], expected)


def test_rate_takes_the_true_mean_of_moving_input():
    """The first layer's gradient under `rate` is that of its mean input, not of the last frame."""
    net = convert(network("stages"), IF(threshold=0.8), steps=4).double().eval()
    x = repeat(frames(), 4)
    found, slow = rate(net, x), bptt(net, x)
    torch.testing.assert_close(found.logits, slow.logits)
    last = x[-1:].expand_as(x)
    gradients = []
    for shown in (x, last):
        net.zero_grad()
        rate(net, shown).mean_logits.square().sum().backward()
        gradients.append(net.get_parameter("layer1.0.weight").grad.clone())
    assert not torch.allclose(*gradients)


def test_conversion_is_calibrated_on_frames():
    """Thresholds come from the mean frame; after the sweeps mean rates are those of the ANN."""
    net, x = network("stages").eval(), frames(batch=32)
    student = convert(net, IF(), steps=4, calibrate=x).double().eval()
    plain = convert(net, IF(), steps=4, calibrate=x, sweeps=0).double()
    same = convert(net, IF(), steps=4, calibrate=still(x), sweeps=0).double()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name])
    place = "layer1.2"
    taught = ann(capture(net).eval(), repeat(x, 1), [place]).taps[place].mean.mean((0, 2, 3))
    for model, near in ((student, True), (plain, False)):
        mean = bptt(model.eval(), repeat(x, 4), [place]).taps[place].mean.mean((0, 2, 3))
        close = float((mean - taught).detach().abs().mean()) < 0.2 * float(taught.detach().mean())
        assert close or not near


def test_every_number_of_steps_sees_the_whole_recording():
    """A row at T does not depend on which other T are asked for; black second halves count."""
    net, x = convert(network("stages"), IF(threshold=0.7)).double().eval(), frames(batch=20)
    labels = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(0))
    alone = {t: accuracy_over_steps(net, [(x, labels)], [t])[t] for t in (1, 2, 4)}
    assert accuracy_over_steps(net, [(x, labels)], [1, 2, 4]) == alone
    hits = bptt(net, repeat(x, 2)).mean_logits.argmax(1) == labels
    assert alone[2] == float(hits.double().mean())
    model = network("stages").eval()
    expected = float((model(x.mean(1)).argmax(1) == labels).double().mean())
    assert accuracy(model, [(x, labels)]) == expected


def test_maps_of_frames_are_of_pixels():
    """Gradients are summed over frames and channels, and masks cover a pixel in all of them."""
    net, x = network("stages").eval(), frames()

    def answer(seen):
        return net(still(seen))

    seen = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(answer(seen).gather(1, LABELS[:, None]).sum(), seen)
    found = input_gradients(answer, x, LABELS)
    torch.testing.assert_close(found, slope.abs().sum((1, 2)))
    fill, order = x.mean((0, 1, 3, 4)).view(2, 1, 1), ranking(found)
    known = ends(answer, x, fill)
    curve = curves(answer, x, order, fill, known, shares=(0.0, 0.25, 1.0))["deletion"]
    masked = x.clone().flatten(3)
    for sample, places in enumerate(order[:, :16]):
        masked[sample, :, :, places] = fill.view(1, 2, 1)
    expected = answer(masked.view_as(x)).softmax(1)
    predicted = answer(x).argmax(1, keepdim=True)
    torch.testing.assert_close(curve.probability[:, 1], expected.gather(1, predicted)[:, 0])


# ---- images for events --------------------------------------------------------------------


def test_sliding_shows_images_first_and_as_many_as_said():
    x, image = torch.zeros(5, 4000, 1, 1, 1), torch.ones(4000, 1, 1, 1)
    for share in (0.0, 0.3, 0.5, 1.0):
        found = slid(x, image, share, torch.rand(4000)).flatten(1)
        assert bool((found.diff(dim=0) <= 0).all())  # never an image after an event
        assert float(found.mean()) == pytest.approx(share, abs=0.01)
        number = found.sum(0)
        assert float(number.max() - number.min()) <= 1
    shares = [Direct(4, sliding=0.5).images_left(progress) for progress in (0, 0.25, 0.5, 0.9)]
    assert shares == [1, 0.5, 0, 0]
    assert Direct(4).images_left(0.0) == 0
    with pytest.raises(UserError, match="sliding"):
        Direct(4, sliding=1.5)


def test_images_fit_other_forms():
    grey = torch.rand(3, 1, 4, 4)
    wide = fitted(grey, 2, (8, 8))
    assert wide.shape == (3, 2, 8, 8)
    assert torch.equal(wide[:, 0], wide[:, 1])
    torch.testing.assert_close(fitted(grey, 1, (2, 2)), nn.functional.avg_pool2d(grey, 2))
    colour = torch.rand(3, 3, 4, 4)
    assert fitted(colour, 3, (4, 4)) is colour
    torch.testing.assert_close(fitted(colour, 2, (4, 4))[:, 1], colour.mean(1))


def dataset_of(name, x, labels, classes=3):
    split = Split(x, labels)
    rest, held = hold_out(split, max(len(split) // 4, classes), seed=0)
    names = tuple("abcdefghij"[:classes])
    common = {"classes": names, "licence": "none", "validation": 3, "train": None, "seed": 0}
    unit = 10 if x.ndim == 5 else None
    return assemble(name, rest, held, **common, unit=unit)


def pictures(count=60, size=8, channels=1):
    labels = torch.arange(count) % 3
    x = torch.zeros(count, channels, size, size, dtype=torch.uint8)
    noise = torch.Generator().manual_seed(5)
    for index, label in enumerate(labels):
        x[index, :, 2 * label : 2 * label + 2] = 200
        x[index] += torch.randint(0, 50, x[index].shape, generator=noise, dtype=torch.uint8)
    return x, labels


def test_paired_images_have_the_class_of_the_label(generator):
    known = dataset_of("pictures", *pictures())
    paired = Paired(known, known)
    labels = torch.tensor([2, 0, 1, 1] * 100)
    drawn = paired(labels, generator)
    bright = drawn[:, 0].mean(2).view(400, 4, 2).mean(2).argmax(1)  # the pair of rows that is lit
    assert torch.equal(bright, labels)
    assert len({row.numpy().tobytes() for row in drawn}) > 20
    again = paired(labels, torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn)
    with pytest.raises(UserError, match="classes are not those"):
        Paired(known, dataclasses.replace(known, classes=("x", "y", "z")))
    with pytest.raises(UserError, match="the events of movies"):
        Paired(event_data(), known)


def cosine(a, b):
    return (a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_misalignment_by_loops():
    s, t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    moved, others = s - sum(s) / 5, t - sum(t) / 5
    total = 0.0
    for i in range(5):
        for j in range(5):
            ours = float(cosine(moved[i], others[j]))
            theirs = float(cosine(others[i], others[j]))
            total += (ours - theirs) ** 2 / 25
    assert float(misalignment(s, t)) == pytest.approx(total, rel=1e-5)
    assert float(misalignment(3 * t, t)) < 1e-12


def crossed(size=8, **more):
    """A student of events under a teacher of images of that size."""
    torch.manual_seed(0)
    student = convert(network("stages"), IF(), calibrate=frames(batch=16)).double()
    teacher = scattered(Stages(channels=1).double()).eval()
    known = dataset_of("pictures", *pictures(size=size))
    pair = Paired(known, known)

    def paired(labels, generator=None):
        return pair(labels, generator).double()

    terms = {"ce": CrossEntropy(), "logits": Logits(), "semantic": Semantic(until=0.5)}
    return Distiller(
        student, teacher, terms=terms, encode=Direct(4, sliding=0.5), paired=paired,
        example=frames(batch=16), labels=torch.arange(16) % 3, **more,
    ).double()  # fmt: skip


@pytest.mark.parametrize("size", [8, 16])
def test_a_teacher_of_images_is_shown_images(size):
    """Its logits are those of the paired images, whatever the events; sizes may differ."""
    whole = crossed(size).eval()
    assert len(whole.pairs) == 3
    draw = torch.Generator().manual_seed(3)
    shown = whole.paired(LABELS, torch.Generator().manual_seed(3))
    _, parts = whole(frames(), LABELS, 1.0, draw)
    student = rate(whole.student, repeat(frames(), 4)).mean_logits
    taught = whole.teacher(shown)
    expected = Logits()(None, step_of(student, taught))
    torch.testing.assert_close(parts["logits"], expected)
    other = crossed(size, pairs=[(a, b) for a, b in whole.pairs])
    assert other.pairs == whole.pairs


def step_of(student, teacher):
    from spikelet.terms.term import Step
    from spikelet.trace import Trace

    return Step(Trace(student[None], {}), Trace(teacher[None], {}), LABELS)


def test_phases_of_cross_modal_distillation():
    """At first the student sees images alone, and features are aligned; later neither."""
    whole = crossed().eval()
    seed = torch.Generator
    early = [whole(frames(seed=s), LABELS, 0.0, seed().manual_seed(1))[1] for s in (1, 2)]
    torch.testing.assert_close(early[0]["ce"], early[1]["ce"])  # events do not matter yet
    assert float(early[0]["semantic"]) > 0
    late = [whole(frames(seed=s), LABELS, 0.7, seed().manual_seed(1))[1] for s in (1, 2)]
    assert not torch.allclose(late[0]["ce"], late[1]["ce"])
    assert float(late[0]["semantic"]) == 0
    loss, _ = whole(frames(), LABELS, 0.3, seed().manual_seed(1))
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in whole.parameters() if p.grad is not None)
    with pytest.raises(UserError, match="labels"):
        Distiller(
            whole.student, whole.teacher, terms=whole.terms, paired=whole.paired, example=frames()
        )


def test_stages_of_different_images_are_paired_from_the_end():
    student, teacher = capture(network("stages")), capture(network("stages", seed=1))
    same = match(student, teacher, images("stages"))
    wide = match(student, teacher, images("stages"), torch.zeros(1, 2, 32, 32).double())
    assert same == wide
    assert len(same) == 3


# ---- whole runs ---------------------------------------------------------------------------


def movies(count=72, steps=3):
    """Two-channel movies of a bar that moves, its rows telling the class."""
    x, labels = pictures(count, channels=2)
    moved = torch.stack([torch.roll(x, step, 3) for step in range(steps)], 1)
    return (moved // 20 * 10).contiguous(), labels


def image_data(**_):
    """A loader of still images, for a recipe."""
    return dataset_of("pictures", *pictures())


def event_data(**_):
    """A loader of event frames, for a recipe."""
    return dataset_of("movies", *movies())


def recipe(task, kind, method="hybrid", **fields):
    spec = {"kind": f"test_event_training:{kind}"}
    short = Training(epochs=2, batch=16, optimiser="adamw", learning_rate=0.01, clip=1.0)
    model = {"kind": "small-cnn", "width": 4} if task == "teach" else None
    common = {"model": model, "training": short, "estimate": 32, **fields}
    return default_recipe(task, spec, method, **common)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Runs of an ANN on mean frames and of one on images."""
    folder = tmp_path_factory.mktemp("teachers")
    for kind in ("event_data", "image_data"):
        job.teach(recipe("teach", kind), folder / kind)
    return folder


def distilled(teachers, out, teacher, method, **fields):
    given = {"teacher": {"run": str(teachers / teacher)}, "calibrate": 32, "steps": 2, **fields}
    made = recipe("distill", "event_data", method, **given)
    made.execute.pop("fuse", None)
    return job.distill(made, out)


@pytest.mark.parametrize("method", ["none", "hybrid", "qann"])
def test_a_student_of_mean_frames(teachers, tmp_path, method):
    rows = distilled(teachers, tmp_path / "run", "event_data", method)["rows"]
    assert {row["steps"] for row in rows if row["method"] == "convert"} == {1, 2}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    from spikelet.train import load

    loaded = load(tmp_path / "run")
    data = event_data()
    from spikelet.data import normalise

    x = normalise(data.test.images, data)
    logits = loaded.predict(x)
    hits = (logits.argmax(1) == data.test.labels).double().mean()
    assert float(hits) == pytest.approx(rows[-1]["accuracy"])


@pytest.mark.parametrize("method", ["logits", "ckd"])
def test_a_student_of_events_under_a_teacher_of_images(teachers, tmp_path, method):
    """Its images have one channel where events have two: a new first layer, the rest is kept."""
    rows = distilled(teachers, tmp_path / "run", "image_data", method)["rows"]
    assert rows[0]["note"] == "on the test images of pictures"
    assert [row["method"] for row in rows[1:]] == [method] * 2
    stored = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert stored["images"] == {"kind": "test_event_training:image_data"}
    assert (stored["channels"], stored["size"]) == (1, [8, 8])
    model = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (model["channels"], "images" in model) == (2, False)


def pull(term, student, taught):
    """Norm of the gradient with respect to each sample's logits."""
    z = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(len(z) * term(None, step_of(z, taught)), z)
    return slope.norm(dim=1)


def test_a_sure_teacher_does_not_drown_the_labels():
    """Of ckd: what a student of small logits answers wrongly pulls harder than what is right.

    At the temperature of other methods both pull alike, and harder than the labels.
    """
    labels = torch.tensor([0, 1, 2, 0])
    taught = 15 * nn.functional.one_hot(labels, 10).double()
    said = torch.tensor([0, 1, 5, 6])  # two right, two wrong
    student = 3 * nn.functional.one_hot(said, 10).double()
    mild = build("terms.logits", terms_of("ckd")["logits"], TERMS)
    pulls = {name: pull(term, student, taught) for name, term in (
        ("ckd", mild), ("logits", Logits()), ("labels", CrossEntropy())
    )}  # fmt: skip
    ratio = {name: float(each[2:].mean() / each[:2].mean()) for name, each in pulls.items()}
    assert ratio["labels"] > 3
    assert ratio["ckd"] > 3
    assert ratio["logits"] < 1.3
    assert bool((pulls["logits"][:2] > 3 * pulls["labels"][:2]).all())


def test_ckd_needs_a_teacher_of_images(teachers, tmp_path):
    with pytest.raises(UserError, match=r"sliding.*no images are paired"):
        distilled(teachers, tmp_path / "run", "event_data", "ckd")


def test_every_measure_of_event_runs(teachers, tmp_path):
    from spikelet.examine import MEASURES
    from spikelet.examine.subject import subject
    from spikelet.recipe import resolve
    from spikelet.train import load

    runs = (
        ("event_data", "hybrid", ("steps", "noise")),
        ("image_data", "ckd", ("steps", "energy", "health")),
    )
    for teacher, method, measures in runs:
        run = tmp_path / method
        distilled(teachers, run, teacher, method)
        seen = subject(load(run), event_data())
        assert (seen.teacher is None) == (teacher == "image_data")
        for name in measures:
            measure = resolve("measure", MEASURES[name], MEASURES)
            found = measure(seen, lambda *_: None)
            if name == "noise":
                kinds = [k for k, v in found["kinds"].items() if v["where"] == "image"]
                assert kinds == ["event-drop", "event-jitter", "event-delay", "hot-pixels"]
            if name == "steps":
                assert all("early_exit" not in each for each in found["networks"].values())
