"""Images: where CFI is looked for, what is read lazily, and what an image keeps alive."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from pathlib import Path

import pytest

from tests.elves import (
    SHAPES,
    Sect,
    Seg,
    Sym,
    build,
    library,
    loaded,
    make_elf,
    mapped,
    symbol_bytes,
    with_symbols,
    without_sections,
)
from tests.support import need, run
from unwind.dwarf.cfi import Broken, Fde
from unwind.elf import ET, PT, SHF, SHT, Elf
from unwind.errors import FormatError, MemoryFault, MissingPackage
from unwind.image import Image, UnreadableSection
from unwind.memory import Span
from unwind.protocols import ByteOrder

BASE = 0x7F00_0000_0000
DEBUG_FRAME_ONLY = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-g")


def start_of(path: Path, name: str) -> int:
    found = Image(mapped(path)).symbols.named(name)
    assert found is not None
    return found.vaddr


def fde_of(image: Image, vaddr: int) -> tuple[str, int, int] | None:
    """The section, the start and the end of the FDE that a walk would use."""
    for section in image.frame_sections:
        fde = section.find(vaddr)
        if fde is not None:
            return section.kind, fde.start, fde.end
    return None


# ------------------------------------------------------------------ where CFI comes from


def test_the_fde_of_a_function_is_found_in_eh_frame(tmp_path: Path) -> None:
    path = build(tmp_path)
    outer = start_of(path, "outer")
    kind, start, end = fde_of(Image(mapped(path)), outer + 1) or ("", 0, 0)
    assert (kind, start) == ("eh_frame", outer)
    assert outer < end < outer + 0x1000
    assert Image(mapped(path)).unwind_kinds == ("eh_frame",)


def test_eh_frame_is_found_without_section_headers_and_in_memory(tmp_path: Path) -> None:
    path = build(tmp_path)
    whole = Image(mapped(path))
    bare = Image(Elf(without_sections(path.read_bytes())))
    in_memory = Image(Elf.from_memory(Span(BASE, loaded(whole.elf)), BASE))
    entries = [e for section in whole.frame_sections for e in section.entries()]
    fdes = [entry for entry in entries if isinstance(entry, Fde)]
    assert len(fdes) > 3
    for image in (bare, in_memory):
        assert image.unwind_kinds == ("eh_frame",)
        assert len(list(next(iter(image.frame_sections)).entries())) == len(entries)
        for fde in fdes:
            assert fde_of(image, fde.start) == ("eh_frame", fde.start, fde.end)


def test_eh_frame_without_a_search_table_is_searched_all_the_same(tmp_path: Path) -> None:
    path = build(tmp_path, "-Wl,--no-eh-frame-hdr", "-static")
    outer = start_of(path, "outer")
    image = Image(mapped(path))
    assert next(iter(image.frame_sections)).search is None
    assert (fde_of(image, outer) or ("", 0))[1] == outer


def test_debug_frame_serves_where_there_is_no_eh_frame(tmp_path: Path) -> None:
    path = build(tmp_path, *DEBUG_FRAME_ONLY, "-gdwarf-4")
    outer = start_of(path, "outer")
    assert (fde_of(Image(mapped(path)), outer) or ())[:2] == ("debug_frame", outer)


@pytest.mark.parametrize("style", ["zlib-gabi", "zlib-gnu"])
def test_compressed_debug_frame_serves_as_well(style: str, tmp_path: Path) -> None:
    need("objcopy")
    path = build(tmp_path, *DEBUG_FRAME_ONLY)
    outer = start_of(path, "outer")
    assert run("objcopy", f"--compress-debug-sections={style}", path).returncode == 0
    assert (fde_of(Image(mapped(path)), outer) or ())[:2] == ("debug_frame", outer)


@pytest.fixture
def separated(tmp_path: Path) -> tuple[Path, Path, int]:
    """A program stripped of everything, its debug file, and where `inner` is."""
    need("objcopy", "strip")
    path = build(tmp_path, *DEBUG_FRAME_ONLY)
    inner = start_of(path, "inner")
    debug = tmp_path / "program.debug"
    assert run("objcopy", "--only-keep-debug", path, debug).returncode == 0
    assert run("strip", path).returncode == 0
    return path, debug, inner


def test_a_separate_debug_file_has_debug_frame_and_symbols(
    separated: tuple[Path, Path, int],
) -> None:
    path, debug, inner = separated
    asked: list[Image] = []

    def find(image: Image) -> Image:
        asked.append(image)
        return Image(mapped(debug))

    image = Image(mapped(path), str(path), find)
    assert image.unwind_kinds == ("eh_frame",)  # the C library's start files bring some
    assert asked == []
    assert (fde_of(image, inner) or ())[:2] == ("debug_frame", inner)
    found = image.symbols.find(inner + 3)
    assert found is not None
    assert found.name == "inner"
    assert asked == [image]
    assert [section.kind for section in image.frame_sections] == ["eh_frame", "debug_frame"]


def test_the_empty_eh_frame_of_a_debug_file_is_none(separated: tuple[Path, Path, int]) -> None:
    debug = Image(mapped(separated[1]))
    section = debug.elf.section(".eh_frame")
    assert section is not None
    assert section.type == SHT.NOBITS
    assert debug.unwind_kinds == ("debug_frame",)


def test_no_debug_file_is_opened_while_eh_frame_has_the_answer(tmp_path: Path) -> None:
    def find(image: Image) -> Image:
        raise AssertionError("nobody should ask")

    path = build(tmp_path)
    image = Image(mapped(path), debug=find)
    assert fde_of(image, start_of(path, "outer"))
    assert image.symbols.named("outer")
    assert bool(image.frame_sections)


def test_an_image_without_cfi_has_no_sections() -> None:
    image = Image(Elf(make_elf([Seg(vaddr=0x1000, data=b"code")])))
    assert not image.frame_sections
    assert list(image.frame_sections) == []
    assert image.unwind_kinds == ()
    lost = make_elf([Seg(PT.GNU_EH_FRAME, b"\1\x1b\3\x3b\0\0\0\x7f", 0x1000)])
    assert not Image(Elf(lost)).frame_sections


def test_a_section_that_cannot_be_read_answers_with_its_error() -> None:
    flawed = Sect(
        ".debug_frame",
        data=b"\1" + bytes(7) + b"\x40" + bytes(15) + b"no stream",
        flags=SHF.COMPRESSED,
    )
    image = Image(Elf(make_elf((), [flawed])))
    (section,) = image.frame_sections
    assert isinstance(section, UnreadableSection)
    assert image.unwind_kinds == ("debug_frame",)
    with pytest.raises(FormatError, match="zlib"):
        section.find(0x1000)
    with pytest.raises(FormatError, match="zlib"):
        section.fde_at(0)
    (entry,) = section.entries()
    assert isinstance(entry, Broken)


def test_zstd_without_its_package_is_said_where_the_cfi_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    packed = Sect(".debug_frame", data=b"\2" + bytes(31), flags=SHF.COMPRESSED)
    (section,) = Image(Elf(make_elf((), [packed]))).frame_sections
    with pytest.raises(MissingPackage):
        section.find(0x1000)


def test_datarel_pointers_are_relative_to_the_global_offset_table(tmp_path: Path) -> None:
    elf = mapped(build(tmp_path))
    (section, *_) = Image(elf).frame_sections
    got, text = elf.section(".got.plt") or elf.section(".got"), elf.section(".text")
    assert got is not None
    assert text is not None
    assert section.encoding.data_base == got.vaddr
    assert section.encoding.text_base == text.vaddr


def test_indirect_pointers_are_read_from_the_image() -> None:
    data = make_elf(
        [Seg(vaddr=0x1000, data=(0x1234).to_bytes(8, "little"))], [Sect(".eh_frame", data=bytes(8))]
    )
    (section,) = Image(Elf(data)).frame_sections
    dereference = section.encoding.dereference
    assert dereference is not None
    assert dereference(0x1000) == 0x1234
    with pytest.raises(MemoryFault):
        dereference(0x1001)


# ------------------------------------------------------------------ code and lifetime


def test_reads_run_on_into_the_next_segment_and_fault_where_there_is_none() -> None:
    image = Image(
        Elf(make_elf([Seg(vaddr=0x1000, data=b"one"), Seg(vaddr=0x1003, data=b"two", flags=4)]))
    )
    assert image.read(0x1001, 4) == b"netw"
    assert image.read(0x1002, 0) == b""
    for vaddr, size in ((0x1004, 3), (0x2000, 1), (0xFFF, 2)):
        with pytest.raises(MemoryFault):
            image.read(vaddr, size)


def test_uninitialized_data_cannot_be_read_from_a_file() -> None:
    image = Image(Elf(make_elf([Seg(vaddr=0x1000, data=b"data", memory_size=64)])))
    with pytest.raises(MemoryFault):
        image.read(0x1000, 5)


def test_only_executable_segments_hold_code() -> None:
    image = Image(
        Elf(make_elf([Seg(vaddr=0x1000, data=b"code"), Seg(vaddr=0x2000, data=b"data", flags=6)]))
    )
    places = (0xFFF, 0x1000, 0x1003, 0x1004, 0x2000)
    assert [vaddr for vaddr in places if image.executable(vaddr)] == [0x1000, 0x1003]


def test_an_image_is_gone_once_nobody_uses_it(tmp_path: Path) -> None:
    """In no reference circle: files are unmapped at once, not when the collector comes by."""
    path = build(tmp_path, "-g")
    gc.disable()
    try:
        image = Image(mapped(path), debug=lambda image: None)
        outer = image.symbols.named("outer")
        assert outer is not None
        assert fde_of(image, outer.vaddr)
        assert fde_of(image, 1) is None
        left = weakref.ref(image), weakref.ref(image.elf)
        del image
        assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()


def test_threads_share_an_image() -> None:
    image = Image(mapped(library("libstdc++.so.6")))
    code = next(segment for segment in image.segments if segment.executable)
    vaddrs = range(code.vaddr, code.vaddr + code.memory_size, code.memory_size // 500)
    answers: list[list[object]] = []

    def ask() -> None:
        answers.append([(fde_of(image, vaddr), image.symbols.find(vaddr)) for vaddr in vaddrs])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)


# ------------------------------------------------------------------ relocatable files


def fdes_of(path: Path) -> list[tuple[int, int, int]]:
    return [
        (entry.offset, entry.start, entry.end)
        for section in Image(mapped(path)).frame_sections
        for entry in section.entries()
        if isinstance(entry, Fde)
    ]


@pytest.mark.parametrize(
    "options", [("-ffunction-sections",), DEBUG_FRAME_ONLY, ("-g", "-mcmodel=large")]
)
def test_an_object_file_has_the_fdes_that_readelf_prints(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    need("readelf")
    path = build(tmp_path, "-c", *options, name="program.o")
    printed = re.findall(
        r"^([0-9a-f]+) .* FDE cie=[0-9a-f]+ pc=([0-9a-f]+)\.\.([0-9a-f]+)",
        run("readelf", "--debug-dump=frames", path).stdout,
        re.MULTILINE,
    )
    assert fdes_of(path) == [tuple(int(number, 16) for number in row) for row in printed]
    assert len(printed) >= 3


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"elf{s[0]}-{s[1]}")
def test_a_symbol_table_of_an_object_file_does_not_name_by_section(
    shape: tuple[int, ByteOrder],
) -> None:
    image = Image(Elf(with_symbols([Sym("f", 0, 16)], shape=shape, type=ET.REL)))
    found = image.symbols.find(4)
    assert found is not None
    assert found.name == "f"


def test_damaged_symbol_tables_do_not_keep_cfi_from_serving() -> None:
    entries, _ = symbol_bytes([Sym("f", 0x1000, 16)])
    data = make_elf(
        (), [Sect(".symtab", SHT.SYMTAB, entries, link=99), Sect(".eh_frame", data=bytes(4))]
    )
    image = Image(Elf(data))
    assert image.symbols.find(0x1001) is None
    assert image.unwind_kinds == ("eh_frame",)


def test_of_thousands_of_sections_of_one_name_a_few_are_searched() -> None:
    """They may all lie over one another: a file of 1 MB once took half a minute."""
    made = make_elf((), [Sect(".eh_frame", data=bytes(4))] * 1000)
    assert 1 <= len(list(Image(Elf(made)).frame_sections)) <= 16
