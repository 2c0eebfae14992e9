/* SPDX-License-Identifier: MIT */
/*
 * Two functions call each other until the stack is full.
 *
 * Where exactly it ends is for the kernel to say: a handler on a stack of its own
 * notes the pc and goes back to fault once more, this time for good.  It may be in a
 * prologue, before the function could say ENTER().
 */
#ifndef TRUTH_DEPTH
#define TRUTH_DEPTH	200000
#endif
#undef TRUTH_THREADS
#define TRUTH_THREADS	2
#include "truth.h"

#include <sys/resource.h>

#define STACK_SIZE	(4 * 1024 * 1024)

/* ENTER() without a call: a call may find no room for its return address. */
#define ENTER_INLINE() \
	truth_push_inline(TRUTH_CALLED, __func__, (truth_word)__builtin_return_address(0))

NOINLINE long odd(long n);

NOINLINE long even(long n)
{
	volatile char room[16];

	ENTER_INLINE();
	room[0] = n;
	return odd(n + 1) + room[0];
}

NOINLINE long odd(long n)
{
	volatile char room[40];

	ENTER_INLINE();
	room[0] = n;
	return even(n + 1) + room[0];
}

NOINLINE long begin(long n)
{
	ENTER();
	return even(n) + 1;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)info;
	truth_self->pc = TRUTH_INTERRUPTED(context);
	truth_self->state = TRUTH_OVERFLOWED;
	signal(number, SIG_DFL);
}

int main(int argc, char **argv)
{
	ENTER();
	static char stack[64 * 1024];
	struct sigaction action;
	struct rlimit limit = { STACK_SIZE, STACK_SIZE };
	stack_t alternate;

	(void)argv;
	/* The stack of the first thread grows by the limit as it is at that time. */
	setrlimit(RLIMIT_STACK, &limit);
	memset(&alternate, 0, sizeof(alternate));
	alternate.ss_sp = stack;
	alternate.ss_size = sizeof(stack);
	sigaltstack(&alternate, NULL);
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_fault;
	action.sa_flags = SA_SIGINFO | SA_ONSTACK;
	sigaction(SIGSEGV, &action, NULL);
	return begin(argc) != 0;
}
