/* SPDX-License-Identifier: MIT */
/*
 * The truth about a stack, told by the program that stands on it.
 *
 * Each function of a known call chain says ENTER(): its own name and its return
 * address, as the compiler knows it, go on a shadow list of its thread; leaving
 * the function takes them off again.  The lists live in a file, mapped shared,
 * so they are complete at every instant: a stack overflow, a vfork child or a
 * handler on an alternate stack needs no last word before it dies.
 *
 * The file is $UNWIND_TRUTH (without it nothing is written and the program runs
 * just the same).  Its layout is struct truth_file below, in the byte order and
 * word size of the program; tests/crashes.py is its reader.  How to read a list:
 *
 *   the last entry is the innermost frame, and its pc is the thread's `pc`
 *   (0: not known);
 *   the pc of every other frame is the `ra` of the entry after it (0: not known);
 *   an entry's name is its function's, without namespace, arguments, or template
 *   arguments;
 *   what lies outside the bottom entry (main's caller, a thread's start) is libc's,
 *   and is known by name only.
 *
 * Nothing here may change the frames under test: the bookkeeping is a call to a
 * function that has returned before anything happens, and no frame address is
 * asked for, since that alone would give the function a frame pointer.
 */
#ifndef TRUTH_H
#define TRUTH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef TRUTH_THREADS
#define TRUTH_THREADS	1100
#endif
#ifndef TRUTH_DEPTH
#define TRUTH_DEPTH	256
#endif
#define TRUTH_NAME	48
#ifndef TRUTH_SETTLE
#define TRUTH_SETTLE	0	/* microseconds */
#endif

typedef uintptr_t truth_word;

enum truth_kind {
	TRUTH_CALLED,		/* a function of the program, called by the entry before */
	TRUTH_SIGNAL,		/* a signal trampoline; `ra` is the pc it interrupted */
	TRUTH_FOREIGN,		/* frames of libraries, the outermost has this name (a|b: or that) */
	TRUTH_WILD,		/* an address that is no function: the thread's pc lies there */
	TRUTH_OUTERMOST,	/* a function whose CFI declares the stack to end here */
	TRUTH_CONTEXT,		/* no frame: the stack changed; entries before are on another one */
};

enum truth_state {
	TRUTH_RUNNING,		/* somewhere */
	TRUTH_PARKED,		/* about to sleep for ever, or asleep */
	TRUTH_SPINNING,		/* in an endless loop of the innermost entry */
	TRUTH_CRASHED,		/* at the instruction that ends it all */
	TRUTH_GONE,		/* ended; the core must not have it */
	TRUTH_OVERFLOWED,	/* crashed, perhaps in a function that is not on the list yet */
};

struct truth_frame {
	truth_word kind;
	truth_word ra;
	char name[TRUTH_NAME];
};

struct truth_thread {
	truth_word tid;
	truth_word state;
	truth_word pc;
	truth_word depth;
	struct truth_frame frames[TRUTH_DEPTH];
};

struct truth_file {
	char magic[8];		/* "truth/1" */
	uint32_t mark;		/* 0x01020304: tells the byte order */
	uint32_t word;		/* sizeof(truth_word) */
	uint32_t depth;		/* TRUTH_DEPTH */
	uint32_t threads;	/* how many of `thread` are in use */
	struct truth_thread thread[TRUTH_THREADS];
};

/*
 * A library defines TRUTH_LIBRARY and shares the list of the program that loads
 * it, which is linked with -rdynamic.
 */
#ifdef __cplusplus
extern "C" {
#endif
#ifdef TRUTH_LIBRARY
extern struct truth_file *truth_map;
extern __thread struct truth_thread *truth_self;
#else
struct truth_file *truth_map;
__thread struct truth_thread *truth_self;
#endif
#ifdef __cplusplus
}
#endif

static __thread const char *truth_next_name __attribute__((unused));
static __thread enum truth_kind truth_next_kind __attribute__((unused));

/* A frame that the optimiser neither dissolves nor splits. */
#ifdef __clang__
#define NOINLINE	__attribute__((noinline))
#else
#define NOINLINE	__attribute__((noinline, noclone))
#endif
#define TRUTH_UNUSED	__attribute__((unused))
#define TRUTH_HELPER	static __attribute__((noinline, unused))

/* -------------------------------------------------------------- architectures */

