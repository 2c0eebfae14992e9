"""Short names: templates' arguments folded, and nothing else."""

from __future__ import annotations

import pytest

from unwind.writers.labels import short


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("main", "main"),
        ("std::vector<int, std::allocator<int> >::push_back(int const&)",
         "std::vector<…>::push_back(int const&)"),
        ("f<int>(std::pair<int, A<B> >)", "f<…>(std::pair<…>)"),
        ("operator<(A const&, B<int>)", "operator<(A const&, B<…>)"),
        ("A<int>::operator<< <char>(int)", "A<…>::operator<< <char>(int)"),
        ("A<int>::operator->()", "A<…>::operator->()"),
        ("A::operator<=>(A const&)", "A::operator<=>(A const&)"),
        ("core::mem::take::<alloc::vec::Vec<u8>>", "core::mem::take::<…>"),
        ("<Test as foo::Bar<Test>>::bar", "<Test as foo::Bar<…>>::bar"),
        ("f<&(A::operator->)>()", "f<…>()"),
        ("broken<int", "broken<int"),
        ("a > b", "a > b"),
        ("main.(*T[go.shape.int]).Method", "main.(*T[go.shape.int]).Method"),
    ],
)  # fmt: skip
def test_arguments_of_templates_are_folded(name: str, shown: str) -> None:
    assert short(name) == shown
