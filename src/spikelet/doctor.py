"""What is installed, what is fast here and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

CORE, ORACLES = "pip install spikelet", "pip install --no-deps -r requirements/oracles.txt"
# distribution -> (what it is for, the line that installs it)
PACKAGES: Mapping[str, tuple[str, str]] = {
    "torch": ("everything; see pytorch.org for the build of your hardware", "pip install torch"),
    "torchvision": ("vision data and models", "pip install torchvision"),
    "numpy": ("arrays", CORE),
    "safetensors": ("weights and checkpoints", CORE),
    "pydantic": ("recipes", CORE),
    "rich": ("progress and tables", CORE),
    "timm": ("models timm:NAME", "pip install 'spikelet[timm]'"),
    "scikit-learn": ("data set digits, demo", "pip install 'spikelet[demo]'"),
    "jinja2": ("the report", "pip install 'spikelet[report]'"),
    "matplotlib": ("the report", "pip install 'spikelet[report]'"),
    "tensorboard": ("--training.tensorboard", "pip install 'spikelet[tensorboard]'"),
    "lz4": ("event recordings in AEDAT 4", "pip install 'spikelet[events]'"),
    "zstandard": ("event recordings in AEDAT 4", "pip install 'spikelet[events]'"),
    "onnx": ("export", "pip install 'spikelet[export]'"),
    "onnxruntime": ("export", "pip install 'spikelet[export]'"),
    "nir": ("export", "pip install 'spikelet[export]'"),
    "spikingjelly": ("an oracle of the tests", ORACLES),
    "snntorch": ("an oracle of the tests", ORACLES),
    "neurobench": ("an oracle of the tests", ORACLES),
    "captum": ("an oracle of the tests", ORACLES),
}
# data set -> files under the root that show it is there
DATA: Mapping[str, tuple[str, ...]] = {
    "mnist": ("MNIST/raw/train-images-idx3-ubyte",),
    "fashion-mnist": ("FashionMNIST/raw/train-images-idx3-ubyte",),
    "cifar10": ("cifar-10-batches-py/data_batch_1", "data_batch_1"),
    "cifar100": ("cifar-100-python/train", "train"),
}
STEPS, BATCH, REPEATS = 4, 16, 3


def examine(data_root: Path | str | None = None, timed: bool = True) -> dict[str, Any]:
    """Everything the doctor looks at, as plain data for JSON; seconds are wall clock."""
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages(),
        "compiler": compiler(),
        "torch_error": torch_error(),
    }
    if report["torch_error"] is None:
        report |= {"devices": devices(), "data": data(data_root)}
        report |= {"torchvision_operators": torchvision_operators()}
        report["speed"] = speed() if timed else None
    report["missing"] = missing(report)
    return report


def packages() -> list[dict[str, Any]]:
    """Each package with its version, or null, and the line that installs it."""
    return [
        {"name": name, "version": _version(name), "use": use, "install": install}
        for name, (use, install) in PACKAGES.items()
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_error() -> str | None:
    """Why torch cannot be imported, or None where it can."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # a broken build fails in many ways
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def torchvision_operators() -> bool | None:
    """Whether torchvision's compiled operators load beside this torch; None without it."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    from spikelet.vision import torchvision

    return bool(torchvision().extension._has_ops())


def devices() -> list[dict[str, Any]]:
    """The processor and each accelerator: name, memory in GiB, threads, whether bf16 is native."""
    import torch

    found = [
        {
            "device": "cpu",
            "name": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "threads": torch.get_num_threads(),
            "bf16": _cpu_has_bf16(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = round(facts.total_memory / 2**30, 1)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        one = {"device": f"cuda:{index}", "name": facts.name, "memory_gib": memory, "bf16": bf16}
        found.append(one)
    return found


def _cpu_has_bf16() -> bool:
    """Whether the processor's own instructions multiply bf16."""
    import torch

    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known()) if known is not None else False


def data(root: Path | str | None) -> list[dict[str, Any]]:
    """Each data set of fixed files: where it was found, or how to get it."""
    from spikelet.data.dataset import data_root

    folder = data_root(root)
    digits = _version("scikit-learn")
    found: list[dict[str, Any]] = [
        {
            "name": "digits",
            "found": f"scikit-learn {digits}" if digits else None,
            "install": PACKAGES["scikit-learn"][1],
        }
    ]
    for name, files in DATA.items():
        place = next((folder / file for file in files if (folder / file).is_file()), None)
        fix = f"add --download to `spikelet teach --data {name}`, or copy it to {folder}"
        where = None if place is None else str(place.parent)
        found.append({"name": name, "found": where, "install": fix})
    return found


