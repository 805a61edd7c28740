"""Checks that need torch and a GPU; in a rehearsal a CPU will do."""

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from run import Failed, Place, Skipped, run_uad

from uad.data.batches import Batch, GoodImages
from uad.models import model_class
from uad.models.base import is_trained

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BACKBONE = "efficientnet_lite0"  # whose weights come with pip
FIRST = "stfpm"  # folder of the run that later checks go on from
SECOND = "reverse_distillation"


def training_to_the_criterion(place: Place) -> Dict[str, Any]:
    """uad fit: images a second, and how soon the criterion on held-out images is reached."""
    seconds = _seconds(lambda: run_uad("fit", *_first(place, place.work / FIRST)))
    rows = _table(place.work / FIRST)
    best = max(float(row["synthetic_auroc"]) for row in rows)
    if not all(math.isfinite(float(row["train_loss"])) for row in rows):
        raise Failed("the loss is not finite")
    reached = next(row for row in rows if float(row["synthetic_auroc"]) >= 0.98 * best)
    trained = float(rows[-1]["seconds"])
    return {
        "images_per_second": round(int(rows[-1]["step"]) * _batch(place) / trained, 1),
        "criterion": round(best, 4),
        "seconds_to_98_percent_of_it": float(reached["seconds"]),
        "seconds_of_training": trained,
        "seconds_in_all": seconds,
    }


def distillation(place: Place) -> Dict[str, Any]:
    """uad distill: images a second, the start included."""
    _require(place)
    steps, batch = place.either(60, 2), place.either(8, 2)
    flags = ["--steps", steps, "--batch-size", batch, "--image-size", place.size, "--weights", _weights(place)]
    teacher = place.work / "teacher.pth"
    seconds = _seconds(
        lambda: run_uad("distill", "--images", place.images, "--backbone", BACKBONE, *flags, "--out", teacher)
    )
    return {"images_per_second": round(steps * batch / seconds, 1), **_memory()}


def a_second_model(place: Place) -> Dict[str, Any]:
    """uad fit of Reverse Distillation, for its plans; a few steps."""
    flags = ["--config", CONFIGS / f"{SECOND}.yaml", "--model.bank", 0, *_settings(place, place.either(100, 12))]
    seconds = _seconds(lambda: run_uad("fit", *flags, "--out", place.work / SECOND))
    rows = _table(place.work / SECOND)
    rate = int(rows[-1]["step"]) * _batch(place) / float(rows[-1]["seconds"])
    return {"images_per_second": round(rate, 1), "seconds_in_all": seconds, **_memory()}


def quantization_aware_training(place: Place) -> Dict[str, Any]:
    """uad fit with configs/stfpm_qat.yaml, and its INT8 file, which uad check must pass."""
    start, out, file = place.needed(f"{FIRST}/model.ckpt"), place.work / "qat", place.work / "qat.onnx"
    steps = place.either(40, 2)
    flags = ["--config", CONFIGS / "stfpm_qat.yaml", "--ckpt", start, *_data(place)]
    seconds = _seconds(lambda: run_uad("fit", *flags, "--trainer.limit_train_batches", steps, "--out", out))
    run_uad("export", out / "model.ckpt", "--precision", "int8", "--out", file)
    run_uad("check", file, "--target", "jetson-xavier-nx")
    return {"steps": steps, "seconds_in_all": seconds, **_memory()}


