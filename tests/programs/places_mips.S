/* SPDX-License-Identifier: MIT */
/*
 * For places.c: each function faults at .Lpc_<name> and tells that address in <name>_pc,
 * or 0 where kernel and emulator differ: of a delay slot the kernel tells the branch.
 */
	.set	noreorder

	.macro	FUNCTION name
	.text
	.p2align 4
	.globl	\name
	.ent	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.endm

	.macro	END name
	.cfi_endproc
	.end	\name
	.size	\name, . - \name
	.endm

	.macro	TELL name, pc
	.section .data.rel.ro, "aw"
	.p2align 2
	.globl	\name\()_pc
	.type	\name\()_pc, @object
	.size	\name\()_pc, 4
\name\()_pc:
	.word	\pc
	.endm

	/* Frame 0 is looked up at pc itself: pc - 8 is not even in this function. */
	FUNCTION crash_on_entry
.Lpc_crash_on_entry:
	sw	$0, 0($0)
	jr	$ra
	nop
	END	crash_on_entry
	TELL	crash_on_entry, .Lpc_crash_on_entry

	/* ra is saved, s8 is not yet. */
	FUNCTION crash_in_prologue
	addiu	$sp, $sp, -48
	.cfi_adjust_cfa_offset 48
	sw	$ra, 44($sp)
	.cfi_offset 31, -4
	li	$ra, -1			/* who takes the live register is lost */
.Lpc_crash_in_prologue:
	sw	$0, 0($0)
	sw	$s8, 40($sp)
	.cfi_offset 30, -8
	move	$s8, $sp
	move	$sp, $s8
	lw	$ra, 44($sp)
	.cfi_restore 31
	lw	$s8, 40($sp)
	.cfi_restore 30
	jr	$ra
	addiu	$sp, $sp, 48
	.cfi_adjust_cfa_offset -48
	END	crash_in_prologue
	TELL	crash_in_prologue, .Lpc_crash_in_prologue

	/* After the last load: the slots lie below sp and are wiped. */
	FUNCTION crash_in_epilogue
	addiu	$sp, $sp, -32
	.cfi_adjust_cfa_offset 32
	sw	$ra, 28($sp)
	.cfi_offset 31, -4
	sw	$s8, 24($sp)
	.cfi_offset 30, -8
	li	$s8, -1
	lw	$s8, 24($sp)
	.cfi_restore 30
	lw	$ra, 28($sp)
	.cfi_restore 31
	addiu	$sp, $sp, 32
	.cfi_adjust_cfa_offset -32
	sw	$0, -4($sp)
	sw	$0, -8($sp)
.Lpc_crash_in_epilogue:
	sw	$0, 0($0)
	jr	$ra
	nop
	END	crash_in_epilogue
	TELL	crash_in_epilogue, .Lpc_crash_in_epilogue

	/* Locals, a saved register, and the return address in ra all the while. */
	FUNCTION crash_in_leaf
	addiu	$sp, $sp, -64
	.cfi_adjust_cfa_offset 64
	sw	$s8, 40($sp)
	.cfi_offset 30, -24
	li	$s8, -1
.Lpc_crash_in_leaf:
	sw	$0, 0($0)
	lw	$s8, 40($sp)
	.cfi_restore 30
	jr	$ra
	addiu	$sp, $sp, 64
	.cfi_adjust_cfa_offset -64
	END	crash_in_leaf
	TELL	crash_in_leaf, .Lpc_crash_in_leaf

	FUNCTION crash_after_tail_call
	addiu	$sp, $sp, -32
	.cfi_adjust_cfa_offset 32
	sw	$ra, 28($sp)
	.cfi_offset 31, -4
	lw	$ra, 28($sp)
	.cfi_restore 31
	b	tail_callee
	addiu	$sp, $sp, 32
	.cfi_adjust_cfa_offset -32
	END	crash_after_tail_call

	FUNCTION tail_callee
	addiu	$sp, $sp, -24
	.cfi_adjust_cfa_offset 24
.Lpc_crash_after_tail_call:
	sw	$0, 0($0)
	jr	$ra
	addiu	$sp, $sp, 24
	.cfi_adjust_cfa_offset -24
	END	tail_callee
	TELL	crash_after_tail_call, .Lpc_crash_after_tail_call

	/* Behind its own return, as it were: the function after it has another frame. */
	FUNCTION crash_in_delay_slot
	move	$v0, $0
	jr	$ra
	sw	$0, 0($0)
	END	crash_in_delay_slot
	TELL	crash_in_delay_slot, 0

	FUNCTION after_delay_slot
	addiu	$sp, $sp, -4096
	.cfi_adjust_cfa_offset 4096
	break
	END	after_delay_slot

	/* ra is the called function's already, whose first instruction never comes. */
	FUNCTION crash_in_delay_slot_of_call
	addiu	$sp, $sp, -24
	.cfi_adjust_cfa_offset 24
	sw	$ra, 20($sp)
	.cfi_offset 31, -4
	bal	after_delay_slot
	sw	$0, 0($0)
	lw	$ra, 20($sp)
	.cfi_restore 31
	jr	$ra
	addiu	$sp, $sp, 24
	.cfi_adjust_cfa_offset -24
	END	crash_in_delay_slot_of_call
	TELL	crash_in_delay_slot_of_call, 0

	.section .note.GNU-stack, "", @progbits
