"""uad.training.settings: what is given is what trains, and a mistake is named as it was given."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from engines.errors import UserError  # noqa: E402
from uad.training.settings import set_up  # noqa: E402

MODEL = {"weights": "none", "backbone": "mobilenet_v2"}


def trainer_setting(monkeypatch: pytest.MonkeyPatch, value: Any) -> Any:
    """A setting of the trainer as it was set up, where the check makes floats of integers."""
    from jsonargparse import ArgumentParser

    whole = ArgumentParser.parse_object

    def parse(self: Any, content: Any) -> Any:
        checked = whole(self, content)
        checked["trainer.limit_train_batches"] = float(content["trainer"]["limit_train_batches"])
        return checked

    monkeypatch.setattr(ArgumentParser, "parse_object", parse)
    setup = set_up(
        MODEL, {"root": "images"}, {"limit_train_batches": value, "accelerator": "cpu"}, None, 0, Path("run")
    )
    assert setup.trainer.limit_train_batches == value
    return setup.resolved["trainer"]["limit_train_batches"]


@pytest.mark.parametrize("value", [1, 1.0])
def test_one_batch_stays_one_and_all_batches_stay_all(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    assert type(trainer_setting(monkeypatch, value)) is type(value)


def test_the_resolved_settings_name_the_model_and_hold_every_default() -> None:
    setup = set_up(MODEL, {"root": "images", "image_size": [64, 96]}, {"accelerator": "cpu"}, None, 0, Path("run"))
    assert setup.resolved["model"]["name"] == "stfpm" and setup.resolved["model"]["readout"] == "regional"
    assert setup.data.size == (64, 96) and setup.resolved["trainer"]["max_epochs"] is None


@pytest.mark.parametrize(
    ("group", "settings", "said"),
    [
        ("model", {"name": "vit"}, "unknown model 'vit': choose one of stfpm"),
        ("model", {"name": {"lr": 1}}, "give the name of a model"),
        ("model", {"depth": 3}, "--model.depth is no setting of STFPM"),
        ("model", {"lr": "fast"}, "model.lr"),
        ("data", {"rot": "images"}, "--data.rot is no setting of AnomalyData"),
        ("data", {"image_size": [64]}, "image_size"),
        ("trainer", {"epochs": 3}, "--trainer.epochs is no setting of Trainer"),
        ("trainer", {"max_epochs": "many"}, "max_epochs"),
        ("trainer", {"callbacks": {"class_path": "os.system", "init_args": {"command": "true"}}}, "callbacks"),
    ],
)
def test_a_mistake_is_named(group: str, settings: "dict[str, Any]", said: str) -> None:
    given: dict[str, dict[str, Any]] = {"model": dict(MODEL), "data": {"root": Path("images")}, "trainer": {}}
    given[group].update(settings)
    with pytest.raises(UserError, match=said) as error:
        set_up(**given, ckpt=None, seed=0, folder=Path("run"))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_data_need_a_root() -> None:
    with pytest.raises(UserError, match="data.root"):
        set_up(MODEL, {}, {}, None, 0, Path("run"))
