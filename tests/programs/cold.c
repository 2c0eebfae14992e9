/* SPDX-License-Identifier: MIT */
/*
 * The unlikely halves of functions live elsewhere, as work.cold: with an FDE of
 * their own, whose first row is already that of a function half way through.
 *
 * usage: cold call | fault    the frame in question has called, or faulted itself
 */
#include "truth.h"

/* A call to this is what makes a block a cold one. */
__attribute__((cold)) NOINLINE long warn(long n)
{
	ENTER();
	return n + 1;
}

__attribute__((cold)) NOINLINE long complain(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long ordinary(long n)
{
	ENTER();
	return n * 2;
}

NOINLINE long work(long n, int how)
{
	ENTER();
	volatile char room[96];
	long sum = 0, i;

	for (i = 0; i < n; i++) {
		room[i % 96] = i;
		sum += ordinary(i) + room[i % 96];
	}
	if (__builtin_expect(how == 1, 0))
		return complain(sum) + room[3];
	return sum;
}

NOINLINE long hurt(long n, int how)
{
	ENTER();
	long sum = ordinary(n);

	if (__builtin_expect(how == 2, 0)) {
		sum += warn(sum);
		CRASH();
	}
	return work(n, how) + sum;
}

int main(int argc, char **argv)
{
	ENTER();
	return hurt(9, argc > 1 && !strcmp(argv[1], "fault") ? 2 : 1) != 0;
}
