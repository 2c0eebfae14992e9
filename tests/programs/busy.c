/*
 * Computes until it is killed: in the main thread, at depth 3, and in as many threads as argv[1]
 * says, thread n, called `busy n`, at depth 4 + n. Each is innermost in `spin`, below `dive`s, below
 * `run`.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static volatile long sum;

__attribute__((noinline, noreturn)) static void spin(void)
{
	for (;;)
		sum++;
}

__attribute__((noinline)) static int dive(int depth)
{
	char room[96];

	snprintf(room, sizeof(room), "%d", depth);
	if (depth == 1)
		spin();
	return dive(depth - 1) + room[0]; /* no tail call */
}

__attribute__((noinline)) static int run(int depth)
{
	return dive(depth) + 1;
}

static void *thread(void *number)
{
	char name[16];

	snprintf(name, sizeof(name), "busy %ld", (long)number);
	pthread_setname_np(pthread_self(), name);
	run(4 + (int)(long)number);
	return NULL;
}

int main(int argc, char **argv)
{
	for (long n = 0; n < (argc > 1 ? atoi(argv[1]) : 0); n++) {
		pthread_t made;
		pthread_create(&made, NULL, thread, (void *)n);
	}
	return run(3) + 1;
}
