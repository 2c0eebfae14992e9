"""ELF files as readelf and pyelftools see them, made by hand, loaded, cut short and damaged."""

from __future__ import annotations

import functools
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tests.elves import (
    SHAPES,
    Sect,
    Seg,
    build,
    elf_files,
    loaded,
    make_elf,
    mapped,
    without_sections,
)
from tests.support import need, python, run
from unwind.elf import DT, EM, ET, PT, SHF, SHT, Elf
from unwind.errors import FormatError, MemoryFault, MissingPackage, UnwindError
from unwind.image import Image
from unwind.memory import Layers, Span
from unwind.protocols import ByteOrder, Memory

Shape = tuple[int, ByteOrder]
BASE = 0x7F12_3456_7000
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"elf{s[0]}-{s[1]}")


@functools.cache
def program() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return build(Path(directory), "-g", "-Wl,--build-id").read_bytes()


class Readable:
    """A memory without `view`, of which some pages cannot be read."""

    def __init__(self, start: int, data: bytes | bytearray, holes: set[int] = frozenset()):  # type: ignore[assignment]
        self.span, self.holes = Span(start, data), holes
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        pages = range(address & -4096, address + size, 4096)
        if any(page - self.span.start in self.holes for page in pages):
            raise MemoryFault(address, size)
        return self.span.read(address, size)


# ------------------------------------------------------------------ what the tables say


@pytest.mark.parametrize("path", list(elf_files(40)), ids=lambda path: path.name)
def test_tables_are_those_that_pyelftools_reads(path: Path) -> None:
    elf = mapped(path)
    with path.open("rb") as file:
        other = ELFFile(file)
        assert elf.header.phnum == other.num_segments()
        for mine, its in zip(elf.program_headers, other.iter_segments(), strict=True):
            assert (mine.vaddr, mine.offset, mine.file_size, mine.memory_size, mine.flags) == tuple(
                its[f"p_{field}"] for field in ("vaddr", "offset", "filesz", "memsz", "flags")
            )
        for section, its in zip(elf.sections, other.iter_sections(), strict=True):
            assert (section.name, section.vaddr, section.offset, section.size) == (
                its.name,
                *(its[f"sh_{field}"] for field in ("addr", "offset", "size")),
            )
            if section.type != SHT.NOBITS and section.size < 1 << 16:
                assert elf.data(section) == its.data()
        dynamic = other.get_section_by_name(".dynamic")
        tags = [tag["d_ptr"] for tag in dynamic.iter_tags()] if dynamic else [0]
        assert [value for _, value in elf.dynamic] == tags[:-1]


def test_build_id_is_the_one_that_readelf_prints() -> None:
    need("readelf")
    checked = 0
    for path in elf_files(60):
        printed = re.search(r"Build ID: ([0-9a-f]+)", run("readelf", "-n", path).stdout)
        build_id = mapped(path).build_id
        assert (build_id.hex() if build_id else None) == (printed[1] if printed else None), path
        checked += printed is not None
    assert checked > 20


@shapes
def test_every_class_and_byte_order_is_read(shape: Shape) -> None:
    elf = Elf(
        make_elf(
            [Seg(PT.LOAD, b"code", 0x1000, 5), Seg(PT.LOAD, b"data!", 0x3000, 6, memory_size=16)],
            [Sect(".text", SHT.PROGBITS, b"code", 0x1000, SHF.ALLOC, align=4)],
            shape=shape,
            machine=EM.MIPS,
            flags=0x7000_1007,
        )
    )
    assert (elf.header.elf_class, elf.header.byteorder) == shape
    assert (elf.header.machine, elf.header.flags) == (EM.MIPS, 0x7000_1007)
    text, data = elf.segments
    assert (text.vaddr, bytes(text.data), text.executable, text.writable) == (
        0x1000,
        b"code",
        True,
        False,
    )
    assert (bytes(data.data), data.memory_size, data.executable) == (b"data!", 16, False)
    found = elf.section(".text")
    assert found is not None
    assert (found.index, found.vaddr, found.align, bytes(elf.data(found))) == (
        1,
        0x1000,
        4,
        b"code",
    )
    assert elf.section(".data") is None


def test_at_gives_the_bytes_from_an_address_to_its_segments_end() -> None:
    elf = Elf(make_elf([Seg(vaddr=0x2000, data=b"later"), Seg(vaddr=0x1000, data=b"first")]))
    assert bytes(elf.at(0x1000)) == b"first"
    assert bytes(elf.at(0x2002)) == b"ter"
    assert bytes(elf.at(0x2002, 2)) == b"te"
    for nowhere in (0, 0xFFF, 0x1005, 0x2005, 1 << 63, -1):
        assert not elf.at(nowhere)


