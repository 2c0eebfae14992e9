/* SPDX-License-Identifier: MIT */
/*
 * Crashes where a function has not yet set up its frame, or no longer has it.
 *
 * usage: places entry | prologue | epilogue | leaf | tail
 *        places delay | call-delay    MIPS: in the delay slot of a return, of a call
 *        places ... handler           and then, once more, in the handler of that
 */
#include "truth.h"

/* places_<arch>.S: the functions, and the pc at which each of them faults. */
typedef long (*place_function)(long n, char *null);
extern long crash_on_entry(long n, char *null), crash_in_prologue(long n, char *null);
extern long crash_in_epilogue(long n, char *null), crash_in_leaf(long n, char *null);
extern long crash_after_tail_call(long n, char *null);
extern const truth_word crash_on_entry_pc, crash_in_prologue_pc, crash_in_epilogue_pc;
extern const truth_word crash_in_leaf_pc, crash_after_tail_call_pc;
#ifdef __mips__
extern long crash_in_delay_slot(long n, char *null);
extern long crash_in_delay_slot_of_call(long n, char *null);
extern const truth_word crash_in_delay_slot_pc, crash_in_delay_slot_of_call_pc;
#endif

static const struct place {
	const char *mode;
	const char *name;
	place_function function;
	const truth_word *pc;
} places[] = {
	{ "entry", "crash_on_entry", crash_on_entry, &crash_on_entry_pc },
	{ "prologue", "crash_in_prologue", crash_in_prologue, &crash_in_prologue_pc },
	{ "epilogue", "crash_in_epilogue", crash_in_epilogue, &crash_in_epilogue_pc },
	{ "leaf", "crash_in_leaf", crash_in_leaf, &crash_in_leaf_pc },
	/* A tail call leaves no frame: the function that faults is the one jumped to. */
	{ "tail", "tail_callee", crash_after_tail_call, &crash_after_tail_call_pc },
#ifdef __mips__
	{ "delay", "crash_in_delay_slot", crash_in_delay_slot, &crash_in_delay_slot_pc },
	{ "call-delay", "crash_in_delay_slot_of_call", crash_in_delay_slot_of_call,
	  &crash_in_delay_slot_of_call_pc },
#endif
};

NOINLINE long crash(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE void on_fault(int number, siginfo_t *info, void *context)
{
	ENTER_HANDLER(context);
	(void)info;
	crash(number);
}

NOINLINE void handle(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_fault;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGSEGV, &action, NULL);
}

NOINLINE long visit(const struct place *place)
{
	ENTER();
	/* The CFA hangs on the frame pointer here, which the callee has to give back. */
	volatile char *room = (volatile char *)__builtin_alloca(100 + (place - places) * 16);

	room[0] = 1;
	CRASHING_AT(*place->pc);
	TRUTH_CALL(TRUTH_CALLED, place->name, place->function, room[0], NULL);
	return room[0];
}

int main(int argc, char **argv)
{
	ENTER();
	size_t i;

	if (argc > 2)
		handle();
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		if (argc > 1 && !strcmp(argv[1], places[i].mode))
			return visit(&places[i]) != 0;
	}
	return 2;
}
