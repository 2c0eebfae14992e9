/* SPDX-License-Identifier: MIT */
/*
 * Frames whose size is known at run time only: VLA, alloca, a realigned stack with
 * stack arguments (gcc: DRAP, a CFA given by an expression), and one of 100 KB.
 */
#include "truth.h"

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long huge(long n)
{
	ENTER();
	volatile char room[100 * 1024];

	room[n] = 1;
	return crash(n) + room[n];
}

/* Arguments on the stack, locals that want 64-byte alignment, and alloca. */
NOINLINE long realigned(long a, long b, long c, long d, long e, long f, long on_stack, long n)
{
	ENTER();
	volatile char line[64] __attribute__((aligned(64)));
	volatile char *more = (volatile char *)__builtin_alloca(n * 24);

	line[0] = more[0] = on_stack;
	if ((uintptr_t)line % 64)
		abort();
	return huge(n) + a + b + c + d + e + f + on_stack + line[0] + more[0];
}

/* Realigned, but of fixed size. */
NOINLINE long vector(long n)
{
	ENTER();
	volatile char line[128] __attribute__((aligned(128)));

	line[n] = 1;
	if ((uintptr_t)line % 128)
		abort();
	return realigned(1, 2, 3, 4, 5, 6, 7, n) + line[n];
}

NOINLINE long allocating(long n)
{
	ENTER();
	long sum = 0;
	long i;

	for (i = 1; i < 4; i++) {
		volatile char *room = (volatile char *)__builtin_alloca(i * n);

		room[0] = i;
		sum += room[0];
	}
	return vector(n) + sum;
}

NOINLINE long variable_array(long n)
{
	ENTER();
	volatile long room[n];

	room[n - 1] = n;
	return allocating(n) + room[n - 1];
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argv;
	return variable_array(argc * 33) != 0;
}
