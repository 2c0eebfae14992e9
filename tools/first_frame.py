"""What the first frame by emulation costs: ELF files in, milliseconds out.

    python -m tools.first_frame /usr/lib/x86_64-linux-gnu/libc.so.6

A sample of the functions of up to 500 instructions is asked for a row, each in an image of which
nothing is known yet but its header; then for another row of the same function. A function counts
with the part of it that the compiler moved away, and the other way round. FDEs tell which
functions there are, as symbols would; what is to be had from them is not. CPU time of this process,
with capstone imported. `--untold` takes symbols and FDEs away: all of the code is looked through.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time

from tools.agreement import each_fde
from unwind.disassembly import disassembler
from unwind.elf import Elf
from unwind.functions import Functions
from unwind.image import Image
from unwind.machine import CodeModel
from unwind.registry import architecture
from unwind.starts import FoundStarts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.machine import Instruction

_LONGEST = 500  # instructions
_SOON = 2e-3


def main() -> int:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description="What the first frame by emulation costs.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--count", type=int, default=300, help="so many functions")
    parser.add_argument("--untold", action="store_true", help="without the starts of functions")
    options = parser.parse_args()
    print(f"{'':24} {'median':>9} {'9 of 10':>9} {'most':>9} {'again':>9}  (ms) {'< 2 ms':>9}")
    for path in options.files:
        first, again = measure(Path(path).read_bytes(), options.count, options.untold)
        shown = [first[len(first) // 2], first[len(first) * 9 // 10], first[-1], again[-1]]
        cells = "{:9.2f} {:9.2f} {:9.2f} {:9.2f}".format(*(1e3 * time for time in shown))
        soon = sum(time < _SOON for time in first) / len(first)
        print(f"{Path(path).name:24} {cells} {soon:15.1%} of {len(first)} functions")
    return 0


def measure(data: bytes, count: int, untold: bool) -> tuple[list[float], list[float]]:
    """Seconds for the first row of each function and for the next, both ascending."""
    image = Image(Elf(data))
    code_model = architecture(image.elf).code_model
    if code_model is None:
        raise SystemExit("no code model for this machine")
    model = code_model()
    gc.set_threshold(100_000)  # as the commands have it
    gc.freeze()  # what was there before is not part of it
    starts = [fde.start for fde in each_fde(image) if fde.end - fde.start > 1]
    chosen = random.Random(1).sample(starts, min(count, len(starts)))
    times = [times for start in chosen if (times := _one(data, model, start, untold))]
    return sorted(first for first, _ in times), sorted(again for _, again in times)


def _one(data: bytes, model: CodeModel, start: int, untold: bool) -> tuple[float, float] | None:
    """The time of a row near the start and of another one; None for a longer function."""
    disassemble, followed = disassembler(model), 0

    def counted(code: bytes, vaddr: int) -> Sequence[Instruction]:
        nonlocal followed
        found = disassemble(code, vaddr)
        followed += len(found)
        return found

    image = Image(Elf(data))
    began = process_time()
    functions = Functions(image, model, counted, FoundStarts(image, model, counted, untold))
    table = functions.table(start)
    if table is not None:
        table.row(start)
    first = process_time() - began
    once = followed
    table = functions.table(start + 1)
    if table is not None:
        table.row(start + 1)
    again = process_time() - began - first
    assert followed == once, "disassembled twice"
    if untold:  # and all of the code was disassembled
        low, high = functions.bounds(start) or (start, start)
        followed = len(disassemble(bytes(image.at(low, high - low)), low))
    return (first, again) if followed <= _LONGEST else None


if __name__ == "__main__":
    sys.exit(main())
