"""Memories: all the bytes or a fault, never made-up zeroes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.errors import MemoryFault
from unwind.memory import Layers, Patch, Recording, Span, view_of


def test_a_span_gives_exactly_what_it_holds() -> None:
    span = Span(0x1000, b"abcdef")
    assert span.read(0x1000, 6) == b"abcdef"
    assert span.read(0x1005, 1) == b"f"


@pytest.mark.parametrize(("address", "size"), [(0xFFF, 1), (0x1006, 1), (0x1005, 2), (0x1000, -1)])
def test_a_span_faults_beyond_its_ends(address: int, size: int) -> None:
    with pytest.raises(MemoryFault) as caught:
        Span(0x1000, b"abcdef").read(address, size)
    assert (caught.value.address, caught.value.size) == (address, size)


def test_the_first_layer_that_holds_the_bytes_answers() -> None:
    layers = Layers([Span(0x10, b"front"), Span(0x10, b"behind everything")])
    assert layers.read(0x10, 5) == b"front"
    assert layers.read(0x17, 3) == b"eve"


def test_a_read_may_run_from_one_layer_into_the_next() -> None:
    layers = Layers([Span(0x10, b"0123"), Span(0x14, b"4567")])
    assert layers.read(0x12, 4) == b"2345"


def test_a_hole_between_layers_faults() -> None:
    with pytest.raises(MemoryFault):
        Layers([Span(0x10, b"0123"), Span(0x15, b"567")]).read(0x12, 4)


@given(st.binary(min_size=1, max_size=40), st.data())
def test_layers_of_pieces_read_like_the_whole(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    start = draw.draw(st.integers(0, len(data) - 1))
    size = draw.draw(st.integers(1, len(data) - start))
    layers = Layers([Span(100 + cut, data[cut:]), Span(100, data[:cut])])
    assert layers.read(100 + start, size) == data[start : start + size]


def test_the_reason_of_a_fault_survives_the_layers() -> None:
    class Truncated:
        def read(self, address: int, size: int) -> bytes:
            raise MemoryFault(address, size, "the core is truncated there")

    with pytest.raises(MemoryFault, match="truncated"):
        Layers([Truncated(), Span(0, b"")]).read(0x10, 8)


def test_a_patch_replaces_bytes_across_its_edges() -> None:
    patched = Patch(Span(0, b"........"), {3: b"abc"})
    assert patched.read(0, 8) == b"...abc.."
    assert patched.read(4, 3) == b"bc."


def test_a_recording_keeps_reads_and_faults_in_order() -> None:
    memory = Recording(Span(0, b"ab"))
    memory.read(0, 2)
    with pytest.raises(MemoryFault):
        memory.read(1, 2)
    assert memory.reads == [(0, b"ab"), (1, None)]


def test_a_view_is_offered_by_those_who_have_one() -> None:
    span = Span(0x10, b"abcd")
    assert view_of(span, 0x12) == (0x10, memoryview(b"abcd"))
    assert view_of(Layers([Span(0, b""), span]), 0x12) == (0x10, memoryview(b"abcd"))
    assert view_of(Patch(span, {}), 0x12) is None