def speed() -> dict[str, Any]:
    """Best of a few training steps of small-cnn on the CPU: an ANN, and `rate` at T = 4."""
    import torch

    from spikelet.convert import convert
    from spikelet.distill import Distiller
    from spikelet.encode import Direct
    from spikelet.execute import ann, rate
    from spikelet.models import build_model
    from spikelet.terms import CrossEntropy

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    model = build_model("small-cnn", classes=10, channels=3, size=32, seed=0)
    student = convert(model, steps=STEPS, calibrate=images[:2])
    terms = {"ce": CrossEntropy()}
    networks = {
        "ann": Distiller(model, terms=terms, execute=ann, encode=Direct(1), example=images),
        "rate": Distiller(student, terms=terms, execute=rate, encode=Direct(STEPS), example=images),
    }
    steps = {name: _step(net, images, labels) for name, net in networks.items()}
    seconds = best_seconds(steps)
    ratio = seconds["rate"] / seconds["ann"]
    known = {"model": "small-cnn", "steps": STEPS, "batch": BATCH, "device": "cpu", "busy": busy()}
    return {**known, "seconds_ann": seconds["ann"], "seconds_rate": seconds["rate"], "ratio": ratio}


def busy() -> bool | None:
    """Whether others ask for more than half of the processor's cores; None where it is unknown."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1) + 1


def _step(distiller: Any, images: Any, labels: Any) -> Callable[[], None]:
    """Forward and backward of one batch."""

    def step() -> None:
        distiller.zero_grad(set_to_none=True)
        distiller(images, labels)[0].backward()

    return step


def best_seconds(
    works: Mapping[str, Callable[[], None]], repeats: int = REPEATS
) -> dict[str, float]:
    """The shortest of several runs of each, taken in turns after one to warm up, in seconds."""
    best = dict.fromkeys(works, math.inf)
    for repeat in range(repeats + 1):
        for name, work in works.items():
            then = time.perf_counter()
            work()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - then)
    return best


def missing(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is not there, what it is for and the line that brings it."""
    absent = [
        {"name": each["name"], "use": each["use"], "install": each["install"]}
        for each in report["packages"]
        if each["version"] is None
    ]
    install = PACKAGES["torch"][1]
    if report["torch_error"] is not None:
        absent.append(
            {"name": "a torch that works", "use": report["torch_error"], "install": install}
        )
    elif shutil.which("nvidia-smi") and len(report["devices"]) == 1:
        line = "the CUDA build that pytorch.org names for your driver"
        absent.append({"name": "a torch that sees the GPU", "use": "speed", "install": line})
    if report["compiler"] is None:
        line = "install g++ or clang, for example apt install g++"
        absent.append({"name": "C++ compiler", "use": "torch.compile on a CPU", "install": line})
    absent += [
        {"name": each["name"], "use": "data set", "install": each["install"]}
        for each in report.get("data", ())
        if each["found"] is None
    ]
    return absent


def show(console: Console, report: Mapping[str, Any]) -> None:
    """Print a report."""

    def say(name: str, text: str) -> None:
        console.print(f"{name:19}{text}", markup=False, highlight=False, soft_wrap=True)

    say("python", f"{report['python']} on {report['platform']}")
    for each in report["packages"]:
        if each["version"] is not None:
            say(each["name"], each["version"] + _remark(each["name"], report))
    for each in report.get("devices", ()):
        say(each["device"], _device_line(each))
    if report["compiler"] is not None:
        say("C++ compiler", f"{report['compiler']}, for torch.compile")
    for each in report.get("data", ()):
        if each["found"] is not None:
            say(f"data {each['name']}", each["found"])
    if report.get("speed"):
        say("speed", speed_line(report["speed"]))
    for each in report["missing"]:
        say("missing", f"{each['name']} ({each['use']}): {each['install']}")


def _remark(name: str, report: Mapping[str, Any]) -> str:
    if name != "torchvision" or report.get("torchvision_operators"):
        return ""
    return " (its compiled operators do not load beside this torch; spikelet does not need them)"


def _device_line(device: Mapping[str, Any]) -> str:
    """Name, memory or threads, and half precision of a device."""
    size = f"{device['threads']} threads" if "threads" in device else f"{device['memory_gib']} GiB"
    bf16 = "bf16 in hardware" if device["bf16"] else "no bf16 in hardware: --precision fp32"
    return f"{device['name']}, {size}, {bf16}"


def speed_line(speed: Mapping[str, Any]) -> str:
    """The timed check in one line."""
    caution = " (the machine is busy: measure again)" if speed["busy"] else ""
    return (
        f"one training step of {speed['model']}, batch {speed['batch']}: "
        f"ANN {1000 * speed['seconds_ann']:.0f} ms, "
        f"rate at T={speed['steps']} {1000 * speed['seconds_rate']:.0f} ms, "
        f"{speed['ratio']:.2f} times the ANN{caution}"
    )
