"""uad.judging.inputs: manifests. Folders and patterns are in test_decisions.py, as what is judged of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from graphs import save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_folders import noise, save

from engines.errors import UserError
from uad.commands.choices import Running
from uad.commands.predict import PredictOptions, predict
from uad.judging.inputs import class_of, find_photographs

CLASSES = ["bolt", "nut"]


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the name of the file says."""
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
        return path
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture(params=["m.csv", "m.parquet"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return str(request.param)


def test_a_manifest_names_photographs_seen_from_its_folder(name: str, tmp_path: Path) -> None:
    rows = [
        {"number": 7, "image": "a.png", "class": "nut"},
        {"number": 8, "image": "bolt/b.png", "class": ""},
        {"number": 9, "image": str(tmp_path / "c.png"), "class": "bolt"},
    ]
    path = manifest(tmp_path / name, rows)
    expected = {tmp_path / "a.png": "nut", tmp_path / "bolt/b.png": "bolt", tmp_path / "c.png": "bolt"}
    assert find_photographs([path], CLASSES) == expected
    assert set(find_photographs([path], CLASSES, "nut").values()) == {"nut"}


def test_a_class_is_known_however_its_accents_are_written(tmp_path: Path) -> None:
    one, two = "Mütze", "Mu\u0308tze"  # composed, and as macOS writes it
    for known, written in ((one, two), (two, one)):
        path = manifest(tmp_path / "m.csv", [{"image": "a.png", "class": written}])
        assert find_photographs([path], [known]) == {tmp_path / "a.png": known}
        photograph = save(noise(0), tmp_path / written / "b.png")
        assert class_of(photograph, tmp_path, [known]) == known
    model = save_tiny(tmp_path / "a.onnx", classes=[one], thresholds={one: 1.0}, held_out={})
    running = Running(runtime="onnxruntime")
    options = PredictOptions(model, [photograph], tmp_path / "out", class_name=two, overlays="none", running=running)
    assert [each.class_name for each in predict(options)] == [one]


def test_a_path_of_windows_is_told(name: str, tmp_path: Path) -> None:
    path = manifest(tmp_path / name, [{"image": "parts\\a.png", "class": "nut"}])
    with pytest.raises(UserError, match=r"row 1: parts\\a.png is a path of Windows: write it with /"):
        find_photographs([path], CLASSES)
    save(noise(0), tmp_path / "parts\\a.png")  # which a name may hold elsewhere
    assert find_photographs([path], CLASSES) == {tmp_path / "parts\\a.png": "nut"}


def test_a_path_that_was_meant_otherwise_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(noise(0), tmp_path / "tables" / "a.png")
    save(noise(0), tmp_path / "parts" / "b.png")
    monkeypatch.chdir(tmp_path)
    for image, hint in [
        ("a.png ", "a.png  has a space at an end: remove it"),
        ("~/a.png", "~/a.png begins with ~, which only a shell knows: write the whole path"),
        ("parts/b.png", "parts/b.png is seen from the folder of the manifest, .*tables, and there is none"),
    ]:
        path = manifest(tmp_path / "tables" / name, [{"image": image, "class": "nut"}])
        with pytest.raises(UserError, match=f"row 1: {hint}"):
            find_photographs([path], CLASSES)
    path = manifest(tmp_path / "tables" / name, [{"image": "gone.png", "class": "nut"}])
    assert list(find_photographs([path], CLASSES)) == [tmp_path / "tables" / "gone.png"]  # it becomes a row


def test_a_row_that_names_a_folder_and_a_row_of_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = manifest(tmp_path / name, [{"image": "a.png", "class": "nut"}, {"image": "", "class": ""}])
    assert find_photographs([path], CLASSES) == {tmp_path / "a.png": "nut"}
    path = manifest(tmp_path / name, [{"image": "", "class": ""}])
    with pytest.raises(UserError, match=f"{name} has no rows"):
        find_photographs([path], CLASSES)
    path = manifest(tmp_path / name, [{"image": "folder", "class": ""}])
    with pytest.raises(UserError, match="row 1: folder is a folder: name a photograph"):
        find_photographs([path], CLASSES)


def test_a_table_of_another_kind_is_one_line(tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    wide.write_text("image\na.png\n", encoding="utf-16")
    with pytest.raises(UserError, match="wide.csv is UTF-16: save it as UTF-8"):
        find_photographs([wide], CLASSES)
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    categories = pyarrow.table({"image": ["a.png"], "class": pyarrow.array(["nut"]).dictionary_encode()})
    parquet.write_table(categories, tmp_path / "categories.parquet")
    assert find_photographs([tmp_path / "categories.parquet"], CLASSES) == {tmp_path / "a.png": "nut"}
    rows = [{"image": {"bytes": b"content", "path": "a.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub.parquet")
    with pytest.raises(UserError, match="its column image holds struct<.*, not text: a manifest has paths"):
        find_photographs([tmp_path / "hub.parquet"], CLASSES)


def test_a_manifest_and_files_are_judged_each_photograph_once(name: str, tmp_path: Path) -> None:
    image = save(noise(0), tmp_path / "a.png")
    save(noise(1), tmp_path / "b.png")
    path = manifest(
        tmp_path / name, [{"image": "b.png"}, {"image": "a.png"}, {"image": "./b.png"}, {"image": "no.png"}]
    )
    model = save_tiny(tmp_path / "model" / "a.onnx")
    decisions = predict(PredictOptions(model, [path, image], tmp_path / "out", running=Running(runtime="onnxruntime")))
    assert [Path(each.image).name for each in decisions] == ["b.png", "a.png", "no.png"]
    assert [each.decision == "unreadable" for each in decisions] == [False, False, True]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"file": "a.png", "kind": "nut"}], "has no column image, but file, kind"),
        ([{"image": "a.png", "class": "nut"}, {"image": "b.png", "class": "gear"}], "row 2: unknown class 'gear'"),
        ([{"image": "a.png", "class": "nut"}, {"image": "", "class": "nut"}], "row 2 names no image"),
    ],
)
def test_a_manifest_that_cannot_serve_is_refused(
    name: str, rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{name}.* {said}"):
        find_photographs([manifest(tmp_path / name, rows)], CLASSES)


def test_a_manifest_that_is_empty_or_no_table_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"image,class\n" if name.endswith("csv") else b"no table")
    with pytest.raises(UserError, match=f"{name} (has no rows|cannot be read as a manifest)"):
        find_photographs([tmp_path / name], CLASSES)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, st.sampled_from(["bolt", "nut", ""])), min_size=1, max_size=8))
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_says_what_was_written_into_it(kind: str, tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / f"photographs.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("class", "image"), *((name, f"{image}.png") for image, name in rows)])
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        columns = {"image": [f"{image}.png" for image, _ in rows], "class": [name for _, name in rows]}
        parquet.write_table(pyarrow.table(columns), path)
    expected = {tmp_path / f"{image}.png": name or None for image, name in rows}  # of one that comes twice the last
    assert find_photographs([path], ["bolt", "nut"]) == expected
