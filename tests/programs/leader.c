/* SPDX-License-Identifier: MIT */
/* The first thread has ended long ago when another one crashes. */
#include "truth.h"

#include <pthread.h>

static long leader;

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE void *thread_main(void *argument)
{
	ENTER();
	while (truth_proc_state(leader) != 'Z')
		usleep(1000);
	crash(1);
	return argument;
}

int main(void)
{
	ENTER();
	pthread_t thread;

	leader = syscall(SYS_gettid);
	if (pthread_create(&thread, NULL, thread_main, NULL))
		return 2;
	truth_self->state = TRUTH_GONE;
	pthread_exit(NULL);
}
