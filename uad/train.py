"""`uad fit`: Lightning's command line around one model and one image folder.

With --ckpt RUN/model.ckpt it goes on from a trained model, under fake quantization (`uad.quantization`).

RUN/config.yaml    every setting, as resolved
RUN/train.csv      losses of each epoch
RUN/last.ckpt      Lightning's own, after each epoch: what `uad fit --resume RUN` goes on from
RUN/best.ckpt      the same, of the epoch with the least loss on held-out good images
RUN/model.ckpt     the trained model: from the best epoch, with thresholds
RUN/metrics.json   its accuracy on the test images; null where there are none
"""

import copy
import csv
import json
import logging
import math
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentError
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from engines.errors import UserError
from engines.files import make_folder, replacing
from engines.images import RESIZE_RULE
from engines.metadata import ModelInfo
from uad.checkpoint import TorchEngine, save_checkpoint
from uad.data.folder import draw, test_samples
from uad.data.module import AnomalyData
from uad.errors import TrainingError
from uad.evaluate import evaluate
from uad.metrics import threshold_at
from uad.models.backbones import load_safely
from uad.models.stfpm import STFPM
from uad.progress import progress

if TYPE_CHECKING:
    from uad.quantization import QuantizationAware

Model = Union[STFPM, "QuantizationAware"]
EVALUATION_BATCH = 16
DESCRIPTION = (
    "Train one model on good images of all the parts; uad fit --ckpt RUN/model.ckpt fine-tunes a trained one under "
    "fake quantization; uad fit --resume RUN goes on with a stopped run."
)
TRAINER_DEFAULTS = {
    "max_epochs": 6,
    "logger": False,
    "deterministic": True,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": False,  # `fit` adds its own, which needs the output folder
}


