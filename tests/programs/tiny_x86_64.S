/*
 * What tiny.c cannot say in C. Without CFI where NO_CFI is defined; in .debug_frame where
 * DEBUG_FRAME is.
 */
#ifdef NO_CFI
#define CFI(...)
#else
#define CFI(...) __VA_ARGS__
#ifdef DEBUG_FRAME
	.cfi_sections .debug_frame
#endif
#endif

	.text
	.globl _start, spawn, restorer, hand_written

	.type _start, @function
_start:
	CFI(.cfi_startproc)
	CFI(.cfi_undefined rip)
	xor	%ebp, %ebp
	and	$-16, %rsp
	call	start
	hlt
	CFI(.cfi_endproc)
	.size _start, . - _start

/* long spawn(void (*function)(int), void *stack_top): clone(2) as pthread_create does it */
	.type spawn, @function
spawn:
	CFI(.cfi_startproc)
	mov	%rdi, %r9
	mov	$0x50f00, %edi	/* VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
	xor	%edx, %edx
	xor	%r10d, %r10d
	xor	%r8d, %r8d
	mov	$56, %eax
	syscall
	test	%rax, %rax
	jz	1f
	ret
1:	CFI(.cfi_undefined rip)
	xor	%ebp, %ebp
	mov	$4, %edi
	call	*%r9
	hlt
	CFI(.cfi_endproc)
	.size spawn, . - spawn

/* As glibc's __restore_rt: registers by expressions over the ucontext that rsp points to. */
#define SAVED(number, low, high) CFI(.cfi_escape 0x10, number, 3, 0x77, low, high)
	CFI(.cfi_startproc)
	CFI(.cfi_signal_frame)
	CFI(.cfi_escape 0x0f, 4, 0x77, 0xa0, 1, 6)	/* the CFA: [rsp + 160] */
	SAVED(8, 0x28, 0x96)	/* rsp + 40; 0x96 is DW_OP_nop */
	SAVED(9, 0x30, 0x96)
	SAVED(10, 0x38, 0x96)
	SAVED(12, 0xc8, 0)
	SAVED(13, 0xd0, 0)
	SAVED(14, 0xd8, 0)
	SAVED(15, 0xe0, 0)
	SAVED(6, 0xf8, 0)
	SAVED(3, 0x80, 1)
	SAVED(7, 0xa0, 1)
	SAVED(16, 0xa8, 1)
	nop
	.type restorer, @function
restorer:
	mov	$15, %rax
	syscall
	CFI(.cfi_endproc)
	.size restorer, . - restorer

/* void hand_written(void (*callback)(int), int depth) */
	.type hand_written, @function
hand_written:
	CFI(.cfi_startproc)
	push	%rbx
	CFI(.cfi_def_cfa_offset 16)
	CFI(.cfi_offset rbx, -16)
	CFI(.cfi_remember_state)
	test	%rdi, %rdi
	jnz	1f
	pop	%rbx
	CFI(.cfi_def_cfa_offset 8)
	CFI(.cfi_restore rbx)
	ret
1:	CFI(.cfi_restore_state)
	push	%r12
	CFI(.cfi_def_cfa_offset 24)
	CFI(.cfi_escape 0x10, 12, 2, 0x77, 0)	/* r12 at [rsp + 0] */
	sub	$24, %rsp
	CFI(.cfi_def_cfa_offset 48)
	CFI(.cfi_escape 0x10, 12, 2, 0x77, 24)
	CFI(.cfi_escape 0x2e, 16)		/* GNU_args_size */
	CFI(.cfi_escape 0x16, 13, 3, 0x7d, 1, 0x96)	/* r13 is r13 + 1 */
	CFI(.cfi_escape 0x14, 14, 2)		/* r14 is CFA - 16 */
	CFI(.cfi_escape 0x0f, 2, 0x77, 48)	/* the CFA: rsp + 48 */
	mov	%rdi, %rax
	mov	%esi, %edi
	call	*%rax
	add	$24, %rsp
	CFI(.cfi_def_cfa rsp, 24)
	pop	%r12
	CFI(.cfi_def_cfa_offset 16)
	pop	%rbx
	CFI(.cfi_def_cfa_offset 8)
	ret
	CFI(.cfi_endproc)
	.size hand_written, . - hand_written

	.section .note.GNU-stack, "", @progbits
