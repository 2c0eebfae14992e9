/* SPDX-License-Identifier: MIT */
/*
 * A second fault in the handler of the first.
 *
 * usage: signals altstack    the handler has a stack of its own
 *        signals samestack   it runs on the stack that faulted
 *        signals nested      one handler interrupted in turn by another
 *        signals entry       the interrupted pc is the first byte of a function
 *        signals thread      a thread is interrupted by a signal and stays in the
 *                            handler; then the first thread crashes
 */
#include "truth.h"

#include <pthread.h>

/* signals_<arch>.S: faults at its first instruction. */
#ifdef FAULT_ON_ENTRY
extern long fault_on_entry(long n, char *null);
#endif

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long clean_up(long n)
{
	ENTER();
	volatile char room[200];

	room[n] = 1;
	return crash(n) + room[n];
}

NOINLINE void on_fault(int number, siginfo_t *info, void *context)
{
	ENTER_HANDLER(context);
	(void)info;
	clean_up(number);
}

NOINLINE long fault(long n)
{
	ENTER();
	FAULT();
	return n + 1;
}

NOINLINE void on_user_signal(int number, siginfo_t *info, void *context)
{
	ENTER_HANDLER(context);
	(void)info;
	fault(number);
}

NOINLINE void park(void)
{
	ENTER();
	PARK();
}

NOINLINE void on_interruption(int number, siginfo_t *info, void *context)
{
	ENTER_HANDLER(context);
	(void)number;
	(void)info;
	park();
}

/* kill(getpid(), SIGUSR1), whose handler runs before the next instruction. */
NOINLINE long interrupt(long n)
{
	ENTER();
	syscall(SYS_getpid);
	TRUTH_CALL(TRUTH_FOREIGN, "raise", raise, SIGUSR1);
	return n;
}

NOINLINE long fault_by_mode(const char *mode)
{
	ENTER();
	if (!strcmp(mode, "nested"))
		return interrupt(1);
#ifdef FAULT_ON_ENTRY
	if (!strcmp(mode, "entry"))
		TRUTH_CALL(TRUTH_CALLED, "fault_on_entry", fault_on_entry, 1, NULL);
#endif
	return fault(1);
}

NOINLINE void spin(void)
{
	ENTER();
	SPIN();
}

NOINLINE void *thread_main(void *argument)
{
	ENTER();
	spin();
	return argument;
}

NOINLINE long interrupt_a_thread(long n)
{
	ENTER();
	pthread_t thread;

	if (pthread_create(&thread, NULL, thread_main, NULL))
		return 2;
	truth_wait(1);
	pthread_kill(thread, SIGUSR2);
	while (__atomic_load_n(&truth_map->thread[1].state, __ATOMIC_SEQ_CST) != TRUTH_PARKED)
		usleep(1000);
	truth_wait(1);
	return crash(n);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = handler;
	action.sa_flags = SA_SIGINFO | flags;
	sigaction(number, &action, NULL);
}

int main(int argc, char **argv)
{
	ENTER();
	const char *mode = argc > 1 ? argv[1] : "altstack";
	stack_t stack;

	memset(&stack, 0, sizeof(stack));
	stack.ss_size = 64 * 1024;
	stack.ss_sp = malloc(stack.ss_size);
	sigaltstack(&stack, NULL);
	if (!strcmp(mode, "thread"))
		handle(SIGUSR2, on_interruption, 0);
	else
		handle(SIGSEGV, on_fault, strcmp(mode, "samestack") ? SA_ONSTACK : 0);
	handle(SIGUSR1, on_user_signal, 0);
	if (!strcmp(mode, "thread"))
		return interrupt_a_thread(1);
	return fault_by_mode(mode);
}
