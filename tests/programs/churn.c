/* SPDX-License-Identifier: MIT */
/*
 * Allocates and frees, in threads, at several depths; now and then it keeps a block.
 *
 * usage: churn threads rate seconds depth
 *
 * It begins with each line that it reads: `rate` pairs of malloc and free a second in all (0: as
 * many as it can, 200,000 in all), for so many seconds, and then prints how many there were,
 * and the nanoseconds of one of them.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NOINLINE __attribute__((noinline, noclone))
#define AT_ONCE 64	/* pairs between two looks at the clock */
#define KEPT 256	/* blocks, of each thread; the oldest is freed */

static long rate, seconds, depth, threads;

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

NOINLINE static void *take(long size)
{
	void *p = malloc(size);

	__asm__ volatile("" : "+r"(p) : : "memory");
	return p;
}

NOINLINE static void *deeper(long left, long size)
{
	void *p = left > 0 ? deeper(left - 1, size) : take(size);

	__asm__ volatile("" : "+r"(p) : : "memory");
	return p;
}

static void *work(void *argument)
{
	static __thread void *kept[KEPT];
	long long begin = now();
	long pairs = 0, most = rate ? rate * seconds / threads : 200000 / threads;

	while (pairs < most) {
		for (long n = 0; n < AT_ONCE; n++, pairs++) {
			void *p = deeper(pairs % depth, 16 + pairs % 500);

			if (pairs % 100) {
				free(p);
			} else {
				free(kept[pairs / 100 % KEPT]);
				kept[pairs / 100 % KEPT] = p;
			}
		}
		if (rate) {
			long long due = begin + pairs * 1000000000ll / (rate / threads);
			struct timespec until = { due / 1000000000, due % 1000000000 };

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		}
	}
	*(long *)argument = pairs;
	return NULL;
}

int main(int argc, char **argv)
{
	long done[64] = { 0 };
	pthread_t known[64];

	if (argc < 5)
		return 1;
	threads = atol(argv[1]);
	rate = atol(argv[2]);
	seconds = atol(argv[3]);
	depth = atol(argv[4]);
	for (int c; (c = getchar()) != EOF;) {
		long long begin = now();
		long pairs = 0;

		if (c != '\n')
			continue;
		for (long n = 0; n < threads; n++)
			if (pthread_create(&known[n], NULL, work, &done[n]))
				return 1;
		for (long n = 0; n < threads; n++) {
			pthread_join(known[n], NULL);
			pairs += done[n];
		}
		printf("%ld %.1f\n", pairs, (double)(now() - begin) / pairs);
		fflush(stdout);
	}
	return 0;
}
