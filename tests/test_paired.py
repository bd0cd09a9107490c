"""Which still image stands beside a recording: its own, by its number in the original order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import event_files as files
from spikelet.data import Batches, Split, hold_out, normalise
from spikelet.data.dataset import Origin, assemble
from spikelet.data.paired import Accompanied, Paired, partners
from spikelet.encode import fitted
from spikelet.errors import UserError
from spikelet.recipe import DATA, build
from spikelet.train.crossed import summed
from test_data import write_idx

NAMES = tuple("abc")
MANY = 60


def numbered(count=MANY, held=6, train=None, seed=0, name="pictures"):
    """Images whose first two pixels write down their own number, in a drawn part of them."""
    number = torch.arange(count)
    images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = number // 10, number % 10
    split = Split(images, number % 3, Origin(name, number))
    common = {"classes": NAMES, "licence": "none", "statistics": ((0.0,), (1 / 255,))}
    test = Split(images + 100, number % 3)
    return assemble("pictures", split, test, validation=held, train=train, seed=seed, **common)


def read(pictures):
    """The number that each picture has written down; 100 and more are of the test."""
    first, second = pictures[:, 0, 0, :2].round().long().unbind(1)
    return 10 * first + second


def recorded(shows, held=6, seed=0, name="pictures", labels=None):
    """Recordings of random events, each with the number of the image it shows."""
    shows = torch.as_tensor(shows)
    drawn = torch.Generator().manual_seed(1)
    shape = (len(shows), 3, 2, 4, 4)
    frames = torch.randint(0, 9, shape, generator=drawn, dtype=torch.uint8)
    labels = shows % 3 if labels is None else labels
    split = Split(frames, labels, Origin(name, shows))
    more = {"classes": NAMES, "licence": "none", "train": None, "unit": 1}
    return assemble("movies", split, split, validation=held, seed=seed, **more)


SHOWS = torch.randperm(MANY, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("train", "held", "seed"), [(None, 6, 0), (40, 9, 3), (20, 3, 8)])
def test_a_recording_stands_beside_its_own_image(train, held, seed):
    """Whatever part of the images is known, in whatever order either data set is."""
    images, events = numbered(train=train, held=held, seed=seed), recorded(SHOWS, seed=seed + 1)
    known = set(images.train.origin.numbers.tolist())
    out = set(events.validation.origin.numbers.tolist())
    pair, seen = Paired(images, events), 0
    assert pair.exact == len(known & set(events.train.origin.numbers.tolist())) < MANY
    order = torch.arange(len(events.train))
    for epoch in range(4):
        chosen = pair.chosen(order, events.train.labels, torch.Generator().manual_seed(epoch))
        for want, label, got in zip(
            events.train.origin.numbers.tolist(),
            events.train.labels.tolist(),
            read(pair.pictures(chosen)).tolist(),
            strict=True,
        ):
            assert got in known  # no held-out and no test image, ever
            assert got % 3 == label
            if want in known:
                assert got == want
                seen += 1
            else:
                assert got not in out
    assert seen == 4 * pair.exact > 0


def test_partners_by_a_loop():
    images, events = numbered(train=30, held=5).train, recorded([5, -1, 70, 7, 7, 0, 33, 12])
    events = events.test
    expected = [
        next((i for i, n in enumerate(images.origin.numbers.tolist()) if n == want >= 0), -1)
        for want in events.origin.numbers.tolist()
    ]
    assert partners(events, images).tolist() == expected
    assert -1 in expected
    assert set(expected) != {-1}


def test_what_is_no_partner():
    """An image of another class, of another order, or without a number."""
    images, shows = numbered(), torch.arange(MANY)
    assert Paired(images, recorded(shows)).exact > 0
    assert Paired(images, recorded(shows, name="pictures of the test")).exact == 0
    assert Paired(images, recorded(shows, labels=(shows + 1) % 3)).exact == 0
    bare = dataclasses.replace(images, train=dataclasses.replace(images.train, origin=None))
    assert Paired(bare, recorded(shows)).exact == 0
    assert Paired(images, recorded(torch.full((MANY,), -1), labels=shows % 3)).exact == 0
    few = dataclasses.replace(images, train=images.train.at(torch.tensor([0, 3, 6, 1])))
    with pytest.raises(UserError, match="no training image of c"):
        Paired(few, recorded(shows))


def test_origins_go_along_with_their_samples():
    split = Split(torch.arange(9).view(-1, 1, 1, 1), torch.arange(9) % 3, Origin("x", 10 * SHOWS))
    for part in (*hold_out(split, 3, seed=2), split.at(torch.tensor([8, 0]))):
        assert part.origin.name == "x"
        assert torch.equal(part.origin.numbers, 10 * SHOWS[part.images.flatten()])


def test_batches_bring_the_images_and_shards_share_them():
    """In any number of processes, and from any batch on, recording and image are the same."""
    images, events = numbered(train=30), recorded(SHOWS)
    pair = Paired(images, events)

    def beside(**more):
        return Accompanied(Batches(events.train, events, 16, **{"seed": 5, **more}), pair)

    alone = list(beside().epoch(1))
    assert len(alone) == len(beside())
    plain = list(Batches(events.train, events, 16, seed=5).epoch(1))
    for (x, y, shown), (u, v) in zip(alone, plain, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert torch.equal(read(shown) % 3, y)
    for skip in range(len(alone) + 1):
        rest = beside().epoch(1, skip)
        assert all(torch.equal(a[2], b[2]) for a, b in zip(rest, alone[skip:], strict=True))
    parts = [beside(shard=(rank, 3)).epoch(1) for rank in range(3)]
    for (_, _, whole), *shares in zip(alone, *parts, strict=True):
        for rank, (_, _, share) in enumerate(shares):
            assert torch.equal(whole[rank::3], share)
    other = list(beside(seed=6).epoch(1))
    assert not torch.equal(read(other[0][2]), read(alone[0][2]))


def test_a_run_remembers_its_pairs():
    """The sum of what stands beside what changes with the pairs, and with nothing else."""
    images, events = numbered(), recorded(SHOWS)
    found = [summed(events, Paired(*each)).hashes for each in (
        (images, events), (numbered(), recorded(SHOWS)), (numbered(train=40), events),
        (images, recorded(SHOWS.roll(3))),
    )]  # fmt: skip
    assert found[0] == found[1]
    assert {k: found[0][k] for k in events.hashes} == events.hashes
    assert len({each["paired"] for each in found}) == 3
    assert summed(events, None) is events


def test_nmnist_names_the_images_of_mnist(tmp_path):
    """File 00007 shows the seventh image; a name that is no number shows nobody knows what."""
    labels = np.arange(60) % 10
    pixels = np.zeros((60, 28, 28), np.uint8)
    pixels[:, 0, 0] = np.arange(60)
    write_idx(tmp_path, "MNIST", "train", pixels, labels)
    write_idx(tmp_path, "MNIST", "t10k", pixels + 100, labels)
    for number, label in enumerate(labels, 1):
        name = "odd" if number == 60 else f"{number:05d}"
        for part in ("Train", "Test"):
            place = tmp_path / "NMNIST" / part / str(label) / f"{name}.bin"
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_bin(place, files.random_events(20, seed=number))
    root, few = str(tmp_path), {"train": 50, "validation": 10}
    for spec in ({"kind": "mnist", **few}, {"kind": "mnist", "size": 34, "channels": 2, **few}):
        images = build("data", {**spec, "root": root, "seed": 3}, DATA)
        for more in ({}, {"train": 40, "validation": 10, "seed": 2, "frames": 2}):
            events = build("data", {"kind": "nmnist", "root": root, **more}, DATA)
            assert events.test.origin is None
            shown, known = events.train.origin.numbers, images.train.origin.numbers
            assert torch.equal(shown[shown >= 0] % 10, events.train.labels[shown >= 0])
            pair = Paired(images, events)
            there = torch.tensor([int(n) in known.tolist() for n in shown])
            assert torch.equal(pair.partner >= 0, there)
            assert torch.equal(known[pair.partner[there]], shown[there])
            assert 0 < pair.exact < len(events.train)


def test_real_recordings_look_like_their_own_digit(data_root):
    """Their image agrees more with the paired digit than with another of the class."""
    for name in ("NMNIST", "MNIST"):
        if not (data_root / name).is_dir():
            pytest.skip(f"no {name} at {data_root}")
    root = str(data_root)
    images = build("data", {"kind": "mnist", "root": root}, DATA)
    events = build("data", {"kind": "nmnist", "root": root, "train": 500}, DATA)
    pair = Paired(images, events)
    assert pair.exact > 0.8 * len(events.train)  # the others' images are held out as validation
    there = (pair.partner >= 0).nonzero()[:, 0]
    seen = events.train.images[there].float().sum((1, 2))
    drawn = pair.drawn(events.train.labels[there], torch.Generator().manual_seed(0))
    own, other = (
        agreement(seen, fitted(images.train.images[places].float(), 1, (34, 34))[:, 0])
        for places in (pair.partner[there], drawn)
    )
    assert float(own.mean()) > 0.7
    assert float((own - other).mean()) > 0.15
    assert float((own > other).float().mean()) > 0.9
    shown = pair.pictures(pair.chosen(there, events.train.labels[there]))
    assert torch.equal(shown, normalise(images.train.images[pair.partner[there]], images))


def agreement(a, b):
    """Correlation of pixels, image by image."""
    rows = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b)]
    return (rows[0] * rows[1]).sum(1) / (rows[0].norm(dim=1) * rows[1].norm(dim=1))