/*
 * FAULT(slot)	stores the address of its own faulting instruction, then faults
 * PARK(slot)	stores the pc that the kernel will show, then sleeps in ppoll()
 *
 * The store and the deed are one piece of assembler, so the label is right
 * whatever the compiler does around it.  The labels are local: they must not
 * become symbols, or they would name the frame.
 */
#if defined(__x86_64__)

#define TRUTH_FAULT(slot)						\
	__asm__ volatile("leaq	1f(%%rip), %%rax\n\t"			\
			 "movq	%%rax, %0\n"				\
			 "1:	movl	$0, 0\n\t"			\
			 : "=m"(slot) : : "rax", "memory")

#define TRUTH_PARK(slot)						\
	do {								\
		register long r10_ __asm__("r10") = 0;			\
		register long r8_ __asm__("r8") = 8;			\
		long rax_ = SYS_ppoll;					\
		__asm__ volatile("leaq	1f(%%rip), %%rcx\n\t"		\
				 "movq	%%rcx, %0\n\t"			\
				 "syscall\n"				\
				 "1:\n\t"				\
				 : "=m"(slot), "+a"(rax_)		\
				 : "D"(0L), "S"(0L), "d"(0L), "r"(r10_), "r"(r8_)	\
				 : "rcx", "r11", "memory");		\
	} while (0)

#define TRUTH_INTERRUPTED(context) \
	((truth_word)((ucontext_t *)(context))->uc_mcontext.gregs[REG_RIP])

#elif defined(__aarch64__)

#define TRUTH_FAULT(slot)						\
	__asm__ volatile("adr	x16, 1f\n\t"				\
			 "str	x16, %0\n\t"				\
			 "mov	x17, #0\n"				\
			 "1:	str	wzr, [x17]\n\t"			\
			 : "=m"(slot) : : "x16", "x17", "memory")

#define TRUTH_PARK(slot)						\
	do {								\
		register long x0_ __asm__("x0") = 0;			\
		register long x1_ __asm__("x1") = 0;			\
		register long x2_ __asm__("x2") = 0;			\
		register long x3_ __asm__("x3") = 0;			\
		register long x4_ __asm__("x4") = 8;			\
		register long x8_ __asm__("x8") = SYS_ppoll;		\
		__asm__ volatile("adr	x16, 1f\n\t"			\
				 "str	x16, %0\n\t"			\
				 "svc	#0\n"				\
				 "1:\n\t"				\
				 : "=m"(slot), "+r"(x0_)		\
				 : "r"(x1_), "r"(x2_), "r"(x3_), "r"(x4_), "r"(x8_)	\
				 : "x16", "memory");			\
	} while (0)

#define TRUTH_INTERRUPTED(context) \
	((truth_word)((ucontext_t *)(context))->uc_mcontext.pc)

#elif defined(__mips__)

/*
 * By a call over nothing: that needs no $gp, which PIC loads when it likes, and it tells
 * whose return address is no longer in its register.  In microMIPS bit 0 of it is set.
 */
#define TRUTH_HERE(slot)						\
	".set	push\n\t"						\
	".set	reorder\n\t"						\
	"bal	2f\n"							\
	"2:	addiu	$8, $31, 1f - 2b\n\t"				\
	"sw	$8, " slot "\n\t"					\
	".set	noreorder\n\t"

#define TRUTH_FAULT(slot)						\
	__asm__ volatile(TRUTH_HERE("%0")				\
			 "1:	sw	$0, 0($0)\n\t"			\
			 ".set	pop\n\t"				\
			 : "=m"(slot) : : "$8", "$31", "memory")

/*
 * o32 passes the fifth argument, the size of the signal set, on the stack above the
 * caller's argument area; without a signal set the kernel does not look at it.
 */
#define TRUTH_PARK(slot)						\
	do {								\
		register long v0_ __asm__("$2") = SYS_ppoll;		\
		register long a0_ __asm__("$4") = 0;			\
		register long a1_ __asm__("$5") = 0;			\
		register long a2_ __asm__("$6") = 0;			\
		register long a3_ __asm__("$7") = 0;			\
		__asm__ volatile(TRUTH_HERE("%0")			\
				 "syscall\n"				\
				 "1:\n\t"				\
				 ".set	pop\n\t"			\
				 : "=m"(slot), "+r"(v0_), "+r"(a3_)	\
				 : "r"(a0_), "r"(a1_), "r"(a2_)		\
				 : "$1", "$3", "$8", "$9", "$10", "$11", "$12", "$13", \
				   "$14", "$15", "$24", "$25", "$31", "hi", "lo", "memory"); \
	} while (0)

