"""Classes added to a trained model, given more images, and removed, without a training.

A model with a bank knows a class by patches and statistics of its good images. Those of a new class stand behind those
of the others, which stay as they are, to the last bit. A student is not trained on the new class: its distances are
only put on the scale that they have there.
"""

import dataclasses
from pathlib import Path
from typing import Any, Dict, Tuple

import torch

from engines.errors import UserError
from engines.metadata import ModelInfo
from export.classes import BANK, Arrays, mixed, of_classes, rows, together
from uad.data.batches import GoodImages
from uad.data.folder import test_samples
from uad.data.module import AnomalyData
from uad.errors import CheckpointError
from uad.models import model_class
from uad.models.base import Model
from uad.training.checkpoint import Checkpoint, load_checkpoint
from uad.training.fit import chosen_on, counts_of, write_model
from uad.training.precision import whole_float32
from uad.training.run import Record, begin, images_of
from uad.training.settings import set_up_data


def add_class(ckpt: Path, name: str, settings: Dict[str, Any], folder: Path) -> Record:
    """Add a class to a trained model.

    Args:
        ckpt: model.ckpt of a run with a bank.
        name: of the class, a folder of the data.
        settings: of the data, as in `uad.training.settings`; its size is that of the model.
        folder: of the new run, see `uad.training.run.place_for`.

    Raises:
        UserError: the checkpoint has no bank or knows the class, or the data cannot serve.
    """
    start = load_checkpoint(ckpt)
    info = start.info
    if name in info.classes:
        raise UserError(f"--add-class {name}: {ckpt} knows it already")
    data, record = _begun(start, ckpt, settings, folder, add_class=name)
    model, alone = _model(start), _model(start)
    training, held_out = _fitted(alone, data)
    _load(model, together(_arrays(model), _arrays(alone)))
    chosen = chosen_on(model, held_out, [*info.classes, name], info.false_positive_rate)
    added = dataclasses.replace(
        info,
        classes=[*info.classes, name],
        thresholds={**info.thresholds, **chosen["thresholds"]},
        limits={**info.limits, **chosen["limits"]},
        held_out={**info.held_out, **data.held_out_digests()},
        depths={**info.depths, **data.depths},
        images={**info.images, **counts_of(training)},
        made_from=info.made_from or info.checkpoint_sha256,
    )
    write_model(model, added, test_samples(data.root, [name]), folder)
    return record


def add_images(ckpt: Path, name: str, settings: Dict[str, Any], folder: Path) -> Record:
    """Add good images to a class of a trained model.

    Patches are chosen among those of the class and those of the new images; statistics are mixed by the numbers of
    images. Threshold and limit of the class rise where the new images ask for it.

    Args:
        ckpt: model.ckpt of a run with a bank.
        name: of the class, a folder of the data.
        settings: of the data; see `add_class`.
        folder: of the new run.

    Raises:
        UserError: the checkpoint has no bank or does not know the class, or the data cannot serve.
    """
    start = load_checkpoint(ckpt)
    info = start.info
    _check_known(info, name, ckpt, "--add-images")
    if name not in info.images:
        raise CheckpointError(
            f"{ckpt} does not say on how many images it rests: it is of an earlier commit, train again"
        )
    data, record = _begun(start, ckpt, settings, folder, add_images=name)
    again = [path for path in data.held_out_digests()[name] if path in info.held_out[name]]
    if again:
        raise UserError(f"{len(again)} images of {data.root} are known to {ckpt} already: give new ones alone")
    model, alone = _model(start), _model(start)
    place = info.classes.index(name)
    bank: Any = alone.network.get_submodule("head.bank")
    bank.known = bank.patches[place]
    training, held_out = _fitted(alone, data)
    count = counts_of(training)[name]
    _load(model, mixed(_arrays(model), place, _arrays(alone), count / (info.images[name] + count)))
    chosen = chosen_on(model, held_out, info.classes, info.false_positive_rate)

    def risen(values: Dict[str, float], new: Dict[str, float]) -> Dict[str, float]:
        return {**values, name: max(values[name], new[name])}

    grown = dataclasses.replace(
        info,
        thresholds=risen(info.thresholds, chosen["thresholds"]),
        limits=risen(info.limits, chosen["limits"]),
        held_out={**info.held_out, name: [*info.held_out[name], *data.held_out_digests()[name]]},
        images={**info.images, name: info.images[name] + count},
        made_from=info.made_from or info.checkpoint_sha256,
    )
    write_model(model, grown, test_samples(data.root, [name]), folder)
    return record


