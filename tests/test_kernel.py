"""Tests of what a script finds out about the kernel that it runs in."""

import subprocess
import zipfile

import pytest

from runs import kernel
from utils import ExpectedError


def test_kaggle_is_known_by_its_environment(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert not kernel.is_kernel()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert kernel.is_kernel()


def test_a_package_that_is_there_is_not_installed(monkeypatch):
    monkeypatch.setattr(kernel.subprocess, "run", lambda *args, **kwargs: pytest.fail("installed"))
    kernel.require_package("json", "json")


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    with pytest.raises(ExpectedError, match="no_such_module is missing; .*pip install no-such;?"):
        kernel.require_package("no_such_module", "no-such")


def test_a_kernel_installs_a_missing_package(monkeypatch, tmp_path):
    def install(command, check):
        assert command[-2:] == ["--no-deps", "made-up"]
        (tmp_path / "made_up_package.py").write_text("")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(kernel.subprocess, "run", install)
    kernel.require_package("made_up_package", "made-up")


def test_a_kernel_without_internet_installs_from_a_wheel_in_a_data_set(monkeypatch, tmp_path):
    """With the real pip, into another folder."""
    wheel = (
        tmp_path / "input" / "datasets" / "somebody" / "wheels" / "shipped_one-1-py3-none-any.whl"
    )
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("shipped_one.py", "")
        archive.writestr(
            "shipped_one-1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: shipped-one\nVersion: 1\n",
        )
        archive.writestr(
            "shipped_one-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("shipped_one-1.dist-info/RECORD", "")
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "packages"))
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    kernel.require_package("shipped_one", "shipped-one")
    assert (tmp_path / "packages" / "shipped_one.py").exists()
