"""Where debug info lies: each place and format as the tools make it, found, used and damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import need, run
from unwind.elf import SHF, Elf
from unwind.errors import MissingPackage
from unwind.files import Files
from unwind.image import Image

SOURCE = """
struct pair { int first; long second; };
int answer(struct pair *p) { return p->first + (int)p->second; }
int main(void) { struct pair p = {40, 2}; return answer(&p) - 42; }
"""
OTHER = SOURCE.replace("pair", "other").replace("42", "43")


def built(where: Path, *flags: str, source: str = SOURCE, name: str = "program") -> Path:
    """A program with debug info, compiled in `where`."""
    need("gcc")
    where.mkdir(parents=True, exist_ok=True)
    (where / f"{name}.c").write_text(source)
    words = ["-g", "-O1", "-Wl,--build-id", *flags, "-o", name, f"{name}.c"]
    run("gcc", *words, cwd=where).check_returncode()
    return where / name


def tool(where: Path, program: str, *words: str) -> None:
    need(program)
    done = run(program, *words, cwd=where)
    assert done.returncode == 0, done.stderr


def opened(path: Path, files: Files) -> Image:
    found = files.image(str(path), None).image
    assert found is not None
    return found


def identity(path: Path) -> bytes:
    found = Elf(path.read_bytes()).build_id
    assert found is not None
    return found


def by_id(directory: Path, build_id: bytes, suffix: str = ".debug") -> Path:
    """The place of a debug file below a directory; its own directory is made."""
    path = directory / ".build-id" / build_id.hex()[:2] / f"{build_id.hex()[2:]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def has_debug_info(image: Image | None) -> bool:
    """Whether the debug info that is found is that of SOURCE."""
    if image is None:
        return False
    section = image.elf.section(".debug_str")
    return section is not None and b"pair\0" in bytes(image.elf.data(section))


# ------------------------------------------------------------------------------- whole debug files


def test_a_debug_file_of_objcopy_is_found_by_build_id(tmp_path: Path) -> None:
    program = built(tmp_path)
    stored = by_id(tmp_path / "debug", identity(program))
    tool(tmp_path, "objcopy", "--only-keep-debug", "program", str(stored))
    tool(tmp_path, "strip", "program")
    image = opened(program, Files(debug_dirs=[str(tmp_path / "debug")]))
    assert image.elf.section(".debug_info") is None
    assert image.debug is not None
    assert image.debug.path == str(stored)
    assert has_debug_info(image.debug)
    assert image.symbols.named("answer")
    assert opened(program, Files()).debug is None


@pytest.mark.parametrize("place", ["", ".debug/", "usr/lib/debug{}/"])
@pytest.mark.parametrize("maker", ["objcopy", "eu-strip"])
def test_a_debuglink_leads_to_the_three_usual_places(
    tmp_path: Path, place: str, maker: str
) -> None:
    program = built(tmp_path / "root/bin", "-Wl,--build-id=none")
    where = program.parent
    if maker == "eu-strip":
        tool(where, "eu-strip", "-f", "program.debug", "program")
    else:
        tool(where, "objcopy", "--only-keep-debug", "program", "program.debug")
        tool(where, "strip", "program")
        tool(where, "objcopy", "--add-gnu-debuglink=program.debug", "program")
    base = tmp_path / "root" if place.startswith("usr") else where
    stored = base / place.format("/bin") / "program.debug"
    stored.parent.mkdir(parents=True, exist_ok=True)
    os.rename(where / "program.debug", stored)
    files = Files(sysroot=str(tmp_path / "root"))
    image = files.image("/bin/program", None).image
    assert image is not None
    assert image.debug is not None
    assert image.debug.path == str(stored)
    assert has_debug_info(image.debug)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1  # one bit: what lies there is not what the CRC is of
    stored.write_bytes(data)
    image = Files(sysroot=str(tmp_path / "root")).image("/bin/program", None).image
    assert image is not None
    assert image.debug is None


def test_minidebuginfo_has_the_names_that_strip_took(tmp_path: Path) -> None:
    program = built(tmp_path)
    tool(tmp_path, "objcopy", "-S", "--keep-symbol=answer", "program", "mini")
    tool(tmp_path, "xz", "mini")
    tool(tmp_path, "strip", "program")
    assert not opened(program, Files()).symbols.named("answer")
    tool(tmp_path, "objcopy", "--add-section", ".gnu_debugdata=mini.xz", "program")
    assert opened(program, Files()).symbols.named("answer")


# ---------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("method", ["zlib", "zlib-gnu", "zstd"])
def test_compressed_sections_are_read_decompressed(tmp_path: Path, method: str) -> None:
    many = SOURCE + "".join(
        f"int long_name_of_number_{n}(void) {{ return {n}; }}" for n in range(99)
    )
    program = built(tmp_path, source=many)
    plain = Elf(program.read_bytes())
    tool(tmp_path, "objcopy", f"--compress-debug-sections={method}", "program", "packed")
    packed = Elf((tmp_path / "packed").read_bytes())
    for name in (".debug_info", ".debug_str", ".debug_abbrev"):
        one, other = plain.section(name), packed.section(name)
        assert one is not None
        assert other is not None
        assert bytes(packed.data(other)) == bytes(plain.data(one))
    section = packed.section(".debug_str")
    assert section is not None
    assert section.flags & SHF.COMPRESSED or section.name == ".zdebug_str"
    assert section.size < len(packed.data(section))


def test_what_is_damaged_of_a_compressed_section_is_an_error_of_ours(tmp_path: Path) -> None:
    from unwind.errors import FormatError

    many = SOURCE + "".join(
        f"int long_name_of_number_{n}(void) {{ return {n}; }}" for n in range(99)
    )
    built(tmp_path, source=many)
    for method in ("zlib", "zstd"):
        tool(tmp_path, "objcopy", f"--compress-debug-sections={method}", "program", "packed")
        data = bytearray((tmp_path / "packed").read_bytes())
        section = Elf(data).section(".debug_str")
        assert section is not None
        for at in range(section.offset, section.offset + section.size, 41):
            broken = bytearray(data)
            broken[at] ^= 0x55
            try:
                Elf(broken).data(section)
            except (FormatError, MissingPackage):
                pass


# --------------------------------------------------------------------------------- what dwz shares


def dwz(where: Path, *flags: str, common: str = "common.debug") -> Elf:
    """The first of two programs whose common debug info `dwz` has moved to a third file."""
    for name in ("one", "two"):
        built(where, source="#include <stdio.h>\n#include <stdlib.h>" + SOURCE, name=name)
    tool(where, "dwz", *flags, "-m", common, "one", "two")
    return opened(where / "one", Files()).elf


@pytest.mark.parametrize("flag", ["--dwarf-4", "--dwarf-5"])
def test_what_dwz_shares_is_found_beside_the_program(tmp_path: Path, flag: str) -> None:
    elf = dwz(tmp_path, *([flag] if flag == "--dwarf-5" else []))
    section = ".debug_sup" if flag == "--dwarf-5" else ".gnu_debugaltlink"
    assert elf.section(section) is not None
    found = Files().alternate(elf)
    assert found is not None
    assert found.path == str(tmp_path / "common.debug")
    assert found.section(".debug_info") is not None
    assert Files().alternate(found) is None


def test_what_dwz_shares_is_found_by_build_id(tmp_path: Path) -> None:
    elf = dwz(tmp_path)
    common = tmp_path / "common.debug"
    stored = by_id(tmp_path / "debug", identity(common))
    os.rename(common, stored)
    assert Files().alternate(elf) is None
    found = Files(debug_dirs=[str(tmp_path / "debug")]).alternate(elf)
    assert found is not None
    assert found.path == str(stored)


@pytest.mark.parametrize("flag", ["", "--dwarf-5"])
def test_another_shared_file_at_the_same_place_is_not_used(tmp_path: Path, flag: str) -> None:
    elf = dwz(tmp_path / "here", *filter(None, [flag]))
    other = tmp_path / "there"
    for name in ("one", "two"):
        built(other, source=OTHER, name=name)
    tool(other, "dwz", *filter(None, [flag]), "-m", "common.debug", "one", "two")
    os.replace(other / "common.debug", tmp_path / "here/common.debug")
    assert Files().alternate(elf) is None


def test_a_shared_file_that_is_damaged_or_no_file_is_none(tmp_path: Path) -> None:
    elf = dwz(tmp_path)
    common = tmp_path / "common.debug"
    common.write_bytes(common.read_bytes()[:40])
    assert Files().alternate(elf) is None
    common.unlink()
    os.mkfifo(common)
    assert Files().alternate(elf) is None


# -------------------------------------------------------------------------------- split debug info


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_split_unit_is_found_where_it_was_written_and_beside_the_program(
    tmp_path: Path, compiler: str
) -> None:
    need(compiler)
    where = tmp_path / "built here"
    where.mkdir()
    (where / "program.c").write_text(SOURCE)
    tool(where, compiler, "-g", "-gsplit-dwarf", "-c", "program.c")
    tool(where, compiler, "-o", "program", "program.o")
    image = opened(where / "program", Files())
    found = Files().split_unit(image, "program.dwo", str(where))
    assert found is not None
    assert found.section(".debug_info.dwo") is not None
    assert Files().split_unit(image, "program.dwo", "/no/longer/there") is not None
    files = Files(module_map={"/elsewhere": str(where)})
    os.rename(where / "program", tmp_path / "program")
    image = opened(tmp_path / "program", files)
    assert Files().split_unit(image, "program.dwo", "/elsewhere") is None
    assert files.split_unit(image, "program.dwo", "/elsewhere") is not None
    (where / "program.dwo").unlink()
    os.mkfifo(where / "program.dwo")
    assert files.split_unit(image, "program.dwo", str(where)) is None


@pytest.mark.parametrize("name", ["/dev/zero", "../../../dev/zero", "", "\0", "x" * 5000, "/"])
def test_the_name_of_a_split_unit_may_be_anything(tmp_path: Path, name: str) -> None:
    image = opened(built(tmp_path), Files())
    for directory in ("", "/", str(tmp_path), "\0", "/dev"):
        assert Files().split_unit(image, name, directory) is None


def test_with_a_sysroot_a_split_unit_comes_from_it(tmp_path: Path) -> None:
    outside = built(tmp_path / "src", "-gsplit-dwarf")
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    os.rename(outside, root / "bin/program")
    files = Files(sysroot=str(root))
    image = files.image("/bin/program", None).image
    assert image is not None
    (name,) = [path.name for path in (tmp_path / "src").glob("*.dwo")]
    assert files.split_unit(image, name, str(tmp_path / "src")) is None
    inside = Path(f"{root}{tmp_path}/src")
    inside.mkdir(parents=True)
    os.rename(tmp_path / "src" / name, inside / name)
    assert files.split_unit(image, name, str(tmp_path / "src")) is not None


@pytest.mark.parametrize("place", ["bin/program.dwp", "usr/lib/debug/bin/program.dwp"])
def test_a_package_of_split_units_is_found(tmp_path: Path, place: str) -> None:
    root = tmp_path / "root"
    program = built(root / "bin", "-gdwarf-4", "-gsplit-dwarf")
    tool(program.parent, "dwp", "-e", "program")
    os.makedirs((root / place).parent, exist_ok=True)
    os.rename(root / "bin/program.dwp", root / place)
    files = Files(sysroot=str(root))
    image = files.image("/bin/program", None).image
    assert image is not None
    found = files.split_package(image.elf, str(program))
    assert found is not None
    assert found.section(".debug_cu_index") is not None
    (root / place).write_bytes(b"\x7fELF")
    assert Files(sysroot=str(root)).split_package(image.elf, str(program)) is None


def test_the_shared_file_lies_where_debian_puts_it(tmp_path: Path) -> None:
    built(tmp_path, name="one")
    built(tmp_path, name="two")
    named = "../../.dwz/x86_64/common.debug"
    tool(tmp_path, "dwz", "-m", "common.debug", "-M", named, "one", "two")
    debug = tmp_path / "usr/lib/debug"
    stored = by_id(debug, identity(tmp_path / "one"))
    os.rename(tmp_path / "one", stored)
    (debug / ".dwz/x86_64").mkdir(parents=True)
    os.rename(tmp_path / "common.debug", debug / ".dwz/x86_64/common.debug")
    for files in (Files(), Files(sysroot=str(tmp_path))):
        found = files.alternate(opened(stored, Files()).elf)
        assert found is not None
        assert os.path.realpath(found.path) == str(debug / ".dwz/x86_64/common.debug")
    os.rename(debug / ".dwz/x86_64/common.debug", debug / ".dwz/common.debug")
    assert Files(debug_dirs=[str(debug)]).alternate(opened(stored, Files()).elf) is not None


def test_a_shared_path_does_not_lead_out_of_the_sysroot(tmp_path: Path) -> None:
    inside = tmp_path / "root/bin"
    inside.mkdir(parents=True)
    elf = dwz(tmp_path / "outside", "-M", f"{tmp_path}/outside/common.debug")
    assert Files().alternate(elf) is not None
    os.rename(tmp_path / "outside/one", inside / "one")
    files = Files(sysroot=str(tmp_path / "root"))
    image = files.image("/bin/one", None).image
    assert image is not None
    assert files.alternate(image.elf) is None


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_compilers_compress_is_read(tmp_path: Path, compiler: str) -> None:
    need(compiler)
    many = "".join(f"int long_name_of_number_{n}(void) {{ return {n}; }}" for n in range(99))
    (tmp_path / "program.c").write_text(SOURCE + many)
    tool(tmp_path, compiler, "-g", "-gz", "-o", "program", "program.c")
    elf = opened(tmp_path / "program", Files()).elf
    section = elf.section(".debug_str")
    assert section is not None
    assert section.flags & SHF.COMPRESSED
    assert b"long_name_of_number_98\0" in bytes(elf.data(section))


def test_damaged_minidebuginfo_costs_its_names_and_no_more(tmp_path: Path) -> None:
    program = built(tmp_path, "-rdynamic")
    tool(tmp_path, "objcopy", "-S", "--keep-symbol=answer", "program", "mini")
    tool(tmp_path, "xz", "mini")
    tool(tmp_path, "strip", "-s", "program")
    tool(tmp_path, "objcopy", "--add-section", ".gnu_debugdata=mini.xz", "program")
    whole = program.read_bytes()
    section = Elf(whole).section(".gnu_debugdata")
    assert section is not None
    survived = 0
    for at in range(section.offset, section.offset + section.size, 53):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        program.unlink()
        program.write_bytes(broken)
        symbols = opened(program, Files()).symbols
        assert symbols.named("main")  # of .dynsym
        survived += bool(symbols.problems)
    assert survived