def remove_class(ckpt: Path, name: str, folder: Path) -> Record:
    """Remove a class from a trained model.

    Args:
        ckpt: model.ckpt of a run.
        name: of the class.
        folder: of the new run.

    Raises:
        UserError: the checkpoint does not know the class, or knows no other.
    """
    start = load_checkpoint(ckpt)
    info = start.info
    _check_known(info, name, ckpt, "--remove-class")
    if len(info.classes) == 1:
        raise UserError(f"--remove-class {name}: {ckpt} knows no other")
    _check_float(start, ckpt)
    record = Record({"ckpt": str(ckpt.absolute()), "remove_class": name}, {})
    begin(folder, record)
    model = _model(start)
    _load(model, rows(_arrays(model), [index for index, each in enumerate(info.classes) if each != name]))

    def others(values: Dict[str, Any]) -> Dict[str, Any]:
        return {each: value for each, value in values.items() if each != name}

    left = dataclasses.replace(
        info,
        classes=[each for each in info.classes if each != name],
        thresholds=others(info.thresholds),
        limits=others(info.limits),
        held_out=others(info.held_out),
        depths=others(info.depths),
        images=others(info.images),
        made_from=info.made_from or info.checkpoint_sha256,
    )
    write_model(model, left, [], folder)
    return record


def _begun(
    start: Checkpoint, ckpt: Path, settings: Dict[str, Any], folder: Path, **change: str
) -> Tuple[AnomalyData, Record]:
    """The checked images of a class, of the model's size, and the record of the run, which is written."""
    ((flag, name),) = change.items()
    for setting in ("classes", "image_size"):
        if setting in settings:
            raise UserError(f"--data.{setting}: leave it out, --{flag.replace('_', '-')} and the model say it")
    _check_bank(start, ckpt)
    data = set_up_data({**settings, "classes": [name], "image_size": list(start.info.size)})
    data.check()
    given = {**settings, "root": str(data.root.absolute())}
    record = Record({"ckpt": str(ckpt.absolute()), **change, "data": given}, images_of(data))
    begin(folder, record)
    return data, record


def _fitted(alone: Model, data: AnomalyData) -> Tuple[GoodImages, GoodImages]:
    """Fit a model to one class, and give its training and held-out images."""
    training = data.some_for_training(alone.images_of_each_class, "Fitting the class").on(alone.device)
    held_out = data.held_out_good("Choosing thresholds").on(alone.device)
    with whole_float32():
        alone.fit_readout(training, held_out)
    return training, held_out


def _check_known(info: ModelInfo, name: str, ckpt: Path, flag: str) -> None:
    if name not in info.classes:
        raise UserError(f"{flag} {name}: {ckpt} knows {', '.join(info.classes)}")


def _check_float(start: Checkpoint, ckpt: Path) -> None:
    if start.quantization is not None:
        raise CheckpointError(f"{ckpt} was trained under fake quantization: give the float run that it came from")


def _check_bank(start: Checkpoint, ckpt: Path) -> None:
    _check_float(start, ckpt)
    if BANK not in start.network.state_dict():
        raise CheckpointError(f"{ckpt} has no bank, so a class needs a training: uad fit --model.bank 4000")


def _model(start: Checkpoint) -> Model:
    """The trained model, on the device that it is to compute on."""
    model = model_class(start.info.model).from_config(start.config)
    model.take_size(*start.info.size)
    model.network.load_state_dict(start.network.state_dict())
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _arrays(model: Model) -> Arrays:
    """What the head knows."""
    return {name: value.cpu().numpy() for name, value in model.network.state_dict().items() if name.startswith("head.")}


def _load(model: Model, of_each_class: Arrays) -> None:
    """Take other rows."""
    state = model.network.state_dict()
    assert set(of_each_class) == set(of_classes(state))
    model.network.load_state_dict({**state, **{name: torch.from_numpy(value) for name, value in of_each_class.items()}})
