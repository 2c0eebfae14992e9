/* SPDX-License-Identifier: MIT */
/*
 * A crash in the procedure linkage table, whose CFI is one row with an expression for
 * all its entries.  The entry's jump faults since the table that it reads is taken away.
 *
 * Built without PIE, so that the address of a library's function is its PLT entry.
 */
#include "truth.h"

#include <link.h>

extern ElfW(Dyn) _DYNAMIC[];

/* How far into an entry the table is read. */
#ifdef __x86_64__
#define READS	0
#else
#define READS	4
#endif

NOINLINE long jump(long (*function)(long), char *page)
{
	ENTER();
	volatile char *room = (volatile char *)__builtin_alloca(48);
	long (*volatile callee[2])(long) = { (long (*)(long))(void *)truth_probe, function };

	room[0] = 1;
	CRASHING_AT((char *)function + READS);
	truth_next_kind = TRUTH_WILD;
	truth_next_name = "";
	/* Once the table is gone, with all data around it, only the stack may be touched. */
	for (volatile int i = 0; i < 2; i++) {
		if (i == 1 && mprotect(page, 8192, PROT_NONE))
			_exit(2);
		callee[i](i);
	}
	return room[0];
}

/* The first of the two pages, at most, that the global offset table lies in. */
NOINLINE char *got_page(void)
{
	ElfW(Dyn) *entry;

	for (entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++) {
		if (entry->d_tag == DT_PLTGOT)
			return (char *)(entry->d_un.d_ptr & -4096UL);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	ENTER();
	(void)argc;
	(void)argv;
	return jump(labs, got_page()) != 0;
}
