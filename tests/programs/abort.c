/* SPDX-License-Identifier: MIT */
/*
 * abort(): a noreturn call out of the program's last instruction, and some frames of
 * libc on top of which it is not the program's business to know.
 */
#include "truth.h"

NOINLINE void give_up(void)
{
	ENTER();
	truth_self->state = TRUTH_CRASHED;
	CALLING("abort");
	abort();
}

NOINLINE long check(long n)
{
	ENTER();
	if (n)
		give_up();
	return n;
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argv;
	return check(argc) != 0;
}
