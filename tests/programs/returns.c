/* SPDX-License-Identifier: MIT */
/* Calls and returns without end: main, outer, middle (twice), inner. */
#include <unistd.h>

__attribute__((noinline)) int inner(int n)
{
	__asm__ volatile("" ::: "memory");
	return n + 1;
}

__attribute__((noinline)) int middle(int depth)
{
	if (depth > 0)
		return middle(depth - 1) + 1;
	return inner(depth) + 1;
}

__attribute__((noinline)) int outer(int depth)
{
	return middle(depth) + 1;
}

int main(void)
{
	for (;;) {
		outer(1);
		usleep(1000);
	}
}
