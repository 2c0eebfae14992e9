"""Cores of real arm64 and mips kernels, kept in tests/data: every frame is the recorded one."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import pytest

from tests import kernel
from tests.crashes import Crash
from tests.foreign import ForeignCase, Target
from tests.replay import assert_replayed
from tests.test_crashes import assert_truth, unwound

TARGETS = tuple(machine.target for machine in kernel.MACHINES)


@pytest.fixture(scope="session")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Crash]:
    """What the archives hold, by the case's name."""

    def unpacked(target: Target) -> list[Crash]:
        return kernel.kept(target, tmp_path_factory.mktemp(target.name))

    return {crash.case.name: crash for target in TARGETS for crash in unpacked(target)}


@pytest.mark.parametrize("case", kernel.CASES, ids=str)
def test_every_stack_is_the_recorded_one(case: ForeignCase, crashes: dict[str, Crash]) -> None:
    crash = crashes[case.name]
    assert_truth(unwound(crash), crash)


@pytest.mark.parametrize("case", kernel.CASES, ids=str)
def test_a_snapshot_gives_the_same_document(
    case: ForeignCase, crashes: dict[str, Crash], tmp_path: Path
) -> None:
    crash = crashes[case.name]
    assert_replayed(crash.core, tmp_path / "snapshot", files=crash.options)


def test_the_initramfs_is_an_archive_as_the_kernel_reads_it() -> None:
    archive = kernel.newc({"init": b"#!", "lib/x": b"12345"})
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    at = archive.index(b"init\0")
    assert archive[at + 6 : at + 8] == b"#!"  # 110 bytes of header and 5 of name, padded
    assert archive.rstrip(b"\0").endswith(b"TRAILER!!!")


def test_the_console_gives_back_what_a_guest_left() -> None:
    def sent(data: bytes) -> str:
        return base64.encodebytes(gzip.compress(data)).decode()

    printed = f"boot\n<<< a-case\n{sent(b'core')}===\n{sent(b'truth')}>>>\npower off\n"
    assert list(kernel.read_console(printed)) == [("a-case", kernel.Left(b"core", b"truth"))]
