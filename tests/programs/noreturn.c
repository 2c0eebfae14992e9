/* SPDX-License-Identifier: MIT */
/*
 * A call to a function that never returns is the last instruction of its caller: the
 * return address lies behind the caller, in the padding or in the next function.
 */
#include "truth.h"

#ifdef __cplusplus
#define NORETURN [[noreturn]]
#else
#define NORETURN _Noreturn
#endif

/* Three of them in a row, so that one is followed by a neighbour without padding. */
NOINLINE NORETURN void die(void)
{
	ENTER();
	CRASH();
	__builtin_unreachable();
}

NOINLINE __attribute__((aligned(1))) void give_up(void)
{
	ENTER();
	die();
}

NOINLINE __attribute__((aligned(1))) void report(void)
{
	ENTER();
	volatile char room[500];

	room[0] = 1;
	give_up();
	room[1] = 1;
}

NOINLINE __attribute__((aligned(1))) NORETURN void fail(long n)
{
	ENTER();
	volatile char room[48];

	room[n % 48] = 1;
	report();
	die();
}

NOINLINE __attribute__((aligned(1))) void check(long n)
{
	ENTER();
	if (n)
		fail(n);
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argv;
	check(argc);
	return 0;
}