def a_resumed_run(place: Place) -> Dict[str, Any]:
    """uad fit, killed and resumed, beside the run that was not."""
    place.needed(f"{FIRST}/model.ckpt")
    out = place.work / "killed"
    command = [sys.executable, "-m", "uad.cli", "fit", *map(str, _first(place, out))]
    with subprocess.Popen(command) as process:
        while process.poll() is None and not (out / "last.ckpt").exists():
            time.sleep(0.02)
        process.kill()
        if process.wait() == 0:
            raise Skipped("it was over before it could be killed")
    left = len(_table(out))
    run_uad("fit", "--resume", out)
    rows, whole = _table(out), _table(place.work / FIRST)
    if len(rows) != len(whole):
        raise Failed(f"it has {len(rows)} epochs, the run that was not killed {len(whole)}")
    losses = [float(each[-1]["val_loss"]) for each in (rows, whole)]
    apart = abs(losses[0] / losses[1] - 1)
    if apart > 0.01:
        raise Failed(f"it ends with the loss {losses[0]}, the run that was not killed with {losses[1]}")
    return {"epochs_before": left, "epochs": len(rows), "relative_difference_of_the_loss": apart, **_memory()}


def rates_of_a_step(place: Place) -> Dict[str, Any]:
    """Images a second and GPU memory of a training step: float32 and bf16, either memory layout, compiled or not."""
    device = _require(place)
    variants = [
        ("float32, channels_last", torch.float32, torch.channels_last, False),
        ("bf16, contiguous", torch.bfloat16, torch.contiguous_format, False),
        ("bf16, channels_last", torch.bfloat16, torch.channels_last, False),
        ("bf16, channels_last, compiled", torch.bfloat16, torch.channels_last, True),
    ]
    return {name: _rate(place, device, *variant) for name, *variant in variants}


def _rate(
    place: Place, device: torch.device, kind: torch.dtype, layout: torch.memory_format, is_compiled: bool
) -> Dict[str, Any]:
    torch.manual_seed(0)
    count, steps, warm = place.either(32, 2), place.either(30, 2), place.either(5, 1)
    image = torch.randint(0, 256, (count, place.size, place.size, 3), dtype=torch.uint8)
    label = torch.arange(count) % 2
    model = model_class("stfpm")(backbone="resnet18", weights="none").to(device)
    model.network.to(memory_format=layout)
    model.prepare(GoodImages(image, label, ["a", "b"]).on(device))
    model.train()
    backend = "eager" if place.is_rehearsal else "inductor"  # which needs a compiler
    loss: Callable[[Batch], torch.Tensor] = torch.compile(model.loss, backend=backend) if is_compiled else model.loss
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    batch = Batch(image.to(device), label.to(device))
    assert is_trained(model.network)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for index in range(warm + steps):
        if index == warm:
            _wait(on_gpu)
            start = time.perf_counter()
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    _wait(on_gpu)
    seconds = time.perf_counter() - start
    if not math.isfinite(float(value)):
        raise Failed(f"the loss is {float(value)}")
    return {"images_per_second": round(count * steps / seconds, 1), **_memory()}


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _require(place: Place) -> torch.device:
    """The device that trains.

    Raises:
        Skipped: there is no GPU, and this is no rehearsal.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if place.is_rehearsal:
        return torch.device("cpu")
    raise Skipped("torch sees no GPU")


def _first(place: Place, out: Path) -> List[Any]:
    steps = place.either(400, 30)
    return ["--config", CONFIGS / f"{FIRST}.yaml", "--model.bank", 0, *_settings(place, steps), "--out", out]


def _settings(place: Place, steps: int) -> List[Any]:
    _require(place)
    model = ["--model.backbone", BACKBONE, "--model.weights", _weights(place)]
    return [*model, *_data(place), "--trainer.max_steps", steps]


def _data(place: Place) -> List[Any]:
    return [
        *("--data.root", place.images, "--data.image_size", place.size, "--data.batch_size", _batch(place)),
        *("--trainer.accelerator", _require(place).type),
    ]


def _batch(place: Place) -> int:
    return place.either(32, 4)


def _weights(place: Place) -> str:
    return "none" if place.is_rehearsal else "imagenet"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 2)


def _memory() -> Dict[str, Any]:
    """The most GPU memory that tensors took in this process so far, MB."""
    return {"gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if torch.cuda.is_available() else {}


def _table(run: Path) -> List[Dict[str, str]]:
    with open(run / "train.csv", newline="") as file:
        return list(csv.DictReader(file))
