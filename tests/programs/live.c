/* SPDX-License-Identifier: MIT */
/*
 * Programs to be looked at while they run: what is done to them must not show.
 *
 * usage: live depths N    N threads at depths 1 to N, every second one asleep, the others
 *                         running; then the first thread sleeps
 *        live works       threads that notice everything that is done to them; at the end
 *                         of standard input `fine` and counts, or what was wrong
 *        live births      threads that make threads, each of which ends at once
 *        live forks       children that end at once, without end
 *        live execs N     itself, N times over, each time with two more threads
 */
#include "truth.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

/* ---------------------------------------------------------------------- depths */

static volatile int never;	/* so that functions seem to return */

NOINLINE long rest(long which)
{
	ENTER();
	if (!never)
		PARK();
	return which;
}

NOINLINE long turn(long which)
{
	ENTER();
	if (!never)
		SPIN();
	return which;
}

/* A frame of another size for each depth, unless its CFA is to be known by sp alone. */
#ifdef PLAIN_FRAMES
#define ROOM(depth)	((volatile char[40]) { 0 })
#else
#define ROOM(depth)	((volatile char *)__builtin_alloca(16 * ((depth) % 7) + 8))
#endif

NOINLINE long descend(long depth, long which)
{
	ENTER();
	volatile char *room = ROOM(depth);

	room[0] = depth;
	if (depth > 1)
		return descend(depth - 1, which) + room[0];
	return (which % 2 ? turn(which) : rest(which)) + room[0];
}

NOINLINE void *begin(void *argument)
{
	ENTER();
	long which = (long)argument;

	return (void *)descend(which + 1, which);
}

NOINLINE int depths(long count)
{
	ENTER();
	pthread_attr_t attributes;
	pthread_t thread;
	long i;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	for (i = 0; i < count; i++)
		if (pthread_create(&thread, &attributes, begin, (void *)i))
			return 2;
	truth_wait(count);
	CRASH();
	return 0;
}

/* ----------------------------------------------------------------------- works */

static volatile int over;
static volatile const char *wrong;
static volatile sig_atomic_t signals;
static long exchanged, slept, computed;

static void complain(const char *what)
{
	wrong = what;
}

/* One byte to and fro: a read that is disturbed is resumed, none is lost or comes twice. */
static void *echo(void *argument)
{
	int *pipes = (int *)argument;
	unsigned char byte;

	while (read(pipes[0], &byte, 1) == 1)
		if (write(pipes[3], &byte, 1) != 1)
			complain("echo: write");
	return NULL;
}

static void *call(void *argument)
{
	int *pipes = (int *)argument;
	unsigned char sent = 0, found;

	while (!over) {
		sent++;
		if (write(pipes[1], &sent, 1) != 1)
			complain("call: write");
		if (read(pipes[2], &found, 1) != 1)
			complain(strerror(errno));
		if (found != sent)
			complain("call: another byte");
		exchanged++;
	}
	close(pipes[1]);
	return NULL;
}

static void *sleeper(void *argument)
{
	(void)argument;
	while (!over) {
		struct timespec nap = { 0, 1000 * 1000 };

		if (nanosleep(&nap, NULL))
			complain("nanosleep ended early");
		slept++;
	}
	return NULL;
}

static void *computer(void *argument)
{
	unsigned long state = 1, i, sum = 0;

	(void)argument;
	while (!over) {
		for (state = 1, i = 0, sum = 0; i < 100000; i++) {
			state = state * 6364136223846793005UL + 1442695040888963407UL;
			sum ^= state >> 33;
		}
		if (sum != 1580401545UL)
			complain("computer: another sum");
		computed++;
	}
	return NULL;
}

static void on_signal(int number)
{
	(void)number;
	signals++;
}

static int works(void)
{
	pthread_t threads[4];
	int pipes[4];
	char byte;
	sigset_t all;

	signal(SIGRTMIN, on_signal);
	if (pipe(pipes) || pipe(pipes + 2))
		return 2;
	/* Signals are for the first thread alone: a nap may then last as long as it was to. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	pthread_create(&threads[0], NULL, echo, pipes);
	pthread_create(&threads[1], NULL, call, pipes);
	pthread_create(&threads[2], NULL, sleeper, NULL);
	pthread_create(&threads[3], NULL, computer, NULL);
	pthread_sigmask(SIG_UNBLOCK, &all, NULL);
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) == 1)
		;
	over = 1;
	pthread_join(threads[1], NULL);
	pthread_join(threads[2], NULL);
	pthread_join(threads[3], NULL);
	printf("%s exchanged=%ld slept=%ld computed=%ld signals=%d\n",
	       wrong ? (const char *)wrong : "fine", exchanged, slept, computed, (int)signals);
	return wrong ? 1 : 0;
}

/* ---------------------------------------------------- births, forks and execs */

static void *brief(void *argument)
{
	return argument;
}

static void *mother(void *argument)
{
	pthread_t thread;

	for (;;)
		if (!pthread_create(&thread, NULL, brief, argument))
			pthread_join(thread, NULL);
	return NULL;
}

static int births(void)
{
	pthread_t thread;
	int i;

	for (i = 0; i < 3; i++)
		pthread_create(&thread, NULL, mother, NULL);
	puts("ready");
	fflush(stdout);
	mother(NULL);
	return 0;
}

static int forks(void)
{
	puts("ready");
	fflush(stdout);
	for (;;) {
		pid_t child = fork();
		int status;

		if (child == 0)
			_exit(3);
		if (child < 0 || waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 3)
			return 1;
	}
}

static void *sleep_on(void *argument)
{
	for (;;)
		poll(NULL, 0, -1);
	return argument;
}

static int execs(char **argv, long left)
{
	char text[32];
	pthread_t thread;

	pthread_create(&thread, NULL, sleep_on, NULL);
	pthread_create(&thread, NULL, sleep_on, NULL);
	if (left == 0) {
		puts("over");
		return 9;
	}
	snprintf(text, sizeof(text), "%ld", left - 1);
	argv[2] = text;
	execv("/proc/self/exe", argv);
	return 1;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long count = argc > 2 ? atol(argv[2]) : 0;

	if (!strcmp(mode, "works"))
		return works();
	if (!strcmp(mode, "births"))
		return births();
	if (!strcmp(mode, "forks"))
		return forks();
	if (!strcmp(mode, "execs"))
		return execs(argv, count);
	ENTER();
	return depths(count) != 0;
}
