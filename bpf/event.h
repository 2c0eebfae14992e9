/* SPDX-License-Identifier: MIT */
/*
 * The event, laid out here and nowhere else.
 *
 * User space reads the offsets from the object's .BTF, and finds each register's DWARF number by
 * the name of its member: so no program of ours and no reader of its events can disagree.
 */
#ifndef UNWIND_EVENT_H
#define UNWIND_EVENT_H

#include "vmlinux.h"

#define PAGE_SIZE	4096
#ifndef MOST_PAGES
#define MOST_PAGES	2049	/* 8 MB, and the page that the stack pointer lies in */
#endif

enum event_version {
	EVENT_VERSION = 1,
};

enum event_flag {
	EVENT_KERNEL_THREAD = 1,	/* it runs no user code: there are no registers */
	EVENT_COMPAT = 2,		/* a 32-bit task of a 64-bit kernel */
	EVENT_CUT = 4,			/* the stack copy ends at a page that could not be read */
	EVENT_BUCKET = 8,		/* the record is larger than its stack, by size buckets */
	EVENT_SYSCALL_REGISTERS = 16,	/* mips: registers that a call preserves are not known */
};

/* All in DWARF order, called as readelf calls them; what has no DWARF number comes last. */
struct registers {
#if defined(__TARGET_x86_64)
	__u64 rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15, rip;
	__u64 rflags;
	__u64 orig_rax;
#elif defined(__TARGET_arm64)
	__u64 x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17;
	__u64 x18, x19, x20, x21, x22, x23, x24, x25, x26, x27, x28, x29, x30, sp, pc;
#elif defined(__TARGET_mips)
	__u64 zero, at, v0, v1, a0, a1, a2, a3, t0, t1, t2, t3, t4, t5, t6, t7;
	__u64 s0, s1, s2, s3, s4, s5, s6, s7, t8, t9, k0, k1, gp, sp, s8, ra;
	__u64 hi, lo, pc, cause;
#endif
};

struct event {
	enum event_version version;
	__u32 arch;			/* e_machine of the kernel's own code */
	__u32 pid;			/* as the process that loaded the program counts them */
	__u32 tid;
	char comm[16];
	__u64 time;			/* CLOCK_MONOTONIC, nanoseconds */
	__u64 cookie;			/* of the attachment */
	__u64 ip;			/* the kernel's, 0 where the event is the user's */
	enum event_flag flags;		/* any of them, by their bits */
	__u32 stack_length;		/* bytes that were copied */
	__u64 stack_start;		/* the address of the first of them */
	struct registers registers;	/* the user's */
	__u8 stack[];			/* what lies beyond stack_length is older events' */
};

/* Of one processor. */
struct counts {
	__u64 sent;
	__u64 dropped;			/* there was no room in the ring */
};

/* Written by user space before the programs are loaded. */
struct settings {
	__u32 self;			/* the process that is never looked at */
	__u32 pid;			/* the only one that is, 0: all */
	__u32 pid_namespace;		/* the loader's: pids are those of it */
	__u32 stack_size;		/* bytes from the stack pointer on */
	__u32 buckets;			/* 1: reserve by size buckets, as old kernels must */
};

#endif /* UNWIND_EVENT_H */
