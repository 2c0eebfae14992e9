/* SPDX-License-Identifier: MIT */
/*
 * What the programs that watch an allocator tell user space, and are told, laid out here and
 * nowhere else: as with the event, offsets are read from the object's .BTF.
 */
#ifndef UNWIND_LEAKS_H
#define UNWIND_LEAKS_H

#include "vmlinux.h"

#define MOST_CODE	8	/* stretches of code */

/* Functions of an allocator by what they take: the cookie of each attachment. */
enum allocator_function {
	ALLOCATE = 1,		/* size */
	ALLOCATE_ARRAY = 2,	/* count, size of each */
	ALLOCATE_ALIGNED = 3,	/* alignment, size */
	ALLOCATE_INTO = 4,	/* where to put the address, alignment, size; gives 0 */
	RESIZE = 5,		/* old, size */
	RESIZE_ARRAY = 6,	/* old, count, size of each */
	MAP = 7,		/* hint, length; gives -1 where it fails */
	REMAP = 8,		/* old, its length, length; gives -1 where it fails */
	FREE = 9,		/* old */
	UNMAP = 10,		/* old, length */
};

/* An allocation that is outstanding; its address is the key. */
struct block {
	__u64 size;
	__u64 time;		/* CLOCK_MONOTONIC, nanoseconds */
	__u64 stack;		/* key of its stack, 0: there was no room for one more */
	__u32 tid;
	__u32 epoch;		/* how many programs the process had run before */
};

/* A kind of stack, whose key is a hash of all that its walk can depend on. */
struct site {
	__u64 bytes;		/* outstanding */
	__u64 count;
	__u64 calls;		/* since the beginning, failed ones among them */
	__u64 events;		/* allocations since the beginning */
	__u32 posted;		/* whether it was sent */
	__u32 epoch;		/* as of a block */
};

struct code {
	__u64 start;
	__u64 size;
};

/* A place in code, as a walk comes to it. */
struct place {
	__u64 pc;
	__u64 generation;	/* of a plan */
	__u64 called;		/* a return address; else it is where the thread stands */
};

enum step_flag {
	STEP_OUTERMOST = 1,	/* there is no caller */
	STEP_ON_FP = 2,		/* the CFA hangs on the frame pointer, not on the stack pointer */
	STEP_IN_LINK = 4,	/* the return address is in its register */
	STEP_SAVES_FP = 8,	/* the caller's frame pointer is on the stack */
};

/* The row of CFI there, where it is a plain one: offsets from the CFA, in bytes. */
struct step {
	__s32 cfa;		/* from the register */
	__s32 pc;
	__s32 fp;
	enum step_flag flags;	/* any of them, by their bits */
};

/* What user space wants; of two, that with the higher serial holds. */
struct plan {
	__u64 serial;
	__u64 exec_pages;	/* mm->exec_vm when `code` was looked up: else it may be more */
	__u64 generation;	/* goes up when code is replaced or taken away */
	__u64 epoch;		/* as of a block: of another program nothing is known */
	__u64 smallest;		/* of the allocations to look at */
	__u64 largest;
	__u32 every;		/* one of so many is looked at */
	__u32 traced;		/* each call is told */
	struct code code[MOST_CODE];
	__u64 serial_again;	/* as above, once all is written */
};

/* What has happened to the process. */
struct life {
	__u32 epoch;
	__u32 pad;
	__u64 unsettled;	/* serial of a plan after which code has come or gone */
};

/* Of one processor. */
struct totals {
	__u64 allocations;	/* that were looked at and succeeded */
	__u64 frees;		/* of what was outstanding, by realloc too */
	__u64 dropped;		/* allocations for which there was no room */
	__u64 dropped_bytes;
	__u64 replaced;		/* at an address that was outstanding: a free was not seen */
	__u64 replaced_bytes;
	__u64 nowhere;		/* allocations whose stack has no key */
};

/* One call, with --trace. */
struct call_told {
	__u64 time;
	__u64 address;
	__u64 size;
	__u64 stack;
	__u32 tid;
	__u32 function;		/* enum allocator_function */
};

#endif /* UNWIND_LEAKS_H */
