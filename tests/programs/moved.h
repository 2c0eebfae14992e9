/* SPDX-License-Identifier: MIT */
/*
 * MOVED_CALL(bytes, adjust, function, argument) calls `function` from inline assembler that
 * has moved the stack pointer `bytes` down, a multiple of 16, and gives its result.
 *
 * `adjust` says so to the CFI: TOLD, right where the CFA hangs on the stack pointer, or
 * UNTOLD, right where it hangs on a frame pointer, or where there is no CFI.  Nobody tells
 * the compiler.
 */
#ifndef MOVED_H
#define MOVED_H

#define TOLD(bytes)	".cfi_adjust_cfa_offset " bytes "\n\t"
#define UNTOLD(bytes)	""

#if defined(__x86_64__)

#define MOVED_CALL(bytes, adjust, function, argument)				\
	({									\
		long moved_result, moved_argument = (argument);			\
		__asm__ volatile("subq	$" #bytes ", %%rsp\n\t"			\
				 adjust(#bytes)					\
				 "call	*%[to]\n\t"				\
				 "addq	$" #bytes ", %%rsp\n\t"			\
				 adjust("-" #bytes)				\
				 : "=&a"(moved_result), "+D"(moved_argument)	\
				 : [to] "r"(function)				\
				 : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11",	\
				   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",	\
				   "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",	\
				   "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");	\
		moved_result;							\
	})

#elif defined(__aarch64__)

#define MOVED_CALL(bytes, adjust, function, argument)				\
	({									\
		register long moved_x0 __asm__("x0") = (argument);		\
		__asm__ volatile("sub	sp, sp, #" #bytes "\n\t"		\
				 adjust(#bytes)					\
				 "blr	%[to]\n\t"				\
				 "add	sp, sp, #" #bytes "\n\t"		\
				 adjust("-" #bytes)				\
				 : "+r"(moved_x0)				\
				 : [to] "r"(function)				\
				 : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9",	\
				   "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",	\
				   "x18", "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6",	\
				   "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",	\
				   "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",	\
				   "v31", "cc", "memory");			\
		moved_x0;							\
	})

#elif defined(__mips__)

/* A PIC callee changes $gp, and the compiler does not know of the call. */
#define MOVED_CALL(bytes, adjust, function, argument)				\
	({									\
		register long moved_v0 __asm__("$2");				\
		register long moved_a0 __asm__("$4") = (argument);		\
		register void *moved_t9 __asm__("$25") = (void *)(function);	\
		__asm__ volatile(".set	push\n\t"				\
				 ".set	noreorder\n\t"				\
				 "move	$16, $28\n\t"				\
				 "addiu	$29, $29, -" #bytes "\n\t"		\
				 adjust(#bytes)					\
				 "jalr	$25\n\t"				\
				 "nop\n\t"					\
				 "addiu	$29, $29, " #bytes "\n\t"		\
				 adjust("-" #bytes)				\
				 "move	$28, $16\n\t"				\
				 ".set	pop\n\t"				\
				 : "=r"(moved_v0), "+r"(moved_a0), "+r"(moved_t9)	\
				 :						\
				 : "$1", "$3", "$5", "$6", "$7", "$8", "$9", "$10", "$11",	\
				   "$12", "$13", "$14", "$15", "$16", "$24", "$31", "$f0",	\
				   "$f1", "$f2", "$f3", "$f4", "$f5", "$f6", "$f7", "$f8",	\
				   "$f9", "$f10", "$f11", "$f12", "$f13", "$f14", "$f15",	\
				   "$f16", "$f17", "$f18", "$f19", "hi", "lo", "memory");	\
		moved_v0;							\
	})

#else
#error "moved.h: teach MOVED_CALL this architecture"
#endif

#endif
