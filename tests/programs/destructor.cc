/* SPDX-License-Identifier: MIT */
/*
 * Destructors, called by nobody who wrote a call.
 *
 * usage: destructor unwinding   while an exception passes; its thrower's frames are
 *                               gone, the landing pad's frame is the caller
 *        destructor catch       in the catch clause, while the exception still lives
 *        destructor exit        of a static object, out of exit()
 */
#include "truth.h"

namespace shop {

class Guard {
public:
	explicit Guard(int armed) : armed_(armed) {}
	NOINLINE ~Guard();

private:
	NOINLINE void burn(int n) const;

	int armed_;
};

void Guard::burn(int n) const
{
	ENTER_AS("burn");
	if (n)
		CRASH();
}

Guard::~Guard()
{
	ENTER_AS("~Guard");
	burn(armed_);
}

NOINLINE int throw_it(int n)
{
	ENTER();
	throw n;
}

NOINLINE int guarded(int n)
{
	ENTER();
	volatile char room[300];
	Guard guard(n);

	room[n] = 1;
	return throw_it(n) + room[n];
}

NOINLINE int between(int n)
{
	ENTER();
	return guarded(n) + 1;
}

NOINLINE int in_catch(int n)
{
	ENTER();
	try {
		return throw_it(n);
	} catch (int value) {
		Guard guard(value);

		return value;
	}
}

} /* namespace shop */

static shop::Guard *leftover;

/* What a static object's destructor amounts to, registered at a known place. */
static void destroy_leftover()
{
	ENTER();
	delete leftover;
}

NOINLINE static int leave(void)
{
	ENTER();
	void (*function)(int) = exit;

	leftover = new shop::Guard(1);
	atexit(destroy_leftover);
	TRUTH_CALL(TRUTH_FOREIGN, "exit", function, 0);
	return 0;
}

int main(int argc, char **argv)
{
	ENTER();
	const char *mode = argc > 1 ? argv[1] : "unwinding";

	if (!strcmp(mode, "exit"))
		return leave();
	try {
		return !strcmp(mode, "catch") ? shop::in_catch(1) : shop::between(1);
	} catch (int value) {
		return value;
	}
}
