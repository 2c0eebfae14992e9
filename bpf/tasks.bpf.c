// SPDX-License-Identifier: MIT
/*
 * The user's registers of each thread of one process, as the kernel keeps them while it waits.
 * Whoever reads has to know that it does: of a thread that runs they are old.
 */
#include "send.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

/* Its number in enum bpf_func_id, as of those in helpers.h. */
static long (*seq_write)(struct seq_file *seq, const void *data, __u32 size) = (void *)127;

SEC("iter/task")
int on_task(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct event event = {};
	const USER_REGS *regs;

	if (!task || task->flags & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER))
		return 0;
	event.pid = number_of(task->group_leader->thread_pid);
	if (!event.pid || event.pid != settings.pid)
		return 0;
	event.version = EVENT_VERSION;
	event.arch = EVENT_ARCH;
	event.tid = number_of(task->thread_pid);
	event.time = ktime_get_ns();
	regs = user_of(task);
	if (!regs)
		return 0;
#if defined(__TARGET_mips)
	event.flags |= EVENT_SYSCALL_REGISTERS;
#endif
	if (IS_COMPAT(regs))
		event.flags |= EVENT_COMPAT;
	else
		copy_registers(&event.registers, regs);
	seq_write(seq, &event, sizeof(event));
	return 0;
}

const char permission[] SEC("license") = "Dual MIT/GPL";
