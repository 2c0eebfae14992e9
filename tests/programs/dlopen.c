/* SPDX-License-Identifier: MIT */
/*
 * A chain through a library loaded at run time, whose file may be gone by then.
 *
 * usage: dlopen library crash        the library's code crashes
 *        dlopen library callback     the program's code, called by the library
 *        ... [filter [replacement]]
 *
 * With a filter (its own /proc/self/coredump_filter, - for none) the library's file
 * is unlinked once it is loaded, or replaced by another one.
 */
#include "truth.h"

#include <dlfcn.h>

typedef long (*entry_function)(long (*callback)(long), long n);

static long (*plugin_crash)(long);

NOINLINE long deep(long n)
{
	ENTER();
	CRASH();
	return n;
}

NOINLINE long callback(long n)
{
	ENTER();
	volatile char room[150];

	room[n] = 1;
	return (plugin_crash ? plugin_crash(n) : deep(n)) + room[n];
}

NOINLINE void take_away(const char *path, const char *filter, const char *replacement)
{
	if (strcmp(filter, "-")) {
		int fd = open("/proc/self/coredump_filter", O_WRONLY);

		if (fd < 0 || write(fd, filter, strlen(filter)) < 0)
			perror("coredump_filter");
		close(fd);
	}
	if (replacement ? rename(replacement, path) : unlink(path))
		perror(path);
}

NOINLINE long use(const char *path, const char *mode, const char *filter, const char *replacement)
{
	ENTER();
	void *library = dlopen(path, RTLD_NOW);
	entry_function entry;

	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	entry = (entry_function)(uintptr_t)dlsym(library, "plugin_entry");
	if (!strcmp(mode, "crash"))
		plugin_crash = (long (*)(long))(uintptr_t)dlsym(library, "plugin_crash");
	if (filter)
		take_away(path, filter, replacement);
	return entry(callback, 3) + 1;
}

int main(int argc, char **argv)
{
	ENTER();
	if (argc < 3)
		return 2;
	return use(argv[1], argv[2], argc > 3 ? argv[3] : NULL, argc > 4 ? argv[4] : NULL) != 0;
}
