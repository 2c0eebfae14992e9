/* SPDX-License-Identifier: MIT */
/*
 * A program that crashes right after it has made a thread, which has not run yet: it
 * stands behind clone()'s system call, with copies of its maker's registers.  All runs on
 * one processor, first in, first out, where that is permitted; else the thread may win.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static int work(void *argument)
{
	(void)argument;
	for (;;)
		pause();
}

__attribute__((noinline)) static int make(void)
{
	size_t size = 64 * 1024;
	char *stack = malloc(size);
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;

	return clone(work, stack + size, flags, NULL);
}

int main(void)
{
	struct sched_param lowest = { .sched_priority = 1 };
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	sched_setscheduler(0, SCHED_FIFO, &lowest);
	make();
	*(volatile int *)0 = 0;
	return 0;
}
