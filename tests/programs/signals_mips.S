/* SPDX-License-Identifier: MIT */
/*
 * A function that faults at its very first instruction.  Whoever looks up pc - 8 for a
 * frame that a signal interrupted finds the function before it, whose row says that the
 * CFA lies 4096 bytes away.
 */
	.text
	.set	noreorder
	.globl	neighbour
	.ent	neighbour
	.type	neighbour, @function
neighbour:
	.cfi_startproc
	addiu	$sp, $sp, -4096
	.cfi_adjust_cfa_offset 4096
	break
	break
	.cfi_endproc
	.end	neighbour
	.size	neighbour, . - neighbour

	.globl	fault_on_entry
	.ent	fault_on_entry
	.type	fault_on_entry, @function
fault_on_entry:
	.cfi_startproc
	sw	$0, 0($0)
	jr	$ra
	nop
	.cfi_endproc
	.end	fault_on_entry
	.size	fault_on_entry, . - fault_on_entry

	.section .note.GNU-stack, "", @progbits
