/* SPDX-License-Identifier: MIT */
/*
 * Code that is made at run time, as an interpreter makes it: each function enters the next one by
 * a jump, with a return address that it has put on the stack itself.  HotSpot's does so.
 *
 * usage: made JUMPS
 */
#include "truth.h"

typedef long (*made)(long jumps, long (*last)(void));

extern const char made_begin[], made_after[], made_end[];

static char *page;
static long jumps;

NOINLINE long last(void)
{
	for (long n = 0; n < jumps; n++)
		truth_push(TRUTH_CALLED, "made", (truth_word)(page + (made_after - made_begin)));
	ENTER_FOR_GOOD();
	CRASH();
	return jumps;
}

NOINLINE long run(void)
{
	ENTER();
	TRUTH_CALL(TRUTH_CALLED, "made", (made)(void *)page, jumps, last);
	return 1;
}

int main(int argc, char **argv)
{
	ENTER();
	int protection = PROT_READ | PROT_WRITE | PROT_EXEC;

	jumps = argc > 1 ? atoi(argv[1]) : 3;
	page = mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(page, made_begin, made_end - made_begin);
	return run() != 0;
}