def test_describe_names_machine_class_order_and_flags() -> None:
    riscv = make_elf(machine=EM.RISCV, flags=5)
    assert Elf(riscv).describe() == "machine EM_RISCV (243), ELF64, little endian, flags 0x5"
    unknown = make_elf(machine=4711, shape=(32, "big"))
    assert Elf(unknown).describe() == "machine 4711, ELF32, big endian, flags 0x0"


# ------------------------------------------------------------------ large numbers


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[3:], ids=lambda s: f"elf{s[0]}-{s[1]}")
def test_more_than_65535_program_headers_are_counted_by_section_0(shape: Shape) -> None:
    segments = [Seg(vaddr=0x1000 * n, data=b"") for n in range(70_000)]
    data = make_elf(segments, shape=shape, type=ET.CORE, phnum=0xFFFF, section_zero=(0, 0, 70_000))
    elf = Elf(data)
    assert elf.header.phnum == len(elf.program_rows) == 70_000
    assert elf.program_rows[-1][3] == 0x1000 * 69_999


def test_a_core_whose_section_0_was_cut_off_is_counted_by_its_first_offset() -> None:
    segments = [Seg(PT.NOTE, b"")] + [Seg(vaddr=0x1000 * n) for n in range(66_000)]
    data = make_elf(segments, type=ET.CORE, phnum=0xFFFF, section_zero=(0, 0, 66_001))
    assert Elf(data[:-64]).header.phnum == 66_001


def test_a_hundred_thousand_mappings_are_read() -> None:
    data = make_elf([Seg()] * 100_000, phnum=0xFFFF, section_zero=(0, 0, 100_000))
    assert len(Elf(data).program_rows) == 100_000


def test_section_numbers_beyond_16_bits_are_those_of_section_0() -> None:
    elf = Elf(make_elf((), [Sect(f".s{n}") for n in range(66_000)]))
    assert (elf.header.shnum, elf.header.shstrndx) == (66_002, 66_001)
    assert elf.sections[66_000].name == ".s65999"


def test_wider_program_headers_than_known_are_stepped_over() -> None:
    elf = Elf(make_elf([Seg(vaddr=1), Seg(vaddr=2)], phentsize=72))
    assert [segment.vaddr for segment in elf.segments] == [1, 2]


# ------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF", "neither ELF32 nor ELF64"),
        (b"\x7fELF\x03\x01\x01" + bytes(57), "neither ELF32 nor ELF64"),
        (b"\x7fELF\x02\x00\x01" + bytes(57), "neither ELF32 nor ELF64"),
        (make_elf()[:63], "ends within its ELF header"),
        (make_elf([Seg()], phentsize=8), "e_phentsize is 8"),
    ],
)
def test_what_is_no_elf_file_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        Elf(data, "file")


def test_a_segment_that_the_file_cuts_short_has_the_data_that_are_there() -> None:
    whole = make_elf([Seg(vaddr=0x1000, data=b"x" * 100)])
    elf = Elf(whole[: whole.index(b"xx") + 60])
    assert (len(elf.segments[0].data), elf.segments[0].file_size) == (60, 100)
    assert not elf.at(0x1000 + 80)


def test_counts_that_lie_are_cut_to_what_the_file_holds() -> None:
    data = bytearray(make_elf([Seg()], [Sect(".a")], phnum=60_000))
    data[60:62] = struct.pack("<H", 0xFF00)
    elf = Elf(data)
    assert len(elf.program_headers) < 10
    assert len(elf.sections) == 3


def test_a_section_beyond_the_files_end_is_empty() -> None:
    elf = Elf(make_elf((), [Sect(".a", data=b"abc", size=1 << 62), Sect(".b", SHT.NOBITS, size=9)]))
    huge, nobits = elf.section(".a"), elf.section(".b")
    assert huge is not None
    assert nobits is not None
    assert bytes(elf.data(huge)).startswith(b"abc")
    assert len(elf.data(huge)) < 1000
    assert not elf.data(nobits)


