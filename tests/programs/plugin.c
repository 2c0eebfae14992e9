/* SPDX-License-Identifier: MIT */
/* A library that dlopen.c loads; a second build of it (-DOTHER) takes its place. */
#define TRUTH_LIBRARY
#include "truth.h"

#ifdef OTHER
/* Everything lies elsewhere than in the first build. */
__attribute__((aligned(64))) long plugin_filler(long n)
{
	volatile long room[999];

	room[n] = n;
	return room[n / 2];
}
#endif

NOINLINE long plugin_crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long plugin_call(long (*callback)(long), long n)
{
	ENTER();
	volatile char room[321];

	room[n] = 1;
	return callback(n) + room[n];
}

NOINLINE long plugin_entry(long (*callback)(long), long n)
{
	ENTER();
	long a = n * 3, b = n * 5, c = n * 7, d = n * 11;
	long r = plugin_call(callback, n);

	return r + (a ^ b) + (c ^ d);
}