#define TRUTH_INTERRUPTED(context) \
	((truth_word)((ucontext_t *)(context))->uc_mcontext.pc)

#else
#error "truth.h: teach FAULT and PARK this architecture"
#endif

/* ------------------------------------------------------------------ the record */

/* Map the record: $UNWIND_TRUTH if there is one, else memory that nobody reads. */
TRUTH_HELPER struct truth_file *truth_open(void)
{
	const char *path = getenv("UNWIND_TRUTH");
	int flags = path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	int fd = -1;
	void *map;

	if (path) {
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (fd < 0 || ftruncate(fd, sizeof(struct truth_file))) {
			perror(path);
			_exit(2);
		}
	}
	map = mmap(NULL, sizeof(struct truth_file), PROT_READ | PROT_WRITE, flags, fd, 0);
	if (map == MAP_FAILED) {
		perror("truth: mmap");
		_exit(2);
	}
	if (fd >= 0)
		close(fd);
	/* Its place is the file; the core stays small and must tell by itself. */
	madvise(map, sizeof(struct truth_file), MADV_DONTDUMP);
	return (struct truth_file *)map;
}

/* Give the calling thread its list; the first thread also opens the file. */
TRUTH_HELPER void truth_attach(void)
{
	if (!truth_map) {
		struct truth_file *map = truth_open();

		memcpy(map->magic, "truth/1", 8);
		map->mark = 0x01020304;
		map->word = sizeof(truth_word);
		map->depth = TRUTH_DEPTH;
		truth_map = map;
	}
	truth_self = &truth_map->thread[__atomic_fetch_add(&truth_map->threads, 1,
							   __ATOMIC_SEQ_CST)];
	truth_self->tid = syscall(SYS_gettid);
}

static inline __attribute__((always_inline, unused)) truth_word
truth_push_inline(enum truth_kind kind, const char *name, truth_word ra)
{
	struct truth_frame *frame;
	truth_word before;
	int i;

	before = truth_self->depth;
	frame = &truth_self->frames[before];
	frame->kind = kind;
	frame->ra = ra;
	for (i = 0; i < TRUTH_NAME - 1 && name[i]; i++)
		frame->name[i] = name[i];
	frame->name[i] = 0;
	truth_self->depth = before + 1;
	return before;
}

/* Put an entry on the list; returns the depth before, for truth_leave(). */
TRUTH_HELPER truth_word truth_push(enum truth_kind kind, const char *name, truth_word ra)
{
	if (!truth_self)
		truth_attach();
	return truth_push_inline(kind, name, ra);
}

/* Also runs when an exception passes through: it is the scope's cleanup. */
TRUTH_HELPER void truth_leave(truth_word *before)
{
	truth_self->depth = *before;
}

/*
 * Stands in for a callee: called from the very call instruction that is about to
 * call a function which cannot record its return address itself.
 */
TRUTH_HELPER long truth_probe(void)
{
	truth_push(truth_next_kind, truth_next_name, (truth_word)__builtin_return_address(0));
	return 1;
}

#define TRUTH_ENTER(kind, name, ra)					\
	TRUTH_UNUSED truth_word truth_before __attribute__((cleanup(truth_leave))) = \
		truth_push(kind, name, (truth_word)(ra))

/* The first statement of each function of a chain. */
#define ENTER_AS(name)	TRUTH_ENTER(TRUTH_CALLED, name, __builtin_return_address(0))
#define ENTER()		ENTER_AS(__func__)

/*
 * For functions that never come back, not even to clean up: an exception finds no
 * landing pad in them.
 */
#define ENTER_FOR_GOOD() \
	truth_push(TRUTH_CALLED, __func__, (truth_word)__builtin_return_address(0))

/* The first statement of a signal handler: the trampoline, then the handler itself. */
#define ENTER_HANDLER(context)						\
	TRUTH_ENTER(TRUTH_SIGNAL, "", TRUTH_INTERRUPTED(context));	\
	truth_push(TRUTH_CALLED, __func__, (truth_word)__builtin_return_address(0))