def everything(data: bytes) -> None:
    """Asks for all that an ELF file can tell; each question may be refused by itself."""
    image = Image(Elf(data))
    elf = image.elf
    vaddrs = [0, 1, 0x1139, 1 << 63, *(segment.vaddr for segment in elf.segments)]
    questions: list[Callable[[], object]] = [
        lambda: [elf.data(section) for section in elf.sections],
        lambda: [bytes(segment.data) for segment in elf.segments],
        lambda: list(elf.notes()),
        lambda: (elf.build_id, elf.dynamic, elf.describe()),
        lambda: [list(section.entries()) for section in image.frame_sections],
        lambda: [[section.find(v) for v in vaddrs] for section in image.frame_sections],
        lambda: [image.symbols.find(vaddr) for vaddr in (*vaddrs, *vaddrs)],
        lambda: (list(image.symbols), image.symbols.named("main"), image.unwind_kinds),
    ]
    for question in questions:
        try:
            question()
        except UnwindError:
            pass


@given(st.integers(0, 1 << 20))
def test_any_prefix_of_a_file_gives_values_or_an_unwind_error(size: int) -> None:
    data = program()
    try:
        everything(data[: size % len(data)])
    except UnwindError:
        pass


@given(st.data())
def test_damaged_files_give_values_or_an_unwind_error(choose: st.DataObject) -> None:
    data = bytearray(program() if choose.draw(st.booleans()) else without_sections(program()))
    tables = [(0, 64), (64, 800), (int.from_bytes(data[40:48], "little"), 64 * 40), (0, len(data))]
    for _ in range(choose.draw(st.integers(1, 8))):
        start, length = choose.draw(st.sampled_from(tables))
        at = (start + choose.draw(st.integers(0, length - 1))) % len(data)
        data[at] = choose.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 0x10]))
    try:
        everything(bytes(data))
    except UnwindError:
        pass


# ------------------------------------------------------------------ compressed sections


