/* SPDX-License-Identifier: MIT */
/*
 * usage: watched FILE THREADS
 *
 * THREADS - 1 threads sleep, each some thirty frames deep. The first looks at the clock without
 * end, and notes in FILE, 8 bytes, the longest time in nanoseconds for which it could not: who
 * reads that puts a zero there.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) static int deeper(int depth)
{
	volatile char room[64 + 16 * (depth % 5)];

	room[0] = 1;
	if (depth == 0)
		for (;;)
			pause();
	return deeper(depth - 1) + room[0];
}

static void *sleeper(void *unused)
{
	(void)unused;
	deeper(28);
	return NULL;
}

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	int file = open(argv[1], O_RDWR);
	volatile long *longest = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 1 << 17);
	for (int n = 1; n < atoi(argv[2]); n++) {
		pthread_t made;
		if (pthread_create(&made, &small, sleeper, NULL))
			return 3;
	}
	for (long before = now();;) {
		long time = now();
		if (time - before > *longest)
			*longest = time - before;
		before = time;
	}
}
