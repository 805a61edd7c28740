"""uad.training.precision: no arithmetic that the processor only imitates."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from uad.training.precision import precision_on  # noqa: E402
from uad.training.settings import set_up  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "device", "wanted", "taken"),
    [
        ("AVX2", CPU, "bf16-mixed", "32-true"),
        ("AVX2", CPU, "bf16", "32-true"),
        ("AVX2", CPU, "16-mixed", "16-mixed"),
        ("AVX2", torch.device("cuda"), "bf16-mixed", "bf16-mixed"),
        ("AVX512", CPU, "bf16-mixed", "bf16-mixed"),
    ],
)
def test_bfloat16_is_left_where_it_is_imitated(
    capability: str,
    device: "torch.device",
    wanted: str,
    taken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision_on(device, wanted) == taken
    assert ("does not compute bfloat16" in capsys.readouterr().out) == (wanted != taken)


def test_the_trainer_takes_what_the_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = {"weights": "none", "backbone": "mobilenet_v2"}, {"accelerator": "cpu", "precision": "bf16-mixed"}
    for capability, taken in (("AVX2", "32-true"), ("AVX512", "bf16-mixed")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        setup = set_up(model, {"root": "images"}, asked, None, 0, Path("run"))
        assert setup.trainer.precision == taken and setup.resolved["trainer"]["precision"] == "bf16-mixed"