@pytest.mark.parametrize("style", ["zlib-gabi", "zlib-gnu"])
def test_sections_that_objcopy_compressed_are_the_ones_before(style: str, tmp_path: Path) -> None:
    need("objcopy")
    plain = build(tmp_path, "-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    packed = tmp_path / "packed"
    done = run("objcopy", f"--compress-debug-sections={style}", plain, packed)
    assert done.returncode == 0, done.stderr
    sizes = 0
    for name in (".debug_frame", ".debug_info", ".debug_str", ".debug_line"):
        before, after = mapped(plain), mapped(packed)
        old, new = before.section(name), after.section(name)
        assert old is not None
        assert new is not None
        assert before.data(old) == after.data(new)
        sizes += old.size - new.size
    assert sizes > 0


def compressed(kind: int, size: int, stream: bytes, shape: Shape = (64, "little")) -> Elf:
    order = "<" if shape[1] == "little" else ">"
    layout = "IIQQ" if shape[0] == 64 else "III"
    numbers = (kind, 0, size, 1) if shape[0] == 64 else (kind, size, 1)
    header = struct.pack(order + layout, *numbers)
    return Elf(
        make_elf((), [Sect(".debug_x", data=header + stream, flags=SHF.COMPRESSED)], shape=shape)
    )


def unpacked(elf: Elf) -> bytes:
    section = elf.section(".debug_x")
    assert section is not None
    return bytes(elf.data(section))


@shapes
def test_zlib_headers_are_read_in_every_class_and_byte_order(shape: Shape) -> None:
    assert unpacked(compressed(1, 500, zlib.compress(b"x" * 500), shape)) == b"x" * 500


def test_a_compressed_section_gives_no_more_than_it_claims() -> None:
    assert unpacked(compressed(1, 10, zlib.compress(bytes(1 << 24)))) == bytes(10)
    assert unpacked(compressed(1, 0, zlib.compress(bytes(1 << 24)))) == b""


@pytest.mark.parametrize(
    ("elf", "reason"),
    [
        (compressed(1, 100, b"no stream"), "damaged zlib data"),
        (compressed(1, 1 << 40, zlib.compress(b"x")), "bytes when decompressed"),
        (compressed(1, 1 << 24, zlib.compress(bytes(1 << 24))), "bytes when decompressed from"),
        (compressed(7, 100, b""), "unknown method, 7"),
        (Elf(make_elf((), [Sect(".debug_x", flags=SHF.COMPRESSED)])), "no room"),
    ],
)
def test_damaged_compression_is_refused_by_name(elf: Elf, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        unpacked(elf)
    assert caught.value.where == ".debug_x"


def test_zstd_is_read_where_there_is_a_package_for_it() -> None:
    zstandard = pytest.importorskip("zstandard")
    text = b"some text " * 1000
    packed = zstandard.ZstdCompressor().compress(text)
    assert unpacked(compressed(2, len(text), packed)) == text
    assert unpacked(compressed(2, 7, packed)) == text[:7]
    with pytest.raises(FormatError, match="damaged zstd data"):
        unpacked(compressed(2, len(text), b"\0" + packed[1:]))


def test_zstd_without_its_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingPackage, match=r"unwind-core\[zstd\]"):
        unpacked(compressed(2, 10, b""))


# ------------------------------------------------------------------ notes


def note(name: bytes, kind: int, data: bytes, pad: int = 4, order: str = "<") -> bytes:
    head = struct.pack(order + "III", len(name) + 1, len(data), kind) + name + b"\0"
    head += bytes(-len(head) % pad)
    return head + data + bytes(-len(data) % pad)


@pytest.mark.parametrize("align", [0, 1, 4, 8])
def test_notes_are_padded_to_four_bytes_or_to_eight(align: int) -> None:
    pad = 8 if align == 8 else 4
    data = note(b"GNU", 5, b"12345", pad) + note(b"CORE", 1, b"abc", pad)
    found = list(Elf(make_elf([Seg(PT.NOTE, data, align=align)])).notes())
    assert [(n.name, n.type, bytes(n.data)) for n in found] == [
        (b"GNU", 5, b"12345"),
        (b"CORE", 1, b"abc"),
    ]


def test_a_note_that_is_cut_short_has_the_data_that_are_there() -> None:
    data = note(b"CORE", 1, b"first!") + note(b"CORE", 2, b"x" * 64)[:-24]
    found = list(Elf(make_elf([Seg(PT.NOTE, data, align=4)])).notes())
    assert [len(n.data) for n in found] == [6, 40]


@pytest.mark.parametrize("field", [0, 4])
def test_a_note_with_a_size_that_lies_ends_the_notes(field: int) -> None:
    data = bytearray(note(b"CORE", 1, b"data") + note(b"CORE", 2, b"data"))
    data[field : field + 4] = b"\xff\xff\xff\xff"
    assert len(list(Elf(make_elf([Seg(PT.NOTE, bytes(data), align=4)])).notes())) <= 1


def test_notes_to_which_many_headers_point_are_not_read_each_time() -> None:
    """A core of 400 KB once took 20 s: 2,000 program headers, each for the same notes."""
    data = note(b"CORE", 1, b"data") * 1000
    made = bytearray(make_elf([Seg(PT.NOTE, data, align=4)] * 100))
    elf = Elf(made)
    first = elf.program_rows[0]
    for index in range(1, 100):
        struct.pack_into("<Q", made, elf.header.phoff + 56 * index + 8, first[2])
    cut = len(data) + 56 * 100 + 4096  # the file ends behind the first one's notes
    found = sum(1 for _ in Elf(made[:cut]).notes())
    assert 1000 <= found <= cut // 24


@shapes
def test_a_build_id_is_found_by_segment_or_by_section(shape: Shape) -> None:
    data = note(b"GNU", 3, b"\xaa\xbb", order="<" if shape[1] == "little" else ">")
    by_segment = make_elf([Seg(PT.NOTE, data, align=4)], shape=shape)
    by_section = make_elf((), [Sect(".note.gnu.build-id", SHT.NOTE, data)], shape=shape)
    debug_file = make_elf(
        [Seg(PT.NOTE, b"\1" * len(data), align=4)],
        [Sect(".note.gnu.build-id", SHT.NOTE, data)],
        shape=shape,
    )
    for made in (by_segment, by_section, debug_file):
        assert Elf(made).build_id == b"\xaa\xbb"
    assert Elf(make_elf(shape=shape)).build_id is None


def test_a_debug_file_has_the_build_id_of_its_program(tmp_path: Path) -> None:
    need("objcopy")
    path = build(tmp_path, "-g", "-Wl,--build-id")
    debug = tmp_path / "program.debug"
    assert run("objcopy", "--only-keep-debug", path, debug).returncode == 0
    assert mapped(debug).build_id == mapped(path).build_id is not None


# ------------------------------------------------------------------ loaded images


def memories(data: bytearray, base: int) -> list[Memory]:
    """The same memory in one view, without any, and in two pieces that meet within a page."""
    split = len(data) // 2 + 100
    pieces = [Span(base, data[:split]), Span(base + split, data[split:])]
    return [Span(base, data), Readable(base, data), Layers(pieces)]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["one view", "no view", "two views"])
def test_a_loaded_image_holds_what_its_file_does(kind: int) -> None:
    file = Elf(program())
    found = Elf.from_memory(memories(loaded(file), BASE)[kind], BASE, "program")
    assert found.bias == BASE
    assert found.build_id == file.build_id
    assert found.program_headers == file.program_headers
    assert found.dynamic == file.dynamic
    assert found.sections == ()
    assert [bytes(s.data) for s in found.segments] == [bytes(s.data) for s in file.segments]
    text = next(s for s in file.segments if s.executable)
    assert found.at(text.vaddr + 5, 9) == file.at(text.vaddr + 5, 9)


