"""Training: a model learns from an image folder, is fitted to good images, and becomes a checkpoint with thresholds."""

import logging
import math
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from engines.errors import UadWarning, UserError
from engines.files import write_json
from engines.images import RESIZE_RULE
from engines.metadata import MOST_PIXELS, OUTPUTS, ModelInfo
from uad.data.batches import BATCH, GoodImages
from uad.data.cache import kept_targets, key_of
from uad.data.folder import Sample, test_samples
from uad.data.module import AnomalyData
from uad.errors import TrainingError
from uad.evaluation.evaluate import evaluate
from uad.evaluation.thresholds import limits_at, rates_of_few, threshold_at, thresholds_at
from uad.models.backbones import load_safely
from uad.models.base import Model
from uad.progress import progress
from uad.training.callbacks import Checkpoints, EpochTable, SeededSteps, SyntheticAuroc, TimeToGo, rows_until
from uad.training.checkpoint import save_checkpoint, write_tensors
from uad.training.precision import whole_float32
from uad.training.run import BEST, LAST, MODEL, TARGETS, Record, begin, check_images, images_of
from uad.training.settings import Setup
from uad.training.torch_engine import TorchEngine

FEWEST_EPOCHS, MOST_EPOCHS = 3, 100  # where the steps of a model decide: of many images, and of few
CLASSES_OF_STEPS = 4  # for which a model's steps are enough


def train(setup: Setup, folder: Path, false_positive_rate: float, settings: Dict[str, Any]) -> Record:
    """Train a model from the start.

    Args:
        setup: what trains.
        folder: of the run, see `uad.training.run.place_for`.
        false_positive_rate: part of the held-out good images that may score above their threshold.
        settings: for config.yaml; plain values. Where no length is given, the epochs that are chosen are put in.

    Raises:
        UserError: bad data, settings that do not go together, or a loss that is not a number.
    """
    model, data = setup.model, setup.data
    _check_size(model, data)
    data.check()
    learns = model.steps > 0
    if not learns and not has_no_length(setup):
        text = "this model takes no steps: max_epochs, max_steps and max_time of --trainer change nothing"
        warnings.warn(text, UadWarning, stacklevel=2)
    if learns and has_no_length(setup):
        settings["trainer"]["max_epochs"] = setup.trainer.fit_loop.max_epochs = epochs_of(setup)
    record = Record(settings, images_of(data))
    begin(folder, record)
    model.take_size(*data.size)
    model.to(device_of(setup))
    with whole_float32():
        model.prepare(data.some_for_training(model.images_of_each_class, "Preparing").on(model.device))
    is_quantized = model.quantization is not None
    # With no epoch of quantization-aware training, the quantizers are all that is wanted.
    if learns and not (is_quantized and setup.trainer.max_epochs == 0):
        _keep_targets(setup, folder, record)
        _learn(setup, folder, EpochTable(folder / "train.csv", data.class_names, []), keep_start=is_quantized)
    finish(model.to(device_of(setup)), data, false_positive_rate, folder)
    return record


def go_on(setup: Setup, folder: Path, false_positive_rate: float, settings: Dict[str, Any], record: Record) -> Record:
    """Train a model from last.ckpt of a run that was stopped; see `train`.

    Args:
        setup: what trains.
        folder: of the run, see `uad.training.run.place_of`.
        false_positive_rate: as in `train`.
        settings: as in `train`; some may have changed, see `uad.training.run.MAY_CHANGE`.
        record: of the run, as it is.

    Raises:
        UserError: as `train`, or the images are others.
    """
    model, data = setup.model, setup.data
    data.check()
    check_images(folder, record.images, images_of(data))
    record = Record(settings, record.images)
    record.write(folder)
    last = load_safely(folder / LAST)
    rows = rows_until(folder / "train.csv", data.class_names, last)
    model.take_size(*data.size)
    if model.quantization is None:  # the teacher's scale is known from here on
        model.load_state_dict(last["state_dict"])
    _keep_targets(setup, folder, record)
    _learn(setup, folder, EpochTable(folder / "train.csv", data.class_names, rows), resume=True)
    finish(model.to(device_of(setup)), data, false_positive_rate, folder)
    return record


