"""engines.cpu: where INT8 sums saturate."""

from typing import Optional

import pytest

from engines import cpu
from engines.cpu import saturates


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("AMD64", {"avx2", "avx_vnni"}, False),
        ("aarch64", {"asimddp"}, False),
        ("x86_64", set(), None),
        ("arm64", set(), False),
    ],
)
def test_int8_saturates_on_x86_without_vnni_alone(machine: str, flags: "set[str]", expected: "Optional[bool]") -> None:
    assert saturates(machine, flags) is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [("flags\t\t: fpu avx2\n", {"fpu", "avx2"}), ("Features\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"})],
)
def test_instruction_sets_of_x86_and_of_arm(said: str, expected: "set[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import io

    monkeypatch.setattr(builtins, "open", lambda *_, **__: io.StringIO(f"processor\t: 0\n{said}"))
    assert cpu.cpu_flags() == expected
