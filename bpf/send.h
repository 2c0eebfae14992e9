/* SPDX-License-Identifier: MIT */
/*
 * The user's registers and the stack above his stack pointer, into the ring: what all of our
 * programs share.
 */
#ifndef UNWIND_SEND_H
#define UNWIND_SEND_H

#include "event.h"
#include "helpers.h"
#include "registers.h"
#include "returns.h"

/* All of .rodata: user space writes it as one struct. */
const volatile struct settings settings = {};

/* Nothing else would have the compiler describe the event to user space. */
const struct event *const volatile event_layout SEC(".rodata.layout") = 0;

struct {
	MAP_NUMBER(type, MAP_TYPE_RINGBUF);
	MAP_NUMBER(max_entries, 1 << 24);
} events SEC(".maps");

struct {
	MAP_NUMBER(type, MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct counts);
} counts SEC(".maps");

/* Linux v6.13 include/linux/sched.h: they run in the kernel only, and have no user's registers. */
#define PF_IO_WORKER	0x00000010
#define PF_USER_WORKER	0x00004000
#define PF_KTHREAD	0x00200000

#define MOST_LEVELS	32	/* MAX_PID_NS_LEVEL */

/* What is known before anything is reserved. */
struct moment {
	__u64 ip;
	__u64 cookie;
	__u32 pid;
	__u32 tid;
	__u32 flags;
	__u64 start;	/* of the stack's first page */
};

/* The number of a process or thread in the loader's pid namespace, 0 where it has none. */
inline_always __u32 number_of(const struct pid *pid)
{
	const struct upid *numbers = (const void *)&pid->numbers;
	__u32 level = pid->level;

	for (__u32 n = 0; n < MOST_LEVELS && n <= level; n++) {
		struct pid_namespace *ns = 0;
		__u32 inum = 0;
		int found = 0;

		probe_read_kernel(&ns, sizeof(ns), &numbers[n].ns);
		probe_read_kernel(&inum, sizeof(inum), &ns->ns.inum);
		if (inum != settings.pid_namespace)
			continue;
		probe_read_kernel(&found, sizeof(found), &numbers[n].nr);
		return found;
	}
	return 0;
}

/* How many pages hold what is wanted of a stack. */
inline_always __u32 pages_wanted(__u64 sp)
{
	return (sp % PAGE_SIZE + settings.stack_size + PAGE_SIZE - 1) / PAGE_SIZE;
}

/* How many pages from `start` on can be read; `flags` says whether something stood in the way. */
inline_always __u32 readable(__u64 start, __u32 wanted, __u32 *flags)
{
	__u32 n, hidden = 0;

	for (n = 0; n < MOST_PAGES && n < wanted; n++) {
		__u8 byte;

		if (probe_read_user(&byte, 1, (const void *)(start + (__u64)n * PAGE_SIZE))) {
			*flags |= EVENT_CUT;
			break;
		}
	}
	/* The verifier would follow each number of pages by itself, squaring its work. */
	probe_read_kernel(&hidden, sizeof(hidden), &n);
	return hidden;
}

inline_always void fill(struct event *event, const struct moment *moment, const USER_REGS *regs)
{
	event->version = EVENT_VERSION;
	event->arch = EVENT_ARCH;
	event->pid = moment->pid;
	event->tid = moment->tid;
	get_current_comm(event->comm, sizeof(event->comm));
	event->time = ktime_get_ns();
	event->cookie = moment->cookie;
	event->ip = moment->ip;
	event->flags = moment->flags;
	event->stack_start = moment->start;
	event->stack_length = 0;
	if (regs)
		copy_registers(&event->registers, regs);
}

inline_always void count_drop(void)
{
	__u32 key = 0;
	struct counts *mine = map_lookup_elem(&counts, &key);

	if (mine)
		__sync_fetch_and_add(&mine->dropped, 1);
}

inline_always void count_sent(void)
{
	__u32 key = 0;
	struct counts *mine = map_lookup_elem(&counts, &key);

	if (mine)
		__sync_fetch_and_add(&mine->sent, 1);
}

