"""The README says what the results say, its Python runs, and every config can be read."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_holds_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from readme import filled

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- agreement.md -->" in text
    assert filled(text) == text, "run python benchmarks/readme.py"
    sys.modules.pop("readme")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_page_of_results_is_made_from_its_figures(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module(path.stem.partition("-")[0])
    made = module.page(json.loads(path.read_text(encoding="utf-8")))
    assert made == path.with_suffix(".md").read_text(encoding="utf-8"), "run the command at the foot of the page"


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
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


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="training is not installed")
    from image_folders import make_class, noise, save

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    training, line = (part.split("```")[0] for part in text.split("```python\n")[1:])
    # Small, and without the hub.
    for given, small in (
        ('"backbone": "mobilenet_v2"', '"backbone": "mobilenet_v2", "weights": "none"'),
        ('{"root": "IMAGES"}', '{"root": "IMAGES", "image_size": 64}'),
        ("model=model)", 'model=model, trainer={"max_epochs": 1})'),
    ):
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
