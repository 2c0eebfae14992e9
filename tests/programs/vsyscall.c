/* SPDX-License-Identifier: MIT */
/*
 * A bad pointer given to the vsyscall page's time(): the kernel emulates the function
 * and lets it fault at its first byte, in a page that no core contains.
 */
#include "truth.h"

#define VSYSCALL_TIME	0xffffffffff600400

typedef long (*time_function)(long *seconds);

NOINLINE long ask(long n)
{
	ENTER();
	volatile char *room = (volatile char *)__builtin_alloca(n * 50);

	room[0] = 1;
	CRASHING_AT(VSYSCALL_TIME);
	TRUTH_CALL(TRUTH_WILD, "", (time_function)VSYSCALL_TIME, (long *)16);
	return room[0];
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argv;
	return ask(argc) != 0;
}
