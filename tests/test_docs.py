"""The README says what the results say, its Python runs, and every config can be read."""

import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_the_readme_holds_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from readme import filled

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- summary -->" in text
    assert filled(text) == text, "run python benchmarks/readme.py"
    sys.modules.pop("readme")


@pytest.fixture(scope="module")
def training() -> None:
    """Training is installed, and imported, which takes its time."""
    pytest.importorskip("lightning", reason="training is not installed")
    import uad.training.fit  # noqa: F401


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_page_of_results_is_made_from_its_figures(
    path: Path, training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(path.stem.partition("-")[0])
    made = module.page(json.loads(path.read_text(encoding="utf-8")))
    assert made == path.with_suffix(".md").read_text(encoding="utf-8"), "run the command at the foot of the page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_be_given(
    page: Path, training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are there and go together; `make test-all` runs some of them."""
    from uad.command_line import parse

    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for folder in ("IMAGES", "ARRIVING"):
        Path(folder).mkdir()
    for name, *arguments in commands_of(page):
        module = importlib.import_module(f"uad.commands.{name}")
        if name == "fit":
            options = parse(module.FitOptions, module.as_settings(arguments), name)
            settings_serve(options)
        else:
            parse(getattr(module, f"{name.capitalize()}Options"), arguments, name)


def commands_of(page: Path) -> list[list[str]]:
    """The `uad` commands of a page, without `uad`."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"uad [a-z]", line)]


def settings_serve(options: Any) -> None:
    """What `uad fit` is given names settings that there are, of values that they take."""
    from uad.training.settings import set_up

    if options.ckpt is not None:  # of a run that is not there
        from uad.training.qat import QuantizationAware

        assert set(options.model) <= set(inspect.signature(QuantizationAware).parameters)
    elif options.resume is None:
        set_up({**options.model, "weights": "none"}, options.data, options.trainer, None, options.seed, Path("RUN"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_can_be_read(config: Path, training: None) -> None:
    from uad.command_line import parse
    from uad.commands.fit import FitOptions

    is_quantized = config.stem.endswith("_qat")
    more = ["--ckpt", "RUN/model.ckpt"] if is_quantized else []
    settings_serve(parse(FitOptions, ["--config", str(config), "--data.root", "IMAGES", *more], "fit"))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_gives_a_model(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    from image_folders import make_class

    from uad import cli

    make_class(tmp_path / "images", "nut")
    small = ["--data.root", str(tmp_path / "images"), "--data.image_size", "64", "--trainer.max_epochs", "1"]
    is_quantized = config.stem.endswith("_qat")
    trained = config.with_name(config.name.replace("_qat", ""))
    fit = ["fit", "--config", str(trained), *small, "--model.weights", "none", "--out", str(tmp_path / "run")]
    assert cli.main(fit) == 0
    if is_quantized:
        start = ["--ckpt", str(tmp_path / "run" / "model.ckpt"), "--out", str(tmp_path / "quantized")]
        assert cli.main(["fit", "--config", str(config), *small, *start]) == 0
    assert (tmp_path / ("quantized" if is_quantized else "run") / "model.ckpt").is_file()


@pytest.mark.slow
def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    from image_folders import make_class, noise, save

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    training, line = (part.split("```")[0] for part in text.split("```python\n")[1:])
    # Small, and without the hub.
    given = '{"root": "IMAGES"}'
    small = '{"root": "IMAGES", "image_size": 64}, model={"weights": "none"}, trainer={"max_epochs": 1}'
    assert given in training
    training = training.replace(given, small)
    monkeypatch.chdir(tmp_path)
    make_class(Path("IMAGES"), "gear")
    save(noise(0), Path("PHOTOS/a.png"))
    save(noise(0), Path("photo.png"))
    found: dict[str, object] = {}
    exec(training, found)
    exec(line, found)
    assert Path("RESULTS/predictions.csv").is_file() and Path("RUN/model.ckpt").is_file()
    assert found["prediction"].score.shape == (1,)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.timeout(600)  # `auto` and --explain fit and correct each graph that they try
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_commands_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user would type them in a folder with IMAGES and PHOTOS; but small, random weights, no TensorRT."""
    pytest.importorskip("lightning", reason="training is not installed")
    from image_folders import make_class, noise, save

    from uad import cli

    commands = [command for command in commands_of(ROOT / page) if "--watch" not in command]
    commands = [command for command in commands if not any(".plan" in word for word in command)]
    assert {command[0] for command in commands} >= {"fit", "export", "test", "predict"}
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    make_class(Path("IMAGES"), "gear", train=24)
    make_class(Path("IMAGES"), "board", train=24)
    Path("LABELLED").symlink_to("IMAGES")
    save(noise(0), Path("PHOTOS/a.png"))
    make_class(Path("NEW"), "cog", train=24)
    for command in commands:
        small = ["--trainer.max_epochs", "1", "--trainer.precision", "32-true", "--data.image_size", "64"]
        if "--ckpt" not in command:
            small += ["--model.weights", "none"]
        if command[0] != "fit" or "--add-class" in command or "--remove-class" in command:
            many_graphs = "--explain" in command or "auto" in command
            small = ["--runtime", "onnxruntime"] if many_graphs else []  # it loads each in a tenth of the time
        assert cli.main([*command, *small]) == 0, command
    assert Path("RESULTS/predictions.csv").is_file()


def test_every_link_between_pages_leads_somewhere() -> None:
    links = [
        (page, target)
        for page in (*PAGES, ROOT / "CONTRIBUTING.md")
        for target in re.findall(r"\]\(([^)#:\s]+)[)#]", page.read_text("utf-8"))
    ]
    assert len(links) > 20
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []
