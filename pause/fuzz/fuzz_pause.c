/*
 * libFuzzer harness of pause itself: its real main loop over a fake kernel that
 * is driven by the input, with requests, ends of children, errors, slow and
 * vanishing nodes in any order. Besides what ASan and UBSan see, it checks that
 * no descriptor is used or closed that isn't open, and that in the end exactly
 * those are open that pause has a right to.
 */
#include "../interp.c"
#include "../child.c"
#include "../pause.c"

void launch(void) {}

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define require(cond) do { if (!(cond)) __builtin_trap(); } while (0)

enum { NFDS = 4096, PEER_UID = 0, TAME_RECIPE = sizeof(struct recipe_header) + sizeof(struct recipe_step) };

static unsigned char open_fds[NFDS];
static int nopen, lowest;        /* no free number is below lowest */
static const unsigned char *input;
static size_t left;
static jmp_buf over;
enum { END_OF_INPUT = 1, PAUSE_EXITS, CHILD_EXITS };
static int in_child;
static void *mapped;
static s32 next_pid;

static unsigned char byte(void)
{
	if (!left)
		longjmp(over, END_OF_INPUT);
	left--;
	return *input++;
}

static int open_fd(void)
{
	while (open_fds[lowest])
		lowest++;
	require(lowest < NFDS - 1);
	open_fds[lowest] = 1;
	nopen++;
	return lowest++;
}

static void must_be_open(long fd)
{
	require(fd >= 0 && fd < NFDS && open_fds[fd]);
}

static long fake_close(long fd)
{
	must_be_open(fd);
	open_fds[fd] = 0;
	nopen--;
	if (fd < lowest)
		lowest = (int)fd;
	return 0;
}

static long fake_recvmsg(struct msghdr_ *m)
{
	struct request *r = m->iov->base;
	struct cmsghdr_ *h = m->control;
	unsigned char what = byte(), nfds = byte();
	u64 room = m->controllen;

	if (what % 16 == 0)
		return what & 16 ? 0 : -EAGAIN;
	if (what % 16 == 1)
		return -ECONNRESET;
	m->flags = 0;
	r->type = what % 16 > 12 ? byte() : 1 + (u32)what % 8;
	r->serial = byte() % 4;
	r->magic = byte() & 7 ? PROTOCOL_MAGIC : 0;
	r->cloneflags = byte() & 1 ? CLONE_NEWPID : (u64)byte() << 8;
	r->flags = byte() % 5;
	r->nkeep = byte() % 11;
	r->id[0] = (char)(byte() % 8);
	r->id[ID_SIZE - 1] = (char)(byte() == 255);
	if (byte() == 255)
		((char *)r)[MAX_MESSAGE - 1] = 1;
	m->controllen = 0;
	if (nfds) {
		u32 n = nfds & 128 ? 253 : nfds;

		require(room >= sizeof *h + n * sizeof(int));
		h->len = sizeof *h + n * sizeof(int);
		h->level = SOL_SOCKET_;
		h->type = SCM_RIGHTS_;
		for (u32 i = 0; i < n; i++)
			((int *)(h + 1))[i] = open_fd();
		m->controllen = h->len;
		if (byte() == 255)
			m->flags |= MSG_CTRUNC_;
	}
	return sizeof *r;
}

static long fake_sendmsg(const struct msghdr_ *m)
{
	const struct cmsghdr_ *h = m->control;
	unsigned char what = byte();

	require(m->iov->len == sizeof(struct message));
	if (h) {
		require(h->len == m->controllen);
		for (u64 i = 0; i < (h->len - sizeof *h) / sizeof(int); i++)
			must_be_open(((const int *)(h + 1))[i]);
	}
	if (what % 4 == 0)
		return what & 4 ? -EAGAIN : -EPIPE;
	return (long)m->iov->len;
}

static long fake_wait4(s32 *status)
{
	unsigned char what = byte();

	if (what % 2)
		return -ECHILD;
	*status = what << 8;
	for (u32 i = 0; what & 2 && i < nchildren; i++)
		if (children[i].state == RUNNING && what & 4)
			return children[i].pid;
	return 100000 + what;   /* an orphan */
}

static long fake_mmap(long size)
{
	require(!mapped);
	mapped = malloc((size_t)size);
	for (long i = 0; i < size; i++)
		((char *)mapped)[i] = (char)(left ? byte() : 0);
	if (size >= (long)sizeof(struct recipe_header)) {
		struct recipe_header *h = mapped;

		h->magic = RECIPE_MAGIC;
		h->size = (u32)size;
		h->zero = 0;
		if (size == TAME_RECIPE) {      /* one step, with the right number of files */
			h->nsteps = 1;
			h->steps = sizeof *h;
			h->nrelocs = 0;
			h->nfds = stash.n - 1;
			((struct recipe_step *)(h + 1))->nargs = ((struct recipe_step *)(h + 1))->zero = 0;
			((struct recipe_step *)(h + 1))->store = 0;
		}
	}
	return (long)mapped;
}