/* A record of exactly the pages that there are: Linux 5.19 and later. */
inline_always bool send_exact(const struct moment *moment, const USER_REGS *regs, __u32 pages)
{
	struct bpf_dynptr record;
	struct event *event;
	__u32 n;

	if (pages > MOST_PAGES)
		return 0;
	if (ringbuf_reserve_dynptr(&events, sizeof(*event) + pages * PAGE_SIZE, 0, &record))
		goto dropped;
	event = dynptr_data(&record, 0, sizeof(*event));
	if (!event)
		goto dropped;
	fill(event, moment, regs);
	for (n = 0; n < MOST_PAGES && n < pages; n++) {
		void *page = dynptr_data(&record, sizeof(*event) + n * PAGE_SIZE, PAGE_SIZE);

		if (!page)
			break;
		if (probe_read_user(page, PAGE_SIZE,
				    (const void *)(moment->start + (__u64)n * PAGE_SIZE))) {
			event->flags |= EVENT_CUT;
			break;
		}
		event->stack_length += PAGE_SIZE;
	}
	put_returns_back(&record, sizeof(*event), moment->start, event->stack_length);
	count_sent();
	ringbuf_submit_dynptr(&record, 0);
	return 1;
dropped:
	count_drop();
	ringbuf_discard_dynptr(&record, 0);
	return 0;
}

/* A record with room for `room` pages, a constant: older kernels want to know it beforehand. */
inline_always bool send_bucket(const struct moment *moment, const USER_REGS *regs, __u32 pages,
			       const __u32 room)
{
	struct event *event;
	__u32 n;

	event = ringbuf_reserve(&events, sizeof(*event) + room * PAGE_SIZE, 0);
	if (!event) {
		count_drop();
		return 0;
	}
	fill(event, moment, regs);
	event->flags |= EVENT_BUCKET;
	for (n = 0; n < room && n < pages; n++) {
		if (probe_read_user(event->stack + n * PAGE_SIZE, PAGE_SIZE,
				    (const void *)(moment->start + (__u64)n * PAGE_SIZE))) {
			event->flags |= EVENT_CUT;
			break;
		}
		event->stack_length += PAGE_SIZE;
	}
	count_sent();
	ringbuf_submit(event, 0);
	return 1;
}

#define BUCKET(room)						\
	if (pages <= (room))					\
		return send_bucket(moment, regs, pages, (room));

inline_always bool send_bucketed(const struct moment *moment, const USER_REGS *regs, __u32 pages)
{
	BUCKET(0) BUCKET(1) BUCKET(2) BUCKET(3) BUCKET(5) BUCKET(9) BUCKET(17) BUCKET(33)
#if MOST_PAGES > 65
	BUCKET(65) BUCKET(129) BUCKET(257) BUCKET(513) BUCKET(1025)
#endif
	BUCKET(MOST_PAGES)
	return 0;
}

/*
 * Whether it was sent; false also of whom nobody asked for.
 *
 * `has_user`, a constant: the context is the user's registers.  Else they are looked up.
 */
inline_always bool send(__u64 ip, __u64 cookie, const bool has_user, void *context)
{
	const USER_REGS *regs = 0;
	struct task_struct *task = get_current_task_btf();
	struct moment moment = { .ip = ip, .cookie = cookie };
	__u32 pages = 0;

	moment.pid = number_of(task->group_leader->thread_pid);
	if (!moment.pid || moment.pid == settings.self)
		return 0;
	if (settings.pid && moment.pid != settings.pid)
		return 0;
	moment.tid = number_of(task->thread_pid);
	if (task->flags & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER)) {
		moment.flags = EVENT_KERNEL_THREAD;
	} else if (has_user) {
		regs = context;
	} else {
		regs = user_of(task);
#if defined(__TARGET_mips)
		/* Linux v6.13 arch/mips/kernel/scall32-o32.S: SAVE_SOME leaves s0 to s8 out. */
		moment.flags |= EVENT_SYSCALL_REGISTERS;
#endif
	}
	if (regs && IS_COMPAT(regs)) {
		moment.flags |= EVENT_COMPAT;
	} else if (regs) {
		moment.start = USER_SP(regs) & -(__u64)PAGE_SIZE;
		pages = readable(moment.start, pages_wanted(USER_SP(regs)), &moment.flags);
	}
	if (!settings.buckets && kernel_has(BPF_FUNC_ringbuf_reserve_dynptr))
		return send_exact(&moment, regs, pages);
	return send_bucketed(&moment, regs, pages);
}

#endif /* UNWIND_SEND_H */