def test_a_program_loaded_where_it_was_linked_has_no_bias() -> None:
    image = make_elf([Seg(vaddr=0x40_0000, data=b"")])
    size = len(image)
    image = make_elf([Seg(vaddr=0x40_0000, file_size=size)])
    patched = bytearray(image)
    patched[64 + 8 : 64 + 16] = bytes(8)  # p_offset: the segment holds the header
    elf = Elf.from_memory(Span(0x40_0000, bytes(patched)), 0x40_0000)
    assert elf.bias == 0
    assert bytes(elf.at(0x40_0000, 4)) == b"\x7fELF"


def test_a_bias_below_zero_is_one_of_64_bits() -> None:
    image = bytearray(make_elf([Seg(vaddr=0x40_0000)]))
    image[64 + 8 : 64 + 16] = bytes(8)
    elf = Elf.from_memory(Span(0x1000, bytes(image)), 0x1000)
    assert elf.bias == (0x1000 - 0x40_0000) & (1 << 64) - 1


def test_pages_that_cannot_be_read_are_absent_and_those_behind_them_are_not() -> None:
    file = Elf(program())
    memory = Readable(BASE, loaded(file), {0x1000})
    elf = Elf.from_memory(memory, BASE)
    rodata = next(s for s in file.segments if s.vaddr > 0x1000 and not s.executable)
    assert not elf.at(0x1000)
    assert elf.at(rodata.vaddr, 8) == file.at(rodata.vaddr, 8)


def test_only_what_is_asked_for_is_read_from_memory() -> None:
    memory = Readable(BASE, loaded(Elf(program())))
    elf = Elf.from_memory(memory, BASE)
    assert elf.build_id is not None
    assert [segment.executable for segment in elf.segments].count(True) == 1
    assert memory.reads < 12


def test_memory_without_an_elf_header_is_refused() -> None:
    for memory in (Span(BASE, bytes(4096)), Span(0, b""), Readable(BASE, bytes(8192), {0})):
        with pytest.raises(FormatError):
            Elf.from_memory(memory, BASE)
    with pytest.raises(FormatError, match="no loaded segment holds the ELF header"):
        Elf.from_memory(Span(BASE, make_elf([Seg(PT.NOTE)])), BASE)


def test_the_vdso_of_this_process_can_be_read_from_its_memory() -> None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            break
    else:
        pytest.skip("this process has no vdso")
    with open("/proc/self/mem", "rb", buffering=0) as file:
        file.seek(start)
        elf = Elf.from_memory(Span(start, file.read(end - start)), start, "[vdso]")
    assert elf.header.type == ET.DYN
    assert elf.build_id is not None
    assert dict(elf.dynamic)[DT.SYMTAB]


def test_pointers_of_a_loaded_dynamic_section_are_found_relocated_or_not() -> None:
    elf = Elf.from_memory(Span(BASE, loaded(Elf(program()))), BASE)
    symtab = dict(elf.dynamic)[DT.SYMTAB]
    assert elf.to_vaddr(symtab) == symtab
    assert elf.to_vaddr(symtab + BASE) == symtab
    assert elf.to_vaddr(0x7000_0000) is None


def test_a_sparse_file_that_claims_everything_costs_little(tmp_path: Path) -> None:
    """Its tables would take more memory than there is."""
    data = bytearray(make_elf([Seg(vaddr=0x1000, data=b"x")] * 3, [Sect(".symtab", SHT.SYMTAB)]))
    shoff = int.from_bytes(data[40:48], "little")
    for section in (1, 2):  # the symbols, and the names of the sections
        data[shoff + 64 * section + 32 : shoff + 64 * section + 40] = (1 << 40).to_bytes(
            8, "little"
        )
    data[60:62] = bytes(2)
    data[shoff + 32 : shoff + 40] = (1 << 36).to_bytes(8, "little")
    path = tmp_path / "sparse"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(1 << 33)
    done = python(
        "-c",
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))\n"
        "from pathlib import Path; from tests.elves import mapped; from unwind.image import Image\n"
        "image = Image(mapped(Path(sys.argv[1])))\n"
        "print(image.symbols.find(0x1000), list(image.elf.notes()), image.build_id)\n",
        path,
        timeout=60,
    )
    assert done.stdout.split() == ["None", "[]", "None"], done.stderr
