"""Mending: a stack that was cut for want of a file in, the same with what servers have of it out.

A walk asks nobody. It is over when a module turns out to be lacking, which is fetched then and
takes its place, and the walk is taken once more: so of three hundred modules of a process only the
ten are fetched that are on its stacks.
"""

from __future__ import annotations

import os

from unwind.debuginfod.assembled import with_debug_frame, with_eh_frame
from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.frames import End
from unwind.image import Image
from unwind.modules import State

__all__ = ["Mender"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.files import Files
    from unwind.frames import Stack
    from unwind.modules import Module
    from unwind.protocols import Memory
    from unwind.snapshot import Snapshot
    from unwind.unwinder import Unwinder

_MOST_SECTION = 1 << 28  # bytes of one section that are looked at
_MOST_WALKS = 100  # of one stack; each brings a module that it lacked


class Mender:
    """Fetches what stacks lack, by the servers of `files`.

    With `files.sparing` only stacks that were cut are mended, and of a program just the sections
    are fetched that tell its frames, where a server does that. Otherwise a module without a file
    is fetched whole, for its names.
    """

    def __init__(self, files: Files, unwinder: Unwinder):
        self.files, self.unwinder = files, unwinder
        self.warnings: list[str] = []
        self._known: dict[tuple[bytes, bool], Image | None] = {}

    def mend(self, snapshot: Snapshot) -> Stack:
        """The stack, walked with all that could be had; its address space has that from now on."""
        stack = self.unwinder.unwind(snapshot)
        for _ in range(_MOST_WALKS):
            if not self._exchanged(snapshot, stack):
                break
            stack = self.unwinder.unwind(snapshot)
        return stack

    def _exchanged(self, snapshot: Snapshot, stack: Stack) -> bool:
        """Whether a module that the stack lacks was found, and put into its space."""
        for module in self._lacking(stack):
            if module.build_id is None or module not in snapshot.space.modules:
                continue
            image = self._image(module, module.build_id, snapshot.memory)
            if image is not None and image is not module.image:
                new = module.replace(image=image, file=image.path, state=State.OK)
                snapshot.space.exchange(module, new)
                _lend(new, snapshot.memory)
                return True
        return False

    def _lacking(self, stack: Stack) -> Iterator[Module]:
        """The modules of frames that should have more, the innermost first."""
        if self.files.sparing and stack.end == End.OUTERMOST:
            return
        for frame in stack.frames:
            if frame.module is not None and frame.module.image is None:
                yield frame.module
        if stack.end in (End.NO_ROW, End.NO_MODULE) and stack.frames:
            module = stack.frames[-1].module
            if module is not None and module.image is not None and module.image.debug is None:
                yield module

    def _image(self, module: Module, build_id: bytes, memory: Memory) -> Image | None:
        """A better image of the module than it has; None where none is to be had."""
        key = build_id, module.image is None
        if key not in self._known:
            if module.image is not None:
                self._known[key] = self._with_debug_frame(module.image, module, build_id)
            else:
                self._known[key] = self._whole_or_parts(module, build_id, memory)
        return self._known[key]

    def _whole_or_parts(self, module: Module, build_id: bytes, memory: Memory) -> Image | None:
        parts = self._parts(module, build_id, memory) if self.files.sparing else None
        return parts or self.files.fetched(build_id, "executable", module.name)

    def _parts(self, module: Module, build_id: bytes, memory: Memory) -> Image | None:
        """The program as memory shows it, with its CFI from a server."""
        try:
            program = Elf.from_memory(memory, module.start, module.name)
            if program.build_id != build_id:
                return None
            pieces = [self._section(module, n) for n in (".eh_frame_hdr", ".eh_frame")]
            header, eh_frame = pieces
            if not header or not eh_frame:
                return None
            return Image(Elf(with_eh_frame(program, header, eh_frame), module.name))
        except FormatError as error:
            self.warnings.append(f"{module.name}: {error}; it was not used")
            return None

    def _with_debug_frame(self, image: Image, module: Module, build_id: bytes) -> Image | None:
        """A program that has no CFI, with that of its debug file."""
        debug = None
        if self.files.sparing and (section := self._section(module, ".debug_frame")):
            try:
                debug = Image(Elf(with_debug_frame(image.elf, section), f"{module.name}.debug"))
            except FormatError as error:
                self.warnings.append(f"{module.name}: {error}; it was not used")
        debug = debug or self.files.fetched(build_id, "debuginfo", module.name)
        if debug is None or "debug_frame" not in debug.unwind_kinds:
            return None
        return Image(image.elf, image.path, debug=lambda _: debug)

    def _section(self, module: Module, section: str) -> bytes:
        """The contents of a section, none where no server gives them."""
        servers, build_id = self.files.servers, module.build_id
        if servers is None or build_id is None:
            return b""
        path = servers.section(build_id, section, f"{module.name.rpartition('/')[2]} {section}")
        if path is None:
            return b""
        try:
            with open(path, "rb") as file:
                return file.read(min(os.fstat(file.fileno()).st_size, _MOST_SECTION))
        except OSError:
            return b""


def _lend(module: Module, memory: Memory) -> None:
    """Have the code of a fetched file where memory lacks it: guesses look at what calls there.

    As a source does it with the files that it finds (`mappings.modules_of`).
    """
    back = getattr(memory, "back", None)
    if back is None or module.image is None:
        return
    for segment in module.image.segments:
        if segment.executable and not segment.writable:
            back(module.to_pc(segment.vaddr), segment.data)