class FitCLI(LightningCLI):
    """LightningCLI with the output folder and the rule for thresholds."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=Path, required=True, help="folder of the run, made if needed")
        parser.add_argument(
            "--false_positive_rate",
            type=float,
            default=0.05,
            help="part of the held-out good images that may score above their threshold",
        )


def fit(arguments: Sequence[str]) -> Path:
    """Train a model as the command line says; returns the path of model.ckpt.

    Raises:
        UserError: bad settings, bad data, or a loss that is not a number.
    """
    _quieten()
    arguments, resume = _resume(list(arguments))
    arguments, quantize = _from_checkpoint(arguments)
    try:
        cli = FitCLI(
            _quantization_aware() if quantize else STFPM,
            AnomalyData,
            run=False,
            args=arguments,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, "prog": "uad fit", "description": DESCRIPTION},
        )
    except (ArgumentError, MisconfigurationException) as error:
        raise UserError(f"{error} (see uad fit --help)") from error
    rate = cli.config.false_positive_rate
    if not 0 <= rate < 1:
        raise UserError(f"--false_positive_rate {rate}: give a part of the good images, at least 0 and less than 1")
    cli.datamodule.check()
    if quantize:
        _check_start(cli)
    out = make_folder(cli.config.out)
    if resume:
        _keep_rows(out / "train.csv", load_safely(out / "last.ckpt"))
    else:
        for name in ("best.ckpt", "last.ckpt", "model.ckpt", "metrics.json", "train.csv"):
            (out / name).unlink(missing_ok=True)
        with replacing(out / "config.yaml") as temporary:
            cli.parser.save(cli.config, str(temporary), overwrite=True)
        cli.model.prepare(images for images, _ in _some_of_each_class(cli.datamodule, cli.model, "Preparing"))
    if not (quantize and cli.trainer.max_epochs == 0):  # then the quantizers are all that is wanted
        _train(cli, out, resume, keep_start=quantize and not resume)
    model = finish(cli.model, cli.datamodule, rate, out)
    print(f"{model} is ready")
    return model


def _train(cli: FitCLI, out: Path, resume: bool, keep_start: bool) -> None:
    """Train, and take the weights of the best epoch, or with `keep_start` those from before if they were better.

    Raises:
        TrainingError: there was no epoch.
    """
    best = _checkpoint(out, "best", "val_loss")
    if keep_start:
        start = copy.deepcopy(cli.model.state_dict())
        (before,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    # The table is written first: a row is there for every epoch that last.ckpt knows of.
    cli.trainer.callbacks += [EpochTable(out / "train.csv"), best, _checkpoint(out, "last", None)]  # type: ignore[attr-defined]
    _run_trainer(cli, str(out / "last.ckpt") if resume else None)
    if not best.best_model_path:
        raise TrainingError("no epoch was trained: give --trainer.max_epochs at least 1")
    if keep_start:
        assert best.best_model_score is not None  # there is a best_model_path
        after = float(best.best_model_score)
        print(f"val_loss {before['val_loss']:.4g} before training, {after:.4g} after")
        if not after < before["val_loss"]:
            print("training did not help: the weights from before it are kept")
            cli.model.load_state_dict(start)
            return
    cli.model.load_state_dict(load_safely(out / "best.ckpt")["state_dict"])


def _checkpoint(out: Path, name: str, monitor: Optional[str]) -> ModelCheckpoint:
    """Keeps one checkpoint: of the epoch with the least `monitor`, or of the newest where that is None."""
    return ModelCheckpoint(
        out, filename=name, monitor=monitor, save_on_train_epoch_end=True, enable_version_counter=False
    )


def _run_trainer(cli: FitCLI, last: Optional[str]) -> None:
    """Run Lightning's training loop.

    Raises:
        KeyboardInterrupt: the user stopped it; Lightning itself would leave without a word.
        UserError: the settings do not go together.
    """
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=last, weights_only=True)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


def finish(model: Model, data: AnomalyData, false_positive_rate: float, out: Path) -> Path:
    """Fit the head to good images, choose thresholds, write model.ckpt and metrics.json."""
    model.cpu().eval()
    if isinstance(model, STFPM):  # otherwise it was fitted before, in float
        model.calibrate(_some_of_each_class(data, model, "Fitting the distance head"), len(data.class_names()))
    scores = _scores(model, data.held_out_images)
    names = [sample.class_name for sample in data.held_out_samples]
    info = ModelInfo(
        **model.description,
        classes=data.class_names(),
        thresholds={
            name: threshold_at(scores[[other == name for other in names]], false_positive_rate)
            for name in data.class_names()
        },
        threshold=threshold_at(scores, false_positive_rate),
        threshold_rule=f"at most {false_positive_rate:.1%} of the held-out good images score above it",
        height=data.image_size,
        width=data.image_size,
        resize=RESIZE_RULE,
        versions={name: version(name) for name in ("torch", "torchvision", "lightning")},
    )
    path = out / "model.ckpt"
    if isinstance(model, STFPM):
        save_checkpoint(path, model.network.state_dict(), model.config, info)
    else:
        save_checkpoint(path, model.float_state(), model.config, info, model.quantization)
    samples = test_samples(data.root, data.classes)
    with progress("Testing", len(samples)) as step:
        report = evaluate(TorchEngine(path, batch=EVALUATION_BATCH), samples, progress=step).report
    with replacing(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


class EpochTable(Callback):
    """Writes a row of train.csv after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row: Dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "train_loss": float(trainer.callback_metrics.get("train_loss", math.nan)),
            "val_loss": float(trainer.callback_metrics.get("val_loss", math.nan)),
            "seconds": round(time.perf_counter() - self.start, 1),
        }
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)


def _resume(arguments: List[str]) -> Tuple[List[str], bool]:
    """Turn `--resume RUN` into the settings of that run."""
    if "--resume" not in arguments:
        return arguments, False
    place = arguments.index("--resume")
    if place + 1 == len(arguments):
        raise UserError("--resume needs the folder of a run")
    run = Path(arguments[place + 1])
    for name in ("config.yaml", "last.ckpt"):
        if not (run / name).is_file():
            raise UserError(f"{run} has no {name}: --resume needs the folder of a run that finished an epoch")
    rest = arguments[:place] + arguments[place + 2 :]
    if rest:
        raise UserError(f"{run} goes on with its own settings: leave out {' '.join(rest)}, or start a new run")
    return ["--config", str(run / "config.yaml"), "--out", str(run)], True


