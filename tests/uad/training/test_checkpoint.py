"""A checkpoint gives back the network that was saved, and nothing else is loaded."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engines.errors import UserError  # noqa: E402
from uad.errors import CheckpointError  # noqa: E402
from uad.training.checkpoint import FORMAT, load_checkpoint  # noqa: E402
from uad.training.torch_engine import TorchEngine  # noqa: E402


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def test_a_loaded_network_scores_as_the_saved_one(tiny_run: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    engine = TorchEngine(tiny_run.out / "model.ckpt")
    checkpoint = load_checkpoint(tiny_run.out / "model.ckpt")
    info = checkpoint.info
    score, anomaly_map = checkpoint.network(torch.from_numpy(images))[:2]
    prediction = engine.infer(images)
    np.testing.assert_allclose(prediction.score, score.detach(), rtol=1e-3)
    assert anomaly_map.shape == (2, 64 // info.map_stride, 64 // info.map_stride)
    assert info.classes == ["bolt", "nut"] and set(info.thresholds) == {"bolt", "nut"}
    assert len(info.checkpoint_sha256) == 64
    assert checkpoint.config["backbone"] == "tiny" and checkpoint.quantization is None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.ckpt")


def test_a_truncated_file_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    whole = (tiny_run.out / "model.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "cut.ckpt")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"program": "uad", "payload": Payload(tmp_path / "ran")}, tmp_path / "new.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for name in ("new.ckpt", "old.ckpt"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_program_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    for path in (tmp_path / "other.ckpt", tiny_run.out / "last.ckpt"):
        with pytest.raises(CheckpointError, match="not a model of uad"):
            load_checkpoint(path)


def test_a_model_that_is_no_name_is_refused(tmp_path: Path) -> None:
    torch.save({"program": "uad", "model": ["stfpm"], "format": FORMAT}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="is not a model of uad"):
        load_checkpoint(tmp_path / "model.ckpt")


def test_a_closed_checkpoint_says_so(tiny_run: Any) -> None:
    engine = TorchEngine(tiny_run.out / "model.ckpt")
    engine.close()
    with pytest.raises(UserError, match="model.ckpt is closed: load it again"):
        engine.infer(np.zeros((1, *engine.info.size, 3), np.uint8))


def test_a_newer_format_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    content = torch.load(tiny_run.out / "model.ckpt", weights_only=True)
    torch.save({**content, "format": 99}, tmp_path / "newer.ckpt")
    with pytest.raises(CheckpointError, match="update uad"):
        load_checkpoint(tmp_path / "newer.ckpt")


def test_a_checkpoint_with_missing_tensors_is_refused(tiny_run: Any, tmp_path: Path) -> None:
    content = torch.load(tiny_run.out / "model.ckpt", weights_only=True)
    torch.save({**content, "state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path / "empty.ckpt")
