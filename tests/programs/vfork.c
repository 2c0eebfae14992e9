/* SPDX-License-Identifier: MIT */
/*
 * Two processes on one stack.
 *
 * usage: vfork child    the child crashes while its parent waits
 *        vfork parent   a thread waits in vfork(), whose return address is in a
 *                       register then and no longer on the stack; another one crashes
 */
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long child_work(long n)
{
	ENTER();
	volatile char room[99];

	/* From here on the list is the child's; the parent leaves without a word. */
	truth_self->tid = syscall(SYS_gettid);
	room[n] = 1;
	return crash(n) + room[n];
}

NOINLINE long child_crashes(long n)
{
	ENTER();
	pid_t child = vfork();

	if (child == 0)
		child_work(n);
	_exit(0);
}

/* Keep the parent waiting until it is dead, or for ten seconds at most. */
NOINLINE void linger(pid_t parent)
{
	struct timespec nap = { 0, 10 * 1000 * 1000 };
	int i;

	for (i = 0; i < 1000 && getppid() == parent; i++)
		nanosleep(&nap, NULL);
	_exit(0);
}

NOINLINE void *wait_for_child(void *argument)
{
	ENTER();
	pid_t (*volatile callee[2])(void) = { (pid_t (*)(void))(void *)truth_probe, vfork };
	pid_t parent = getpid();
	pid_t child;

	truth_next_kind = TRUTH_FOREIGN;
	truth_next_name = "vfork";
	PARKING();
	for (volatile int i = 0; i < 2; i++) {
		child = callee[i]();
		if (child == 0)
			linger(parent);
	}
	return argument;
}

NOINLINE void *thread_main(void *argument)
{
	ENTER();
	return wait_for_child(argument);
}

NOINLINE long parent_waits(long n)
{
	ENTER();
	pthread_t thread;

	if (pthread_create(&thread, NULL, thread_main, NULL))
		return 2;
	truth_wait(1);
	return crash(n);
}

int main(int argc, char **argv)
{
	ENTER();
	return argc > 1 && !strcmp(argv[1], "parent") ? parent_waits(1) : child_crashes(1);
}
