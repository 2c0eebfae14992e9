/*
 * A program of a few KB without a C library, for tests/test_damage.py: its core is small, and its
 * two stacks still have frames of many kinds. With -DLIBRARY it is the library of its other half.
 */
#define NOINLINE __attribute__((noinline, noclone))
#define KEEP() __asm__ volatile("" ::: "memory") /* no tail call, no pure function */

void library_calls(void (*callback)(int), int depth);
void restorer(void);
void hand_written(void (*callback)(int), int depth);
long spawn(void (*function)(int), void *stack_top);

#if defined(LIBRARY) || defined(STATIC)

/* void library_inner<int>(void (*)(int), int), for the demangler */
void library_inner(void (*callback)(int), int depth) __asm__("_Z13library_innerIiEvPFvT_ES0_");

NOINLINE void library_inner(void (*callback)(int), int depth)
{
	if (depth > 0)
		library_inner(callback, depth - 1);
	else
		callback(3);
	KEEP();
}

void library_calls(void (*callback)(int), int depth)
{
	volatile char room[24] = {0};

	library_inner(callback, depth + room[0]);
	KEEP();
}

#endif
#ifndef LIBRARY

enum { SYS_PAUSE = 34, SYS_GETPID = 39, SYS_KILL = 62, SYS_SIGACTION = 13, SYS_YIELD = 24 };
enum { SIGUSR1 = 10, SA_RESTORER = 0x04000000 };

static char other_stack[2048] __attribute__((aligned(64)));
static volatile int other_is_ready;

static long call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

static NOINLINE void crash(int depth)
{
	if (depth > 0)
		crash(depth - 1);
	else
		*(volatile int *)16 = 0;
	KEEP();
}

static NOINLINE void handler(int number)
{
	crash(number - SIGUSR1 + 2);
	KEEP();
}

static NOINLINE void interrupted(int depth)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(void);
		unsigned long mask;
	} action = {handler, SA_RESTORER, restorer, 0};

	call(SYS_SIGACTION, SIGUSR1, (long)&action, 0, 8);
	call(SYS_KILL, call(SYS_GETPID, 0, 0, 0, 0), SIGUSR1, depth, 0);
	KEEP();
}

/* The CFA by the frame pointer. */
static NOINLINE void variable(int size)
{
	volatile char *array = __builtin_alloca(size * 8);

	array[0] = 1;
	hand_written(interrupted, size);
	array[1] = 2;
}

/* The CFA by an expression: gcc's DRAP. */
static NOINLINE void realigned(int size)
{
	volatile char line[64] __attribute__((aligned(64)));
	volatile char *array = __builtin_alloca(size * 8);

	line[0] = array[0] = 1;
	library_calls(variable, 3);
	line[1] = array[1] = 2;
}

static NOINLINE void other_waits(int depth)
{
	if (depth > 0) {
		other_waits(depth - 1);
	} else {
		other_is_ready = 1;
		for (;;)
			call(SYS_PAUSE, 0, 0, 0, 0);
	}
	KEEP();
}

static NOINLINE void other_thread(int depth)
{
	library_calls(other_waits, depth);
	KEEP();
}

void start(void)
{
	spawn(other_thread, other_stack + sizeof other_stack);
	while (!other_is_ready)
		call(SYS_YIELD, 0, 0, 0, 0);
	realigned(5);
	KEEP();
}

#endif
