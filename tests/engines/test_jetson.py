"""engines.jetson: what a Xavier NX's files say, as its documentation shows them, and what stands beside a latency.

The layout is that of Jetson Linux 35 (JetPack 5): NVIDIA's developer guide, and the Linux documentation of ina3221.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from graphs import save_tiny

from engines import jetson
from uad import cli
from uad.tables import jetson_lines

RELEASE = "# R35 (release), REVISION: 2.1, GCID: 32413640, BOARD: t186ref, EABI: aarch64, DATE: Tue Jan 24 23:38:33 UTC"
FILES = {
    "etc/nv_tegra_release": RELEASE,
    "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
    "proc/meminfo": "MemTotal:        7802416 kB\nMemFree:          325604 kB\nMemAvailable:    5859375 kB\n",
    "sys/class/devfreq/17000000.gv11b/cur_freq": "1109250000\n",
    "sys/class/devfreq/17000000.gv11b/min_freq": "114750000\n",
    "sys/class/devfreq/17000000.gv11b/max_freq": "1109250000\n",
    "sys/devices/gpu.0/load": "987\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1190400\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1420800\n",
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "45500\n",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "47000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "17000000.gv11b\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "17\n",
}
HWMON = "sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon4"
RAILS = {"VDD_IN": (5080, 2000), "VDD_CPU_GPU_CV": (5072, 1000), "VDD_SOC": (5064, 250)}  # mV, mA
ANSWER = "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = dict(FILES)
    for channel, (name, (volts, amperes)) in enumerate(RAILS.items(), 1):
        files[f"{HWMON}/in{channel}_label"] = f"{name}\n"
        files[f"{HWMON}/in{channel}_input"] = f"{volts}\n"
        files[f"{HWMON}/curr{channel}_input"] = f"{amperes}\n"
    files[f"{HWMON}/in7_label"] = "sum of shunt voltages\n"
    for name, content in files.items():
        write(tmp_path, name, content)
    monkeypatch.setattr(jetson, "_nvpmodel", lambda: ANSWER)
    return tmp_path


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_module_says_what_it_is_and_how_it_is_set(root: Path) -> None:
    assert jetson.is_jetson(root)
    assert jetson.settings(root) == {
        "module": "NVIDIA Jetson Xavier NX Developer Kit",
        "release": "R35.2.1",
        "power_mode": "MODE_15W_6CORE",
        "gpu_mhz_range": [114.75, 1109.25],
        "cpu_mhz_range": [1190.4, 1420.8],
        "over_current": {"oc1_event_cnt": 0, "oc3_event_cnt": 17},
        "cooling": {"pwm-fan": 0, "17000000.gv11b": 0},
    }


def test_a_sample_has_power_heat_clock_load_and_memory(root: Path) -> None:
    assert jetson.sample(root) == {
        "power_mw": {"VDD_IN": 10160.0, "VDD_CPU_GPU_CV": 5072.0, "VDD_SOC": 1266.0},
        "celsius": {"CPU-therm": 45.5, "GPU-therm": 47.0},
        "gpu_mhz": 1109.25,
        "gpu_load_percent": 98.7,
        "memory_available_mb": 6000.0,
    }


def test_what_is_not_there_is_none_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson.shutil, "which", lambda name: None)
    assert not jetson.is_jetson(tmp_path)
    assert jetson.memory_available_mb(tmp_path) is None
    settings, sample = jetson.settings(tmp_path), jetson.sample(tmp_path)
    assert {key for key, value in settings.items() if value not in (None, {})} == set()
    assert {key for key, value in sample.items() if value not in (None, {})} == set()
    with jetson.Watch(tmp_path) as watch:
        pass
    report = watch.report(60.0)
    assert report["memory_available_mb"] is None and report["power_mw"] == {} and report["doubts"] == []
    assert jetson_lines(report).startswith("Jetson, release unknown, power mode unknown")


@pytest.mark.parametrize("content", ["", "none\n", "nan\n"])
def test_a_file_that_holds_no_number_is_passed_over(root: Path, content: str) -> None:
    write(root, f"{HWMON}/curr2_input", content)
    write(root, "sys/class/thermal/thermal_zone0/temp", content)
    write(root, "sys/devices/gpu.0/load", content)
    sample = jetson.sample(root)
    assert list(sample["power_mw"]) == ["VDD_IN", "VDD_SOC"] and list(sample["celsius"]) == ["GPU-therm"]
    assert sample["gpu_load_percent"] is None


def test_an_nvpmodel_that_hangs_or_says_something_else_is_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvpmodel", 10)

    monkeypatch.setattr(jetson.shutil, "which", lambda name: "/usr/sbin/nvpmodel")
    monkeypatch.setattr(jetson.subprocess, "run", late)
    assert jetson._nvpmodel() == ""
    assert jetson.power_mode("") is None and jetson.power_mode("NVPM ERROR: no config file\n") is None
    assert jetson.power_mode("NVPM WARN: power mode is not set\nNV Power Mode: MODE_20W_6CORE\n8\n") == "MODE_20W_6CORE"


def test_a_watch_takes_the_mean_and_the_most_of_what_it_saw(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "EVERY", 0.01)
    with jetson.Watch(root) as watch:
        while len(watch._samples) < 3:
            time.sleep(0.01)
        write(root, f"{HWMON}/curr1_input", "3000\n")
        write(root, "proc/meminfo", "MemAvailable:    1953125 kB\n")
        seen = len(watch._samples)
        while len(watch._samples) < seen + 3:
            time.sleep(0.01)
    report = watch.report(60.0)
    assert report["power_mw"]["VDD_IN"]["max"] == 15240.0
    assert 10160.0 < report["power_mw"]["VDD_IN"]["mean"] < 15240.0
    assert report["memory_available_mb"] == 2000.0 and report["gpu_load_percent"] == pytest.approx(
        {"mean": 98.7, "max": 98.7}
    )
    said = jetson_lines(report)
    assert "NVIDIA Jetson Xavier NX Developer Kit, R35.2.1, power mode MODE_15W_6CORE, GPU at 115 to 1109 MHz" in said
    assert "(most 15.2)" in said and "GPU-therm 47 °C" in said
    assert said.splitlines()[-1].startswith("doubt: the GPU's clock is free")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sys/class/hwmon/hwmon3/oc3_event_cnt", "29\n", "the current passed a limit 12 times (oc3_event_cnt)"),
        ("sys/class/thermal/cooling_device1/cur_state", "2\n", "17000000.gv11b was slowed down for its heat"),
        ("sys/class/devfreq/17000000.gv11b/max_freq", "803250000\n", "gpu_mhz_range changed from [114.75, 1109.25]"),
    ],
)
def test_what_slowed_it_down_stands_beside_the_latency(root: Path, name: str, content: str, said: str) -> None:
    before = jetson.settings(root)
    write(root, name, content)
    found = [doubt for doubt in jetson.doubts(before, jetson.settings(root), 60.0) if "clock is free" not in doubt]
    assert len(found) == 1 and said in found[0]


def test_a_fan_that_turns_a_short_run_and_held_clocks(root: Path) -> None:
    write(root, "sys/class/devfreq/17000000.gv11b/min_freq", "1109250000\n")
    before = jetson.settings(root)
    write(root, "sys/class/thermal/cooling_device0/cur_state", "3\n")
    after = jetson.settings(root)
    assert jetson.doubts(before, after, 60.0) == []
    (short,) = jetson.doubts(before, after, 3.0)
    assert "measured for 3 s" in short and "--seconds 60" in short


def test_bench_on_a_jetson_prints_and_writes_what_it_saw(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "a.onnx")
    available = iter([5000.0, 4700.0])
    with monkeypatch.context() as patch:
        patch.setattr(jetson, "is_jetson", lambda: True)
        patch.setattr(jetson, "memory_available_mb", lambda root=None: 4700.0 if root else next(available))
        patch.setattr(jetson, "Watch", lambda watch=jetson.Watch: watch(root))
        arguments = ["bench", str(model), "--seconds", "0.01", "--threads", "1", "--runtime", "onnxruntime"]
        assert cli.main([*arguments, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    assert "shared MB" in printed and "power: VDD_IN 10.2 W (most 10.2)" in printed
    assert "doubt: measured for 0.01 s" in printed
    (report,) = json.loads((tmp_path / "b.json").read_text())
    assert report["unified_mb"] == 300.0 and report["jetson"]["power_mode"] == "MODE_15W_6CORE"


def test_bench_elsewhere_says_nothing_of_a_jetson(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "a.onnx")
    arguments = ["bench", str(model), "--seconds", "0.01", "--threads", "1", "--runtime", "onnxruntime"]
    assert cli.main([*arguments, "--json", str(tmp_path / "b.json")]) == 0
    (report,) = json.loads((tmp_path / "b.json").read_text())
    assert report["unified_mb"] is None and report["jetson"] is None
    assert "shared MB" not in capsys.readouterr().out
