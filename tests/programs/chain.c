/* SPDX-License-Identifier: MIT */
/*
 * A plain chain of plain functions: the program behind every question that is
 * about the build (stripped, static, which CFI section, which linker) and not
 * about the code.
 *
 * usage: chain [depth of the recursion]
 */
#include "truth.h"

/* A build may ask for code in a second executable segment, far from the first. */
#ifdef FAR_TEXT
#define FAR	__attribute__((section("far_text")))
#else
#define FAR
#endif

/* MIPS16 cannot say what the crash is made of. */
#ifdef __mips16
#define PLAIN	__attribute__((nomips16))
#else
#define PLAIN
#endif

NOINLINE PLAIN long burn(long n)
{
	ENTER();
	CRASH();
	return n;
}

/* Wants every callee-saved register: six values are alive across the call. */
NOINLINE FAR long many_registers(long n)
{
	ENTER();
	volatile long seed = n;
	long a = seed, b = seed * 3, c = seed * 5, d = seed * 7, e = seed * 11, f = seed * 13;
	long r = burn(n);

	return r + (a ^ b) + (c ^ d) + (e ^ f);
}

/* Frames of a size that no callee-saved register explains. */
NOINLINE long roomy(long n)
{
	ENTER();
	volatile char room[1234];

	room[n % sizeof(room)] = 1;
	return many_registers(n) + room[0];
}

NOINLINE FAR long recurse(long depth)
{
	ENTER();
	if (depth == 0)
		return roomy(depth + 3);
	return recurse(depth - 1) + depth;
}

NOINLINE long begin(long depth)
{
	ENTER();
	return recurse(depth) * 2;
}

int main(int argc, char **argv)
{
	ENTER();
	return begin(argc > 1 ? atol(argv[1]) : 3) != 0;
}
