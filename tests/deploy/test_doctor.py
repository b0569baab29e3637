"""The doctor: each judgement from planted values, and the whole on this machine."""

import errno
import json
from pathlib import Path

import pytest

from deploy import doctor
from deploy.cli.main import main

GIB = 1 << 30


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (doctor.python((3, 11, 0)), "ok"),
        (doctor.python((3, 10, 9)), "fail"),
        (doctor.cores(2), "ok"),
        (doctor.cores(1), "warn"),
        (doctor.memory(8 * GIB), "ok"),
        (doctor.memory(2 * GIB), "warn"),
        (doctor.memory(GIB // 4), "fail"),
        (doctor.open_files(-1), "ok"),  # RLIM_INFINITY
        (doctor.open_files(4096), "ok"),
        (doctor.open_files(512), "warn"),
        (doctor.open_files(64), "fail"),
        (doctor.library("x", "print('1.2')"), "ok"),
        (doctor.library("x", "import no_such_library"), "fail"),
        (doctor.library("x", "import os; os.abort()"), "fail"),
        (doctor.digits("raise SystemExit('no data')"), "warn"),
        (doctor.kernels(doctor.KERNELS), "ok"),
        (doctor.kernels("raise ImportError"), "warn"),
        (doctor.shared_memory(Path("/no/such/folder")), "warn"),
        (doctor.loopback(), "ok"),
    ],
)
def test_a_measured_value_gets_its_status(check: doctor.Check, status: str) -> None:
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")
    assert check.found


def test_a_loopback_without_ports_fails() -> None:
    def refused() -> int:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    assert doctor.loopback(refused).status == "fail"


def test_a_congestion_control_that_slows_exchanges_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "control").write_text("bbr\n")
    assert doctor.congestion(file).line().startswith("warn congestion    TCP bbr: ")
    file.write_text("cubic\n")
    assert doctor.congestion(file).line() == "ok   congestion    TCP cubic"
    assert doctor.congestion(tmp_path / "none").status == "ok"


def test_a_library_reports_its_version_or_its_last_words() -> None:
    assert doctor.library("x", "print('1.2')").found == "1.2"
    assert "No module named 'no_such_library'" in doctor.library("x", "import no_such_library").found


def test_the_exit_code_follows_from_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    assert {"torch", "ray", "grpc", "protobuf", "scikit-learn", "loopback", "congestion"} <= {check["name"] for check in checks}
    assert ended.value.code == (1 if any(check["status"] == "fail" for check in checks) else 0)