def device_of(setup: Setup) -> torch.device:
    """Where the model trains, is prepared and is tested."""
    return setup.trainer.strategy.root_device


def _check_size(model: Model, data: AnomalyData) -> None:
    multiple = model.image_multiple
    if any(side % multiple or not 2 * multiple <= side <= MOST_PIXELS for side in data.size):
        wanted = f"multiples of {multiple}, from {2 * multiple} to {MOST_PIXELS}"
        raise UserError(f"--data.image_size {data.image_size}: this model takes {wanted}")


def has_no_length(setup: Setup) -> bool:
    """Whether the settings leave open how long it trains."""
    trainer = setup.trainer
    return trainer.max_epochs == -1 and trainer.max_steps == -1 and setup.resolved["trainer"]["max_time"] is None


def epochs_of(setup: Setup) -> int:
    """The epochs that come next to the steps of the model, within bounds; more classes take as many more steps."""
    model, trainer = setup.model, setup.trainer
    batches, limit = len(setup.data.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    classes = len(setup.data.class_names)
    wanted = model.steps * max(1.0, classes / CLASSES_OF_STEPS)
    epochs = min(max(round(wanted / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    print(f"training takes {epochs} epochs of {steps} steps: {epochs * steps} steps for {classes} classes")
    return epochs


def _keep_targets(setup: Setup, folder: Path, record: Record) -> None:
    """Compute what is to be learned once, where more than one epoch learns it."""
    model, data = setup.model, setup.data
    model.to(device_of(setup))

    def targets(image: Tensor) -> List[Tensor]:
        return model.targets(image.to(model.device))

    if setup.trainer.max_epochs == 1 or not targets(data.images[:1]):
        return
    key = key_of(record.images, data.size, model.frozen())
    data.targets = kept_targets(targets, data.images, folder / TARGETS, key)


def _learn(setup: Setup, folder: Path, table: EpochTable, keep_start: bool = False, resume: bool = False) -> None:
    """Train, and take the weights of the best epoch, or with `keep_start` those from before if they were better.

    Raises:
        TrainingError: there was no epoch.
    """
    model, data, trainer = setup.model, setup.data, setup.trainer
    data.draws, data.order_seed = model.restores, setup.seed
    checkpoints = Checkpoints(folder)
    trainer.callbacks[:0] = [SyntheticAuroc(data.held_out_good("")), SeededSteps(setup.seed)]  # type: ignore[attr-defined]
    if keep_start:
        (before,) = trainer.validate(model, datamodule=data, verbose=False)
        checkpoints.best = before["val_loss"]
        write_tensors(folder / BEST, {"epoch": -1, "state_dict": model.state_dict()})
    # The table is written first: a row is there for every epoch that last.ckpt knows of.
    trainer.callbacks += [table, checkpoints, TimeToGo()]  # type: ignore[attr-defined]
    _run_trainer(setup, str(folder / LAST) if resume else None)
    if checkpoints.best is None or not (folder / LAST).exists():
        raise TrainingError("no epoch was trained to its end and validated: give --trainer more epochs, steps or time")
    best = load_safely(folder / BEST)
    if best["epoch"] < 0:
        print("training did not help: the weights from before it are kept")
    elif keep_start:
        print(f"val_loss {before['val_loss']:.4g} before training, {checkpoints.best:.4g} after")
    for name, (top, kept) in table.fallen(best["epoch"]).items():
        text = f"{name} was learned better in an earlier epoch: its synthetic_auroc fell from {top:.2f} to {kept:.2f}"
        warnings.warn(f"{text} (train.csv)", UadWarning, stacklevel=2)
    model.load_state_dict(best["state_dict"])


def _run_trainer(setup: Setup, last: Optional[str]) -> None:
    """Run Lightning's training loop.

    Raises:
        KeyboardInterrupt: the user stopped it; Lightning itself would leave without a word.
        UserError: the settings do not go together.
    """
    try:
        setup.trainer.fit(setup.model, datamodule=setup.data, ckpt_path=last, weights_only=True)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


def finish(model: Model, data: AnomalyData, false_positive_rate: float, folder: Path) -> None:
    """Fit the read-out to good images, choose thresholds, write model.ckpt and metrics.json; on the model's device."""
    model.eval()
    device = model.device
    held_out = data.held_out_good("Choosing thresholds").on(device)
    of_readout = of_thresholds = list(range(len(held_out.label)))
    if model.fits_readout_to_held_out:
        of_readout, of_thresholds = held_out.halves()
    training = data.some_for_training(model.images_of_each_class, "Fitting the read-out").on(device)
    with whole_float32():
        model.fit_readout(training, held_out.at(of_readout))
    held_out = held_out.at(of_thresholds)
    height, width = data.size
    info = ModelInfo(
        **model.description,
        **chosen_on(model, held_out, held_out.classes, false_positive_rate),
        classes=held_out.classes,
        false_positive_rate=false_positive_rate,
        held_out=data.held_out_digests(of_thresholds),
        images=counts_of(training),
        depths=data.depths,
        height=height,
        width=width,
        resize=RESIZE_RULE,
        versions={name: version(name) for name in ("torch", "torchvision", "lightning")},
    )
    samples = test_samples(data.root, held_out.classes)  # a class that came while it trained is none of its own
    write_model(model, info, samples, folder)


def counts_of(good: GoodImages) -> Dict[str, int]:
    """How many images there are of each class."""
    return {name: int((good.label == index).sum()) for index, name in enumerate(good.classes)}


def chosen_on(model: Model, held_out: GoodImages, known: Sequence[str], false_positive_rate: float) -> "Dict[str, Any]":
    """What `ModelInfo` says of held-out good images: outputs, thresholds and limits of their classes, threshold.

    Few images, and images that are seen as another class, are told.

    Args:
        model: whose network is ready.
        held_out: the images.
        known: the classes of the network, by index.
        false_positive_rate: part of the images that may lie above their threshold.
    """
    with whole_float32(), torch.inference_mode():
        judged = zip(*(model.network(batch.image) for batch in held_out))
        outputs = dict(zip(OUTPUTS, (torch.cat(each).cpu().numpy() for each in judged)))
    names = [held_out.classes[label] for label in held_out.label]
    seen_as = [known[index] for index in outputs["class_index"]] if "class_index" in outputs else names
    others = Counter((name, seen) for name, seen in zip(names, seen_as) if name != seen)
    if others:
        told = ", ".join(f"{count} of {names.count(name)} {name} as {seen}" for (name, seen), count in others.items())
        warnings.warn(f"held-out good images are seen as another class: {told}", UadWarning, stacklevel=3)
    few = rates_of_few(Counter(names), false_positive_rate)
    if few:
        warnings.warn(few, UadWarning, stacklevel=3)
    limits: Dict[str, float] = {}
    if "class_distance" in outputs:
        right = [index for index, name in enumerate(names) if seen_as[index] == name]
        limits = limits_at(outputs["class_distance"][right], [names[index] for index in right], held_out.classes)
    return {
        "outputs": list(outputs),
        "thresholds": thresholds_at(outputs["score"], names, false_positive_rate),
        "threshold": threshold_at(outputs["score"], false_positive_rate),
        "limits": limits,
    }


def write_model(model: Model, info: ModelInfo, samples: Sequence[Sample], folder: Path) -> None:
    """Write model.ckpt, and what it makes of test images to metrics.json; on the model's device."""
    device, path = model.device, folder / MODEL
    save_checkpoint(path, model.cpu().state_to_save(), model.config, info, model.quantization)
    with progress("Testing", len(samples)) as step:
        engine = TorchEngine(path, batch=BATCH, device=device)
        report = evaluate(engine, samples, progress=step).report
    write_json(folder / "metrics.json", report)


def quieten() -> None:
    """Remarks of Lightning that do not concern a user of uad."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # images are in memory: workers would only copy them
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",  # the teacher, on purpose
        ".*logger=True. will use .CSVLogger.*",
        ".*smaller than the logging interval.*",
        ".*treespec, LeafSpec.*",  # torch's own, from inside Lightning
    ):
        warnings.filterwarnings("ignore", message)
