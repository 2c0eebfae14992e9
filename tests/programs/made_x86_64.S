/* SPDX-License-Identifier: MIT */
/* For made.c, which copies it: a jump to its own beginning, or in the end a call. */

	.section .rodata
	.globl	made_begin, made_after, made_end
made_begin:
	pushq	%rbp
	movq	%rsp, %rbp
	testq	%rdi, %rdi
	jz	1f
	decq	%rdi
	leaq	made_after(%rip), %rax
	pushq	%rax
	jmp	made_begin
	nop				/* what comes before is no call */
made_after:
	popq	%rbp
	ret
1:	pushq	%rbp			/* keeps the stack aligned where jumps are even */
	call	*%rsi
	leave
	ret
made_end:
	.section .note.GNU-stack, "", @progbits
