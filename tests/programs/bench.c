/* SPDX-License-Identifier: MIT */
/*
 * The cores of tools/bench.py: threads that sleep at the end of stacks as a program
 * has them, with functions of many shapes called from many places.  Then the first
 * thread crashes.
 *
 * usage: bench [threads, the first one included [frames of all threads together]]
 *
 * The number of frames is met to a few per cent: what libc adds differs.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define NOINLINE	__attribute__((noinline, noclone))
#define INLINE		static inline __attribute__((always_inline))

/* Small, so that a thousand of them fit into a small core. */
#define STACK_SIZE	(64 * 1024)

/* What a thread has beside the frames that deeper() counts, on average. */
#define OTHER_FRAMES	3

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static int silent_pipe[2];
static long asleep;
static long mean_depth;

NOINLINE long evaluate(long depth, unsigned int seed);
NOINLINE long call(long depth, unsigned int seed);
NOINLINE long sum(long depth, unsigned int seed);
NOINLINE long product(long depth, unsigned int seed);
NOINLINE long branch(long depth, unsigned int seed);
NOINLINE long loop(long depth, unsigned int seed);
NOINLINE long sort(long depth, unsigned int seed);
NOINLINE long array(long depth, unsigned int seed);

/* The end of the stack: a system call, in one of four wrappers of libc. */
NOINLINE long sleep_for_ever(unsigned int seed)
{
	char byte;

	__atomic_fetch_add(&asleep, 1, __ATOMIC_SEQ_CST);
	switch (seed % 4) {
	case 0:
		return pause();
	case 1:
		return read(silent_pipe[0], &byte, 1);
	case 2:
		return poll(NULL, 0, -1);
	default:
		pthread_mutex_lock(&mutex);
		for (;;)
			pthread_cond_wait(&never, &mutex);
	}
}

/* Inlined into each function, so that each calls the others from places of its own. */
INLINE long deeper(long depth, unsigned int seed)
{
	if (depth <= 0)
		return sleep_for_ever(seed >> 8);
	seed = seed * 1664525 + 1013904223;
	switch (seed >> 24) {
	case 0 ... 49:
		return evaluate(depth - 1, seed);
	case 50 ... 99:
		return call(depth - 1, seed);
	case 100 ... 149:
		return sum(depth - 1, seed);
	case 150 ... 189:
		return product(depth - 1, seed);
	case 190 ... 219:
		return branch(depth - 1, seed);
	case 220 ... 245:
		return loop(depth - 1, seed);
	case 246 ... 249:
		return sort(depth - 3, seed);
	default:
		return array(depth - 1, seed);
	}
}

NOINLINE long evaluate(long depth, unsigned int seed)
{
	return deeper(depth, seed) + 1;
}

NOINLINE long call(long depth, unsigned int seed)
{
	volatile long arguments[6] = { depth, seed };

	return deeper(depth, seed) + arguments[0];
}

NOINLINE long sum(long depth, unsigned int seed)
{
	return depth + deeper(depth, seed) + seed;
}

/* Wants every callee-saved register. */
NOINLINE long product(long depth, unsigned int seed)
{
	volatile long start = depth;
	long a = start, b = start * 3, c = start * 5, d = start * 7, e = start * 11;
	long result = deeper(depth, seed);

	return result * (a ^ b) * (c ^ d) * e;
}

NOINLINE long branch(long depth, unsigned int seed)
{
	if (seed & 1024)
		return deeper(depth, seed) ^ depth;
	return deeper(depth, seed + 1) ^ seed;
}

NOINLINE long loop(long depth, unsigned int seed)
{
	volatile char text[200];
	long total = 0;

	text[seed % sizeof(text)] = 1;
	for (int i = 0; i < 2; i++)
		total += deeper(depth, seed) + text[i];
	return total;
}

/* Out of libc again, by a callback. */
static __thread struct { long depth; unsigned int seed; } sorted;

static int compare(const void *a, const void *b)
{
	return deeper(sorted.depth, sorted.seed) + (a < b) > 0;
}

NOINLINE long sort(long depth, unsigned int seed)
{
	long pair[2] = { depth, seed };

	sorted.depth = depth;
	sorted.seed = seed;
	qsort(pair, 2, sizeof(*pair), compare);
	return pair[0];
}

/* A frame of a size that nobody knows beforehand: its CFA hangs on rbp. */
NOINLINE long array(long depth, unsigned int seed)
{
	volatile char items[16 + seed % 64];

	items[0] = depth;
	return deeper(depth, seed) + items[0];
}

NOINLINE void *work(void *argument)
{
	long which = (long)argument;
	long depth = mean_depth / 2 + which * 7919 % (mean_depth + 1);

	return (void *)(deeper(depth, which * 2654435761u) + which);
}

NOINLINE long crash(volatile int *nowhere)
{
	*nowhere = 1;
	return *nowhere;
}

int main(int argc, char **argv)
{
	long threads = argc > 1 ? atol(argv[1]) : 2;
	long frames = argc > 2 ? atol(argv[2]) : 31 * threads;
	pthread_attr_t attributes;
	pthread_t thread;

	mean_depth = frames / threads > OTHER_FRAMES ? frames / threads - OTHER_FRAMES : 1;
	if (pipe(silent_pipe))
		return 2;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	for (long i = 1; i < threads; i++) {
		if (pthread_create(&thread, &attributes, work, (void *)i)) {
			perror("pthread_create");
			return 2;
		}
	}
	/* They say so just before they fall asleep: leave them the time to do it. */
	while (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST) < threads - 1)
		usleep(1000);
	usleep(100 * 1000);
	return crash(NULL) != 0;
}
