"""uad.options: one dataclass for the command line, a YAML file and Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Literal, Optional

import pytest

from engines.errors import UserError
from uad.command_line import parse
from uad.commands.export import ExportOptions
from uad.exporting.settings import Calibration
from uad.options import about, above_zero, at_least, check_fields, positional


@dataclass
class Inner:
    root: Path = field(metadata=about("a folder"))
    few: Optional[List[str]] = field(default=None, metadata=about("some"))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Options:
    """Do a thing."""

    files: List[Path] = field(metadata=positional("files"))
    data: Inner
    out_file: Path = field(metadata=about("a file", "out"))
    colour: Literal["red", "blue"] = field(default="red", metadata=about("a colour"))
    at_most: Optional[float] = field(default=None, metadata=about("a number"))

    def __post_init__(self) -> None:
        check_fields(self)
        above_zero(at_most=self.at_most)


def test_the_command_line_gives_what_python_gives() -> None:
    line = ["a.png", "b.png", "--data.root", "x", "--data.few", "[p,q]", "--out", "o", "--at-most", "0.5"]
    expected = Options([Path("a.png"), Path("b.png")], Inner(Path("x"), ["p", "q"]), Path("o"), "red", 0.5)
    assert parse(Options, line, "thing") == expected


def test_a_flag_beats_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("colour: blue\nat_most: 3\ndata:\n  root: y\n")
    line = ["a.png", "--config", str(tmp_path / "a.yaml"), "--out", "o", "--at-most", "4"]
    options = parse(Options, line, "thing")
    assert (options.colour, options.at_most, options.data.root) == ("blue", 4.0, Path("y"))


def test_text_becomes_paths_in_python() -> None:
    options = Options(["a.png"], Inner("x"), "o")  # type: ignore[list-item,arg-type]
    assert options.files == [Path("a.png")] and options.out_file == Path("o")
    assert Options("~/a.png", Inner("x"), "o").files == [Path.home() / "a.png"]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--out is missing"):
        Options(["a.png"], Inner("x"), None)  # type: ignore[arg-type,list-item]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["a.png", "--data.root", "x", "--out", "o", "--colour", "green"], "green"),
        (["a.png", "--data.root", "x", "--out", "o", "--at-most", "0"], "--at-most 0.0: give a number above 0"),
        (["a.png", "--data.root", "x"], "out"),
        (["a.png", "--out", "o"], "data.root"),
        (["a.png", "--data.root", "x", "--out", "o", "--color", "red"], "--color"),
        (["a.png", "--data.root", "x", "--out", "o", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_mistake_on_the_command_line(line: List[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(Options, line, "thing")


def test_python_is_refused_what_the_command_line_is_refused() -> None:
    with pytest.raises(UserError, match="--precision int4: choose one of fp32, fp16, int8, auto"):
        ExportOptions(Path("model.ckpt"), Path("model.onnx"), precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--calibrator mse: choose one of entropy, percentile, minmax"):
        Calibration(calibrator="mse")  # type: ignore[arg-type]


def test_numbers_are_named_by_their_flag() -> None:
    at_least(1, batch=1, threads=None)
    with pytest.raises(UserError, match="--calibration-images 0: give at least 1"):
        at_least(1, calibration_images=0)
    with pytest.raises(UserError, match="--seconds nan: give a number above 0"):
        above_zero(seconds=float("nan"))


LINE = ["a.png", "--data.root", "x", "--out", "o"]


def classes_of(text: str) -> "Optional[List[str]]":
    return parse(Classes, ["--classes", text], "thing").classes


@dataclass
class Classes:
    """Do a thing."""

    classes: Optional[List[str]] = field(default=None, metadata=about("some"))
    quick: bool = field(default=False, metadata=about("or slow"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nut", ["nut"]),
        ("nut,bolt", ["nut", "bolt"]),
        ("[nut, bolt]", ["nut", "bolt"]),
        ("[01,02]", ["01", "02"]),
        ("[on,null]", ["on", "null"]),
        ('["01","a,b"]', ["01", "a,b"]),
        ("['nut']", ["nut"]),
        ("[7]", ["7"]),
    ],
)
def test_names_are_names_whatever_yaml_makes_of_them(text: str, names: "List[str]") -> None:
    assert classes_of(text) == names
    assert parse(Classes, [f"--classes={text}"], "thing").classes == names


def test_names_of_a_file_that_look_like_numbers_want_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("classes: [01, 02]\n")
    with pytest.raises(UserError, match=r"--classes \[1, 2\]: give text, in a YAML file in quotes"):
        parse(Classes, ["--config", str(tmp_path / "a.yaml")], "thing")
    (tmp_path / "b.yaml").write_text("classes: ['01']\nquick: true\n")
    assert parse(Classes, ["--config", str(tmp_path / "b.yaml")], "thing") == Classes(["01"], True)


def test_a_switch_takes_no_value() -> None:
    assert parse(Classes, ["--quick"], "thing").quick and not parse(Classes, [], "thing").quick


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    for config in (["--config", str(tmp_path / "a.yaml")], [f"--config={tmp_path / 'a.yaml'}"]):
        assert parse(Options, [*LINE, *config], "thing") == parse(Options, LINE, "thing")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not YAML"), (b"a: [", "is not YAML"), (b"[1]", "holds no settings"), (None, "cannot be read")],
)
def test_a_file_that_holds_no_settings_is_named(content: "Optional[bytes]", said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"--config .*a.yaml:? {said}"):
        parse(Options, [*LINE, "--config", str(path)], "thing")


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse(Options, ["~/a.png", "--data.root=~/x", "--out", "~/o"], "thing")
    assert options == Options([tmp_path / "a.png"], Inner(tmp_path / "x"), tmp_path / "o")
    assert parse(Options, ["~nobody-here/a.png", *LINE[1:]], "thing").files == [Path("~nobody-here/a.png")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--at-most", "much"], "--at-most much: give a number (see"),
        (["--colour", "green"], "--colour green: give one of red, blue (see"),
    ],
)
def test_a_mistake_is_a_sentence(line: "List[str]", said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Options, [*LINE, *line], "thing")
    assert said in str(caught.value) and "class" not in str(caught.value)