def _from_checkpoint(arguments: List[str]) -> Tuple[List[str], bool]:
    """Whether training is to start from a checkpoint; `--ckpt FILE` is short for `--model.ckpt FILE`."""
    short = [("--model.ckpt" + given[6:]) if given.split("=")[0] == "--ckpt" else given for given in arguments]
    files = [Path(value) for flag, value in zip(short, short[1:]) if flag in ("-c", "--config")]
    files += [Path(given.split("=", 1)[1]) for given in short if given.startswith(("-c=", "--config="))]
    models = [_settings(file).get("model") for file in files]
    in_file = any(isinstance(model, dict) and "ckpt" in model for model in models)
    return short, in_file or any(given.split("=")[0] == "--model.ckpt" for given in short)


def _check_start(cli: FitCLI) -> None:
    """Check that the checkpoint to start from fits the data and the output.

    Raises:
        UserError: it is of other classes or another image size, or would be overwritten.
    """
    data, info, ckpt = cli.datamodule, cli.model.start, Path(cli.model.ckpt)
    if data.class_names() != info.classes:
        raise UserError(
            f"{ckpt} was trained on {', '.join(info.classes)}, {data.root} holds {', '.join(data.class_names())}: "
            "give the data it was trained on"
        )
    if (data.image_size, data.image_size) != info.size:
        raise UserError(f"{ckpt} takes images of {info.height} pixels: give --data.image_size {info.height}")
    if ckpt.resolve() == (cli.config.out / "model.ckpt").resolve():
        raise UserError(f"--out {cli.config.out} is the run of {ckpt}: give another folder")


def _settings(file: Path) -> Dict[str, Any]:
    """What a configuration file says; nothing where it cannot be read, of which the parser will complain."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _quantization_aware() -> Type[LightningModule]:
    """Imported only where it is used: pytorch-quantization takes its time."""
    from uad.quantization import QuantizationAware

    return QuantizationAware


def _keep_rows(table: Path, last: Dict[str, Any]) -> None:
    """Drop the rows of epochs that come after the checkpoint; they will be trained again."""
    with open(table, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    with replacing(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= last["epoch"])])


def _some_of_each_class(data: AnomalyData, model: Model, title: str) -> Iterator[Tuple[Tensor, Tensor]]:
    """Batches of training images and class indices, at most `model.images_of_each_class` of a class."""
    names = data.class_names()
    place = {sample: index for index, sample in enumerate(data.training_samples)}
    chosen = [
        place[sample]
        for name in names
        for sample in draw(
            [s for s in data.training_samples if s.class_name == name], model.images_of_each_class, data.seed
        )
    ]
    labels = torch.tensor([names.index(data.training_samples[index].class_name) for index in chosen])
    with progress(title, len(chosen)) as step:
        for part, label in zip(_batches(torch.tensor(chosen)), _batches(labels)):
            yield data.training_images[part], label
            for _ in part:
                step()


def _batches(tensor: Tensor) -> Sequence[Tensor]:
    return torch.split(tensor, EVALUATION_BATCH)


@torch.inference_mode()
def _scores(model: Model, images: Tensor) -> np.ndarray:
    return np.concatenate([model.network(batch)[0].numpy() for batch in _batches(images)])


def _quieten() -> None:
    """Remarks of Lightning that do not concern a user of uad."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # images are in memory: workers would only copy them
        ".*args parameter is intended to run from within Python.*",
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",  # the teacher, on purpose
        ".*treespec, LeafSpec.*",  # torch's own, from inside Lightning
    ):
        warnings.filterwarnings("ignore", message)
