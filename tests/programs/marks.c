/* SPDX-License-Identifier: MIT */
/*
 * Threads that come by one place, mark(), again and again, at all depths, and keep the record of
 * their calls each time: by return addresses, as the functions themselves see them.
 *
 * usage: marks record threads events depth [rate]
 *
 * `events` of each thread, of which `record` ("-": nowhere) has 8 bytes n and n addresses,
 * innermost first, at 8 * (depth + 8) * the number that mark() is called with.  It says "ready",
 * and begins when something, or the end, can be read.  `rate` is events a second of each thread.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST 1024

struct shadow {
	unsigned long count, ra[MOST];
};

static __thread struct shadow shadow;
static unsigned long *record;
static long events, depth, rate;

static inline void leave(const int *unused)
{
	(void)unused;
	shadow.count--;
}

#define ENTER()									\
	int entered __attribute__((cleanup(leave)));				\
	shadow.ra[shadow.count++] = (unsigned long)__builtin_return_address(0)

#define NOINLINE __attribute__((noinline, noclone))

NOINLINE void mark(long id)
{
	__asm__ volatile("" : : "r"(id) : "memory");
}

NOINLINE long keep(long id)
{
	ENTER();
	if (record) {
		unsigned long *slot = record + id * (depth + 8), n = shadow.count;

		slot[0] = n;
		for (unsigned long i = 0; i < n; i++)
			slot[1 + i] = shadow.ra[n - 1 - i];
	}
	mark(id);
	return id;
}

long descend(long left, long id);

NOINLINE long plain(long left, long id)
{
	ENTER();
	return descend(left - 1, id) + 1;
}

/* Wants every register that a call preserves. */
NOINLINE long many(long left, long id)
{
	ENTER();
	volatile long seed = id;
	long a = seed, b = seed * 3, c = seed * 5, d = seed * 7, e = seed * 11, f = seed * 13;
	long r = descend(left - 1, id);

	return r + (a ^ b) + (c ^ d) + (e ^ f);
}

NOINLINE long variable(long left, long id)
{
	ENTER();
	volatile char room[16 + left % 7 * 8];

	room[left % 8] = 1;
	return descend(left - 1, id) + room[left % 8];
}

NOINLINE long descend(long left, long id)
{
	ENTER();
	if (left <= 0)
		return keep(id) + 1;
	switch ((left + id) % 3) {
	case 0:
		return plain(left - 1, id) + 1;
	case 1:
		return many(left - 1, id) + 1;
	default:
		return variable(left - 1, id) + 1;
	}
}

static void *work(void *argument)
{
	ENTER();
	long first = (long)argument * events, sum = 0;
	struct timespec begin, pause = { 0, 0 };

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (long n = 0; n < events; n++) {
		if (rate && n % 16 == 0) {
			long long due = begin.tv_nsec + n * 1000000000ll / rate;

			pause.tv_sec = begin.tv_sec + due / 1000000000;
			pause.tv_nsec = due % 1000000000;
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &pause, NULL);
		}
		sum += descend(n % (depth - 4), first + n);
	}
	return (void *)sum;
}

int main(int argc, char **argv)
{
	long threads = atol(argv[2]);
	pthread_t known[64];
	char go;

	events = atol(argv[3]);
	depth = atol(argv[4]);
	rate = argc > 5 ? atol(argv[5]) : 0;
	if (strcmp(argv[1], "-")) {
		size_t size = 8 * (depth + 8) * threads * events;
		int fd = open(argv[1], O_RDWR | O_CREAT, 0600);

		if (fd < 0 || ftruncate(fd, size))
			return 1;
		record = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (record == MAP_FAILED)
			return 1;
	}
	puts("ready");
	fflush(stdout);
	if (read(0, &go, 1) < 0)
		return 1;
	for (long n = 0; n < threads; n++)
		if (pthread_create(&known[n], NULL, work, (void *)n))
			return 1;
	for (long n = 0; n < threads; n++)
		pthread_join(known[n], NULL);
	return 0;
}
