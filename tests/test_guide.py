"""docs/guide.md and README's page for authors of debuggers are run: what they show is true."""

from __future__ import annotations

import doctest
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from unwind.files import Files
from unwind.transports.core import TRANSPORT, CoreSource


class Debugger:
    """What the guide calls `debugger`: an example core behind three methods."""

    def __init__(self, source: CoreSource):
        self._source = source
        self._snapshot = next(source.snapshots())

    def registers(self) -> Iterator[tuple[str, int]]:
        for number, value in self._snapshot.registers.items():
            yield self._source.arch.register_name(number), value

    def read(self, address: int, size: int) -> bytes:
        return self._snapshot.memory.read(address, size)

    def mapped_files(self) -> Iterator[tuple[str, int, tuple[tuple[int, int], ...]]]:
        for module in self._source.space.modules:
            if module.file is not None:
                yield module.file, module.bias, module.ranges

    def content(self, path: str) -> bytes:
        return Path(path).read_bytes()


@pytest.fixture(scope="module")
def debugger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debugger]:
    where = tmp_path_factory.mktemp("example")
    with tarfile.open(ROOT / "examples/x86_64-crash.tar.xz") as archive:
        # The `filter` argument came with 3.11.4; Debian 12 has 3.11.2.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(where)
    with Files(sysroot=str(where)) as files, TRANSPORT.open(str(where / "core"), files) as source:
        yield Debugger(source)


@pytest.mark.parametrize("document", ["docs/guide.md", "README.md"])
def test_what_the_document_shows_is_what_happens(
    document: str, debugger: Debugger, tmp_path: Path
) -> None:
    text = (ROOT / document).read_text()
    names = {"debugger": debugger, "report": str(tmp_path / "crash.unwind")}
    test = doctest.DocTestParser().get_doctest(text, names, document, document, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0, "nothing was run"
