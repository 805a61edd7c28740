"""engines.cpu: where INT8 sums saturate."""

import pytest

from engines.cpu import saturates


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("AMD64", {"avx2", "avx_vnni"}, False),
        ("aarch64", {"asimddp"}, False),
        ("x86_64", set(), False),  # not known: nothing is said
    ],
)
def test_int8_saturates_on_x86_without_vnni_alone(machine: str, flags: "set[str]", expected: bool) -> None:
    assert saturates(machine, flags) == expected
