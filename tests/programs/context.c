/* SPDX-License-Identifier: MIT */
/*
 * A coroutine made by makecontext() crashes: its stack ends where its entry function
 * returns to, and says nothing of who switched to it.
 *
 * With -DTAGGED (arm64 alone, -march=armv8.5-a+memtag) its stack is of tagged memory
 * (MTE): the stack pointer, and with it each frame record and each saved frame pointer,
 * has a tag in its upper byte, and an access with another tag faults.
 */
#include "truth.h"

#include <ucontext.h>
#ifdef TAGGED
#include <sys/prctl.h>
#ifndef PROT_MTE
#define PROT_MTE	0x20
#endif
#ifndef PR_MTE_TCF_SYNC
#define PR_MTE_TCF_SYNC		(1UL << 1)
#define PR_MTE_TAG_SHIFT	3
#endif
#define GRANULE		16
#define NOT_TAG_0	(0xfffeUL << PR_MTE_TAG_SHIFT)	/* irg is to give one that shows */
#endif

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

#ifdef TAGGED
/* Memory whose granules, and the pointer to it, have a tag of the processor's choice. */
NOINLINE char *stack_of(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_MTE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE |
					  PR_MTE_TCF_SYNC | NOT_TAG_0, 0, 0, 0))
		_exit(3);
	__asm__("irg	%0, %0" : "+r"(memory));
	for (size_t at = 0; at < size; at += GRANULE)
		__asm__ volatile("stg	%0, [%0]" : : "r"(memory + at) : "memory");
	if (!((uintptr_t)memory >> 56))
		_exit(3);	/* no tags here */
	return memory;
}
#else
#define stack_of(size)	malloc(size)
#endif

NOINLINE void resume(void)
{
	ENTER();
	size_t size = 64 * 1024;

	getcontext(&coroutine);
	coroutine.uc_stack.ss_sp = stack_of(size);
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
