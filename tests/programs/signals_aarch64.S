/* SPDX-License-Identifier: MIT */
/*
 * A function that faults at its very first instruction, by a null pointer in x1.  Whoever
 * looks up pc - 4 for a frame that a signal interrupted finds the function before it,
 * whose row says that the CFA lies 4080 bytes away.
 */
	.text
	.globl	neighbour
	.type	neighbour, @function
neighbour:
	.cfi_startproc
	sub	sp, sp, #4080
	.cfi_adjust_cfa_offset 4080
	udf	#0
	.cfi_endproc
	.size	neighbour, . - neighbour

	.globl	fault_on_entry
	.type	fault_on_entry, @function
fault_on_entry:
	.cfi_startproc
	str	wzr, [x1]
	ret
	.cfi_endproc
	.size	fault_on_entry, . - fault_on_entry

	.section .note.GNU-stack, "", @progbits
