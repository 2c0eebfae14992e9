/* SPDX-License-Identifier: MIT */
/*
 * A coroutine made by makecontext() crashes: its stack ends where its entry function
 * returns to, and says nothing of who switched to it.
 */
#include "truth.h"

#include <ucontext.h>

static ucontext_t back, coroutine;

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long work(long n)
{
	ENTER();
	volatile char *room = (volatile char *)__builtin_alloca(n * 16);

	room[0] = 1;
	return crash(n) + room[0];
}

NOINLINE void coroutine_main(void)
{
	truth_push(TRUTH_CONTEXT, "__start_context", 0);
	ENTER();
	work(9);
}

NOINLINE void resume(void)
{
	ENTER();
	size_t size = 64 * 1024;

	getcontext(&coroutine);
	coroutine.uc_stack.ss_sp = malloc(size);
	coroutine.uc_stack.ss_size = size;
	coroutine.uc_link = &back;
	makecontext(&coroutine, coroutine_main, 0);
	swapcontext(&back, &coroutine);
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argc;
	(void)argv;
	resume();
	return 0;
}
