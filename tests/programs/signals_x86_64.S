/* SPDX-License-Identifier: MIT */
/*
 * A function that faults at its very first instruction.  Whoever looks up pc - 1 for
 * a frame that a signal interrupted finds the function before it, whose row says that
 * the CFA lies 4096 bytes away.
 */
	.text
	.globl	neighbour
	.type	neighbour, @function
neighbour:
	.cfi_startproc
	subq	$4096, %rsp
	.cfi_adjust_cfa_offset 4096
	ud2
	.cfi_endproc
	.size	neighbour, . - neighbour

	.globl	fault_on_entry
	.type	fault_on_entry, @function
fault_on_entry:
	.cfi_startproc
	movl	$0, 0
	ret
	.cfi_endproc
	.size	fault_on_entry, . - fault_on_entry

	.section .note.GNU-stack, "", @progbits
