/* SPDX-License-Identifier: MIT */
/*
 * A bad pointer given to a function of the vdso, which is code that no file holds.
 *
 * usage: vdso direct   the program calls into the vdso
 *        vdso libc     libc's clock_gettime() does
 *
 * The coarse clock is read without a system call on every machine; by a system call
 * a bad pointer would be EFAULT and no crash.
 */
#include "truth.h"

#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
#include <time.h>

#ifdef __aarch64__
#define CLOCK_GETTIME	"__kernel_clock_gettime"
#else
#define CLOCK_GETTIME	"__vdso_clock_gettime"
#endif

typedef int (*clock_function)(clockid_t, struct timespec *);

/* The one function of the vdso that this needs, or NULL. */
static clock_function find(const char *name)
{
	const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
	const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)base;
	const ElfW(Phdr) *segments;
	const ElfW(Dyn) *dynamic = NULL;
	const ElfW(Sym) *symbols = NULL;
	const char *names = NULL;
	int i;

	if (!base)
		return NULL;
	segments = (const ElfW(Phdr) *)(base + header->e_phoff);
	for (i = 0; i < header->e_phnum; i++) {
		if (segments[i].p_type == PT_DYNAMIC)
			dynamic = (const ElfW(Dyn) *)(base + segments[i].p_offset);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag == DT_SYMTAB)
			symbols = (const ElfW(Sym) *)(base + dynamic->d_un.d_ptr);
		if (dynamic->d_tag == DT_STRTAB)
			names = base + dynamic->d_un.d_ptr;
	}
	/* The string table follows the symbols: that is where they end. */
	for (; symbols && (const char *)symbols < names; symbols++) {
		if (!strcmp(names + symbols->st_name, name))
			return (clock_function)(uintptr_t)(base + symbols->st_value);
	}
	return NULL;
}

NOINLINE int ask(clock_function function, const char *name)
{
	ENTER();
	CRASHING_AT(0);
	TRUTH_CALL(TRUTH_FOREIGN, name, function, CLOCK_MONOTONIC_COARSE, (struct timespec *)16);
	return 1;
}

NOINLINE int choose(const char *mode)
{
	ENTER();
	clock_function function = clock_gettime;

	if (!strcmp(mode, "direct"))
		function = find(CLOCK_GETTIME);
	if (!function)
		return 2;
	return ask(function, function == clock_gettime ? "clock_gettime" : CLOCK_GETTIME);
}

int main(int argc, char **argv)
{
	ENTER();
	return choose(argc > 1 ? argv[1] : "direct");
}
