/* SPDX-License-Identifier: MIT */
/*
 * An exception that meets noexcept, and std::terminate is called.
 *
 * usage: noexcept thrown    with the thrower's frames still in place
 *        noexcept resumed   a destructor has run on the way, so the thrower is gone and
 *                           the unwinder was called by a landing pad
 *        noexcept abort     as `thrown`, and libstdc++'s own handler calls abort()
 *
 * clang reaches std::terminate in its own way: by a landing pad of the noexcept
 * function, which calls __clang_call_terminate.  That one keeps no frame pointer and
 * has no CFI.
 */
#include "truth.h"

#include <exception>
#include <stdexcept>

namespace shop {

static const char *mode;
static truth_word depth_of_promise;

NOINLINE int thrower(int n)
{
	ENTER_FOR_GOOD();
	CALLING("__cxa_throw");
	throw std::runtime_error("as it should be");
	return n;
}

/* Its destructor is the last to run before the landing pad hands the exception on. */
class Last {
public:
	explicit Last() : depth_(truth_self->depth) {}
	~Last()
	{
		truth_self->depth = depth_;
		CALLING("_Unwind_Resume");
	}

private:
	truth_word depth_;
};

NOINLINE int relay_through_cleanup(int n)
{
	ENTER_FOR_GOOD();
	Last last;

	return thrower(n) + 1;
}

template <typename T> NOINLINE T relay(T n)
{
	ENTER_FOR_GOOD();
	return (!strcmp(mode, "resumed") ? relay_through_cleanup(n) : thrower(n)) + 1;
}

NOINLINE int promise(int n) noexcept
{
	ENTER_FOR_GOOD();
	depth_of_promise = truth_self->depth;
	volatile char room[77];

	room[n] = 1;
	return relay<int>(n) + room[n];
}

} /* namespace shop */

NOINLINE static void on_terminate()
{
#ifdef __clang__
	truth_self->depth = shop::depth_of_promise;
	truth_push(TRUTH_CALLED, "__clang_call_terminate", 0);
	CALLING("std::terminate");
#endif
	ENTER();
	CRASH();
}

int main(int argc, char **argv)
{
	ENTER();
	shop::mode = argc > 1 ? argv[1] : "thrown";
	if (strcmp(shop::mode, "abort"))
		std::set_terminate(on_terminate);
	else
		CRASHING_AT(0);
	return shop::promise(argc);
}
