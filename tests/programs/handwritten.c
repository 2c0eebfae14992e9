/* SPDX-License-Identifier: MIT */
/*
 * A walk through every kind of rule that hand-written CFI can state, one function
 * each.  Between two of them stands a step() whose CFA hangs on the frame pointer, so
 * a register restored wrongly shows in the very next frame.
 *
 * usage: handwritten rules       all of them in one stack
 *        handwritten outermost   the last one says that the stack ends with it
 */
#include "truth.h"

typedef void (*next_function)(void);
typedef void (*rule_function)(next_function next, void *room);

/* handwritten_<arch>.S: each calls `next` once. */
extern void expression(next_function next, void *room);
extern void val_expression(next_function next, void *room);
extern void cfa_expression(next_function next, void *room);
extern void remember_restore(next_function next, void *room);
extern void args_size(next_function next, void *room);
extern void return_in_register(next_function next, void *room);
extern void saved_in_register(next_function next, void *room);
extern void odd_cfa_register(next_function next, void *room);
extern void outermost(next_function next, void *room);

/* This one calls `inner`, which calls `next`, with the frame pointer between them. */
extern void pointer_into_stack(next_function next, rule_function inner);
extern void val_offset(next_function next, void *room);
extern void above_cfa(next_function next, void *room);
extern void negative_offset(next_function next, void *room);
extern const truth_word pointer_into_stack_return;

static const struct rule {
	const char *name;
	rule_function function;
	const char *inner;
	rule_function inner_function;
} rules[] = {
	{ "expression", expression, NULL, NULL },
	{ "val_expression", val_expression, NULL, NULL },
	{ "cfa_expression", cfa_expression, NULL, NULL },
	{ "remember_restore", remember_restore, NULL, NULL },
	{ "args_size", args_size, NULL, NULL },
	{ "return_in_register", return_in_register, NULL, NULL },
	{ "saved_in_register", saved_in_register, NULL, NULL },
	{ "odd_cfa_register", odd_cfa_register, NULL, NULL },
	{ "pointer_into_stack", (rule_function)pointer_into_stack, "val_offset", val_offset },
	{ "pointer_into_stack", (rule_function)pointer_into_stack, "above_cfa", above_cfa },
	{ "pointer_into_stack", (rule_function)pointer_into_stack, "negative_offset",
	  negative_offset },
};

#define RULES	(sizeof(rules) / sizeof(rules[0]))

static unsigned int position;
static long elsewhere[RULES + 1][8];
static int ends;

NOINLINE void crash(void)
{
	ENTER();
	CRASH();
}

NOINLINE void step(void)
{
	const char *inner = position ? rules[position - 1].inner : NULL;

	/* `inner` cannot tell: it was called by assembler, whose label knows from where. */
	if (inner)
		truth_push(TRUTH_CALLED, inner, pointer_into_stack_return);
	ENTER();
	const struct rule *rule = &rules[position];
	volatile char *room = (volatile char *)__builtin_alloca(40 + position * 16);
	void *argument = elsewhere[position];

	room[0] = 1;
	if (position == RULES) {
		if (ends)
			TRUTH_CALL(TRUTH_OUTERMOST, "outermost", outermost, crash, argument);
		crash();
	}
	position++;
	if (rule->inner)
		argument = (void *)(uintptr_t)rule->inner_function;
	TRUTH_CALL(TRUTH_CALLED, rule->name, rule->function, step, argument);
	room[1] = 1;
}

int main(int argc, char **argv)
{
	ENTER();
	ends = argc > 1 && !strcmp(argv[1], "outermost");
	step();
	return 0;
}