static long fake_poll(struct pollfd *p, long n)
{
	unsigned char what = byte();

	if (n == 1) {   /* is the creator gone? */
		p->revents = what == 255 ? POLLHUP : 0;
		return 1;
	}
	for (long i = 0; i < n; i++) {
		p[i].revents = 0;
		if (p[i].fd < 0)
			continue;
		must_be_open(p[i].fd);
		if (what & 1 << i)
			p[i].revents = p[i].events;
	}
	return what & 8 ? -EINTR : n;
}

static long fake_close_range(u32 first, long flags)
{
	if (flags)
		return 0;
	for (u32 fd = first; fd < NFDS; fd++)
		if (open_fds[fd])
			fake_close(fd);
	return 0;
}

/* A step of a recipe, or a call that only can succeed or fail. */
static long fake_other(void)
{
	unsigned char what = left ? byte() : 0;

	return what & 7 ? 0 : -(long)(what >> 3);
}

long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	(void)e, (void)f;
	switch (mapped ? __NR_exit_group + 1000 : nr) {
	case __NR_close: return fake_close(a);
	case __NR_recvmsg: must_be_open(a); return fake_recvmsg((void *)b);
	case __NR_sendmsg: must_be_open(a); return fake_sendmsg((void *)b);
	case __NR_ppoll: return fake_poll((void *)a, b);
	case __NR_accept4: must_be_open(a); return byte() & 1 ? open_fd() : -EAGAIN;
	case __NR_getsockopt:
		must_be_open(a);
		((struct ucred_ *)d)->uid = ready && byte() == 255 ? 1 : PEER_UID;
		return 0;
	case __NR_pidfd_open: case __NR_signalfd4: return open_fd();
	case __NR_clone3: {
		unsigned char what = byte();
		struct clone_args *args = (void *)a;

		require(!(args->flags & ~(NAMESPACES | CLONE_PIDFD | CLONE_INTO_CGROUP)));
		if (args->flags & CLONE_INTO_CGROUP)
			must_be_open((long)args->cgroup);
		if (what == 0)
			return -EAGAIN;
		if (what == 1)
			return in_child = 1, 0;
		*(int *)args->pidfd = open_fd();
		return next_pid++;
	}
	case __NR_read: {
		unsigned char what = byte();

		if (what % 3)
			return -EAGAIN;
		((u32 *)b)[0] = what == 255 ? SIG_TERM : SIG_CHLD;
		return c;
	}
	case __NR_wait4: return fake_wait4((void *)b);
	case __NR_lseek: must_be_open(a); return byte() & 1 ? TAME_RECIPE : byte() * 2 - 2;
	case __NR_mmap: return fake_mmap(b);
	case __NR_close_range: return fake_close_range((u32)a, c);
	case __NR_exit_group: longjmp(over, in_child ? CHILD_EXITS : PAUSE_EXITS);
	case __NR_setns: must_be_open(a); return fake_other();
	case __NR_listen: must_be_open(a); return 0;
	case __NR_write: must_be_open(a); return c;
	case __NR_clock_gettime: case __NR_getpid: case __NR_prctl: case __NR_setsid:
	case __NR_rt_sigprocmask: case __NR_rt_sigaction: case __NR_prlimit64: return 0;
	}
	/* While a recipe is mapped its steps come here; its end is munmap. */
	if (nr == __NR_munmap && (void *)a == mapped) {
		free(mapped);
		mapped = NULL;
		return 0;
	}
	if (nr == __NR_exit_group)
		longjmp(over, in_child ? CHILD_EXITS : PAUSE_EXITS);
	if (nr == __NR_write)
		return c;
	return fake_other();
}

static void forget_everything(void)
{
	memset(children, 0, nchildren * sizeof *children);
	memset(&stash, 0, sizeof stash);
	memset(&out, 0, sizeof out);
	memset(&list, 0, sizeof list);
	memset(open_fds, 0, sizeof open_fds);
	nchildren = 0;
	lowest = LISTENER;
	conn = -1;
	greeted = ready = away = nopen = in_child = 0;
	next_pid = 2;
	free(mapped);
	mapped = NULL;
}

static void check_descriptors(void)
{
	int expected = 3 + (conn >= 0) + (int)stash.n + out.own;   /* listener, signals, self */

	for (u32 i = 0; i < nchildren; i++) {
		for (int k = 0; children[i].state != FREE && k < children[i].nkeep; k++)
			must_be_open(children[i].keep[k]);
		expected += children[i].nkeep;
	}
	require(nopen == expected && (ready || nchildren == 0));
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	forget_everything();
	input = data;
	left = size;
	require(open_fd() == LISTENER && open_fd() == CREATOR);
	if (!setjmp(over)) {
		be_born();
		for (;;) {
			live();
			check_descriptors();
		}
	}
	forget_everything();
	return 0;
}
