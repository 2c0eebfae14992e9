/* SPDX-License-Identifier: MIT */
/*
 * Return addresses that uretprobes, of whomever, have replaced by that of the page [uprobes].
 *
 * The kernel keeps the true ones in a list, innermost first.  On x86_64 each lies where the stack
 * pointer was when its function was called; elsewhere it came in a register, and nobody
 * knows where the function has put it.
 */
#ifndef UNWIND_RETURNS_H
#define UNWIND_RETURNS_H

#include "helpers.h"

#define MOST_RETURNS	64	/* MAX_URETPROBE_DEPTH, Linux v6.13 include/linux/uprobes.h */

#if defined(__TARGET_x86_64)

/* Into the copy of `length` bytes from `start` on, which begins at `offset` of the record. */
inline_always void put_returns_back(struct bpf_dynptr *record, __u32 offset, __u64 start,
				    __u32 length)
{
	struct task_struct *task = get_current_task_btf();
	struct return_instance *at = 0;
	struct uprobe_task *uprobes = task->utask;

	if (!uprobes)
		return;
	probe_read_kernel(&at, sizeof(at), &uprobes->return_instances);
	for (__u32 n = 0; n < MOST_RETURNS && at; n++) {
		unsigned long place = 0, address = 0;

		probe_read_kernel(&place, sizeof(place), &at->stack);
		probe_read_kernel(&address, sizeof(address), &at->orig_ret_vaddr);
		if (place >= start && place - start < length && length - (place - start) >= 8)
			dynptr_write(record, offset + (place - start), &address, 8, 0);
		probe_read_kernel(&at, sizeof(at), &at->next);
	}
}

#else

#define put_returns_back(record, offset, start, length)	((void)0)

#endif

#endif /* UNWIND_RETURNS_H */
