/* SPDX-License-Identifier: MIT */
/*
 * Many threads, each at a depth of its own, asleep in four different ways; then
 * the first thread crashes.
 *
 * usage: threads [how many, besides the first [one depth for all [raw]]]
 *
 * raw: all sleep in a system call of their own, none in libc.
 */
#include "truth.h"

#include <pthread.h>

static pthread_mutex_t never_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static int silent_pipe[2];
static long spinners;
static long one_depth;
static int raw;

/* The pc is known to the instruction. */
NOINLINE long park(long n)
{
	ENTER();
	PARK();
	return n;
}

/* A system call behind libc's wrapper. */
NOINLINE long park_in_pause(long n)
{
	ENTER();
	PARKING();
	TRUTH_CALL(TRUTH_FOREIGN, "pause", pause);
	return n;
}

NOINLINE long park_in_read(long n)
{
	ENTER();
	char byte;

	PARKING();
	/* Not by read() itself: that of glibc 2.41 leaves by a tail call, and is no frame. */
	TRUTH_CALL(TRUTH_FOREIGN, "syscall", syscall, SYS_read, silent_pipe[0], &byte, 1);
	return n + byte;
}

/* Several frames deep in libc, most of them without a symbol in a stripped one. */
NOINLINE long park_in_wait(long n)
{
	ENTER();
	pthread_mutex_lock(&never_mutex);
	PARKING();
	TRUTH_CALL(TRUTH_FOREIGN, "pthread_cond_wait", pthread_cond_wait, &never, &never_mutex);
	return n;
}

/* Not asleep at all: caught wherever it is. */
NOINLINE long spin(long n)
{
	ENTER();
	SPIN();
	return n;
}

NOINLINE long descend(long depth, long which)
{
	ENTER();
	volatile char room[64];

	room[0] = depth;
	if (depth > 0)
		return descend(depth - 1, which) + room[0];
	if (raw)
		return park(which);
	if (spinners && which == 1)
		return spin(which);
	switch (which % 4) {
	case 0:
		return park(which);
	case 1:
		return park_in_pause(which);
	case 2:
		return park_in_read(which);
	default:
		return park_in_wait(which);
	}
}

NOINLINE void *thread_main(void *argument)
{
	ENTER();
	long which = (long)argument;
	long depth = one_depth ? one_depth : which * 7 % 41;

	return (void *)descend(depth, which);
}

NOINLINE long crash(long depth)
{
	ENTER();
	if (depth > 0)
		return crash(depth - 1) + 1;
	CRASH();
	return depth;
}

int main(int argc, char **argv)
{
	ENTER();
	long count = argc > 1 ? atol(argv[1]) : 63;
	pthread_attr_t attributes;
	pthread_t thread;
	long i;

	one_depth = argc > 2 ? atol(argv[2]) : 0;
	spinners = !one_depth;
	raw = argc > 3;
	if (pipe(silent_pipe))
		return 2;
	/* Small stacks: a core should hold a thousand of them. */
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	for (i = 0; i < count; i++) {
		if (pthread_create(&thread, &attributes, thread_main, (void *)i)) {
			perror("pthread_create");
			return 2;
		}
	}
	truth_wait(count);
	return crash(5);
}
