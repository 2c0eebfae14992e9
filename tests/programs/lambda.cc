/* SPDX-License-Identifier: MIT */
/*
 * Names that only C++ can make: lambdas (one called back from libc's qsort),
 * templates with types, values and packs, operators, an anonymous namespace.
 */
#include "truth.h"

namespace {

template <int N> struct Countdown {
	template <typename F> static NOINLINE int run(F &&function)
	{
		ENTER();
		return Countdown<N - 1>::run(function) + N;
	}
};

template <> struct Countdown<0> {
	template <typename F> static NOINLINE int run(F &&function)
	{
		ENTER();
		return function(1, 2.0) + 1;
	}
};

template <typename... Types> NOINLINE int spread(Types... values)
{
	ENTER();
	int all[] = { (int)values... };

	auto compare = [](const void *a, const void *b) NOINLINE -> int {
		ENTER_AS("operator()");
		if (*(const int *)a)
			CRASH();
		return *(const int *)a - *(const int *)b;
	};
	TRUTH_CALL(TRUTH_FOREIGN, "qsort|qsort_r", qsort, all, sizeof...(values), sizeof(int), compare);
	return all[0];
}

struct Money {
	int cents;

	NOINLINE Money operator+(const Money &other) const
	{
		ENTER_AS("operator+");
		return { cents + spread(1, 2L, 3u, 'c', other.cents) };
	}
	NOINLINE bool operator<(const Money &other) const
	{
		ENTER_AS("operator<");
		return (*this + other).cents < 100;
	}
	NOINLINE explicit operator bool() const
	{
		ENTER_AS("operator bool");
		return *this < Money{ 7 };
	}
};

} /* namespace */

int main(int argc, char **argv)
{
	ENTER();
	int captured = argc;
	auto inner = [&captured](auto a, auto b) NOINLINE {
		ENTER_AS("operator()");
		Money money{ captured };

		captured += bool(money);
		return a + int(b);
	};

	(void)argv;
	return Countdown<3>::run(inner);
}