/* The next call goes to a library function, and may crash or sleep in there. */
#define CALLING(name)	truth_push(TRUTH_FOREIGN, name, 0)

/* The type of a pointer to a function, whether its name is given or a pointer to it. */
#ifdef __cplusplus
#define TRUTH_POINTER(function)	decltype(+(function))
#else
#define TRUTH_POINTER(function)	__typeof__(&*(function))
#endif

/*
 * Call `function`, which keeps no record: hand-written assembler, a library
 * function, or no function at all.  The call instruction runs twice, first with
 * truth_probe as the callee, so the recorded return address is the right one.
 */
#define TRUTH_CALL(kind, name, function, ...)				\
	do {								\
		TRUTH_POINTER(function) volatile truth_callee[2] = {	\
			(TRUTH_POINTER(function))(void *)truth_probe, (function) }; \
		truth_word truth_depth = truth_self->depth;		\
		truth_next_kind = (kind);				\
		truth_next_name = (name);				\
		for (volatile int truth_i = 0; truth_i < 2; truth_i++)	\
			truth_callee[truth_i](__VA_ARGS__);		\
		truth_self->depth = truth_depth;			\
	} while (0)

/* -------------------------------------------------------------------- the deed */

/* For a fault that a handler is waiting for. */
#define FAULT()								\
	do {								\
		truth_self->state = TRUTH_CRASHED;			\
		TRUTH_FAULT(truth_self->pc);				\
	} while (0)

/* Built with -DTRUTH_LIVE a program stays where it would crash: tests/running.py. */
#ifdef TRUTH_LIVE
#define TRUTH_END(slot)							\
	do {								\
		TRUTH_PARK(slot);					\
	} while (*(volatile truth_word *)&(slot))	/* always: but the compiler cannot know */
#else
#define TRUTH_END	TRUTH_FAULT
#endif

#define CRASH()								\
	do {								\
		truth_self->state = TRUTH_CRASHED;			\
		TRUTH_END(truth_self->pc);				\
	} while (0)

/* For a fault elsewhere: in assembler, in a library; 0 where it is not known. */
#define CRASHING_AT(address)						\
	do {								\
		truth_self->state = TRUTH_CRASHED;			\
		truth_self->pc = (truth_word)(address);			\
	} while (0)

#define PARK()								\
	do {								\
		__atomic_store_n(&truth_self->state, TRUTH_PARKED, __ATOMIC_SEQ_CST); \
		for (;;)						\
			TRUTH_PARK(truth_self->pc);			\
	} while (0)

#define SPIN()								\
	do {								\
		__atomic_store_n(&truth_self->state, TRUTH_SPINNING, __ATOMIC_SEQ_CST); \
		for (;;)						\
			__asm__ volatile("" : : : "memory");		\
	} while (0)

/* Before a library call that sleeps for ever. */
#define PARKING()	__atomic_store_n(&truth_self->state, TRUTH_PARKED, __ATOMIC_SEQ_CST)

/* The state letter of a thread as /proc shows it; 0 where it is no longer. */
TRUTH_HELPER char truth_proc_state(long tid)
{
	char path[64], line[256], *end;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%ld/stat", tid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	size = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (size <= 0)
		return 0;
	line[size] = 0;
	end = strrchr(line, ')');	/* the name before it may hold anything */
	return end ? end[2] : 0;
}

/*
 * Wait until `count` other threads sleep where they said they would.  A thread says
 * so just before its system call, so its pc is right only once it is asleep too.
 */
TRUTH_HELPER void truth_wait(unsigned int count)
{
	for (;;) {
		unsigned int settled = 0, i, used;

		used = truth_map ? __atomic_load_n(&truth_map->threads, __ATOMIC_SEQ_CST) : 0;
		for (i = 0; i < used; i++) {
			struct truth_thread *thread = &truth_map->thread[i];

			switch (__atomic_load_n(&thread->state, __ATOMIC_SEQ_CST)) {
			case TRUTH_PARKED:
				settled += truth_proc_state(thread->tid) != 'R';
				break;
			case TRUTH_SPINNING:
				settled++;
				break;
			}
		}
		if (settled >= count) {
			/* An emulator's threads also wait for one another on their way there. */
			usleep(TRUTH_SETTLE);
			return;
		}
		usleep(1000);
	}
}

#endif /* TRUTH_H */
