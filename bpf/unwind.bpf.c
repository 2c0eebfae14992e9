// SPDX-License-Identifier: MIT
/*
 * At an event: the user's registers and the stack above his stack pointer, into the ring.
 *
 * One program for each way to attach; all of them come to `send`.
 */
#include "send.h"

/* Where the kernel was: of its own stack, the innermost address but `skipped`. */
inline_always __u64 kernel_ip(void *ctx, __u64 skipped)
{
	__u64 ip = 0;

	get_stack(ctx, &ip, sizeof(ip), skipped);
	return ip;
}

SEC("kprobe")
int on_kprobe(void *ctx)
{
	send(kernel_ip(ctx, 0), get_attach_cookie(ctx), 0, 0);
	return 0;
}

SEC("tracepoint")
int on_tracepoint(void *ctx)
{
	/* Skipped: __traceiter_NAME. */
	send(kernel_ip(ctx, 1), get_attach_cookie(ctx), 0, 0);
	return 0;
}

SEC("raw_tracepoint")
int on_raw_tracepoint(void *ctx)
{
	/* Skipped: this program, bpf_trace_runN, __traceiter_NAME. */
	send(kernel_ip(ctx, 3), 0, 0, 0);
	return 0;
}

SEC("tp_btf")
int on_btf_tracepoint(void *ctx)
{
	send(kernel_ip(ctx, 3), 0, 0, 0);
	return 0;
}

SEC("fentry")
int on_fentry(void *ctx)
{
	/* Skipped: this program and its trampoline. */
	send(kernel_ip(ctx, 2), 0, 0, 0);
	return 0;
}

SEC("perf_event")
int on_perf_event(void *ctx)
{
	send(0, get_attach_cookie(ctx), 0, 0);
	return 0;
}

SEC("uprobe")
int on_uprobe(USER_REGS *ctx)
{
	send(0, get_attach_cookie(ctx), 1, ctx);
	return 0;
}

const char permission[] SEC("license") = "Dual MIT/GPL";
