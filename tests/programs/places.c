/* SPDX-License-Identifier: MIT */
/*
 * Crashes where a function has not yet set up its frame, or no longer has it.
 *
 * usage: places entry | prologue | epilogue | leaf | tail
 */
#include "truth.h"

/* places_<arch>.S: the functions, and the pc at which each of them faults. */
extern long crash_on_entry(long n), crash_in_prologue(long n), crash_in_epilogue(long n);
extern long crash_in_leaf(long n), crash_after_tail_call(long n);
extern const truth_word crash_on_entry_pc, crash_in_prologue_pc, crash_in_epilogue_pc;
extern const truth_word crash_in_leaf_pc, crash_after_tail_call_pc;

static const struct place {
	const char *mode;
	const char *name;
	long (*function)(long n);
	const truth_word *pc;
} places[] = {
	{ "entry", "crash_on_entry", crash_on_entry, &crash_on_entry_pc },
	{ "prologue", "crash_in_prologue", crash_in_prologue, &crash_in_prologue_pc },
	{ "epilogue", "crash_in_epilogue", crash_in_epilogue, &crash_in_epilogue_pc },
	{ "leaf", "crash_in_leaf", crash_in_leaf, &crash_in_leaf_pc },
	/* A tail call leaves no frame: the function that faults is the one jumped to. */
	{ "tail", "tail_callee", crash_after_tail_call, &crash_after_tail_call_pc },
};

NOINLINE long visit(const struct place *place)
{
	ENTER();
	/* The CFA hangs on the frame pointer here, which the callee has to give back. */
	volatile char *room = (volatile char *)__builtin_alloca(100 + (place - places) * 16);

	room[0] = 1;
	CRASHING_AT(*place->pc);
	TRUTH_CALL(TRUTH_CALLED, place->name, place->function, room[0]);
	return room[0];
}

int main(int argc, char **argv)
{
	ENTER();
	size_t i;

	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		if (argc > 1 && !strcmp(argv[1], places[i].mode))
			return visit(&places[i]) != 0;
	}
	return 2;
}
