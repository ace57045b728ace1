/*
 * The floor pause stands on: raw Linux system calls, and the few kernel
 * structures that the uapi headers leave to a libc. There is no libc here.
 *
 * sys(NR_x, ...) returns what the kernel returns: a value, or -errno.
 */
#ifndef PAUSE_SYS_H
#define PAUSE_SYS_H

#include <asm/unistd.h>
#include <linux/close_range.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <linux/wait.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define NULL ((void *)0)

/* From the kernel's headers, where they are not exported or come with a libc's clothes. */
enum {
	SIG_INT = 2, SIG_TERM = 15, SIG_CHLD = 17, SIG_MAX = 64, SIG_SETMASK_ = 2,
	SOL_SOCKET_ = 1, SO_PEERCRED_ = 17, SCM_RIGHTS_ = 1,
	MSG_PEEK_ = 0x2, MSG_CTRUNC_ = 0x8, MSG_TRUNC_ = 0x20, MSG_DONTWAIT_ = 0x40, MSG_NOSIGNAL_ = 0x4000,
	MSG_CMSG_CLOEXEC_ = 0x40000000,
	O_CLOEXEC_ = 02000000, O_NONBLOCK_ = 04000,
	SEEK_END_ = 2, CLOCK_REALTIME_ = 0, RLIMIT_NOFILE_ = 7,
};

struct iovec_ { void *base; u64 len; };
struct msghdr_ {
	void *name; s32 namelen;
	struct iovec_ *iov; u64 iovlen;
	void *control; u64 controllen;
	u32 flags;
};
struct cmsghdr_ { u64 len; s32 level, type; };
struct ucred_ { s32 pid; u32 uid, gid; };
struct timespec_ { s64 sec, nsec; };
struct rlimit_ { u64 cur, max; };
struct sigaction_ { u64 handler, flags, restorer, mask; };

#ifdef PAUSE_FUZZ
long syscall6(long nr, long a, long b, long c, long d, long e, long f);
#elif defined(__x86_64__)
static inline long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static inline long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}
#else
#error "pause knows x86_64 and aarch64"
#endif

#define SYS_7TH(nr, a, b, c, d, e, f, ...) \
	syscall6((nr), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define sys(...) SYS_7TH(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

#define is_error(ret) ((unsigned long)(ret) >= (unsigned long)-4095L)

#endif
