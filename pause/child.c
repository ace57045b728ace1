#include "child.h"
#include "interp.h"

struct child children[MAX_CHILDREN];    /* untouched pages cost nothing */
u32 nchildren;

static int self;                /* pidfd of pause */
static int away;                /* children would be born in another PID namespace */
static struct rlimit_ files;    /* RLIMIT_NOFILE as it was given to us */

/* pause may have as many descriptors as possible; its children get the limit
 * that the node was given. */
int children_init(void)
{
	struct rlimit_ most;

	sys(__NR_prlimit64, 0, RLIMIT_NOFILE_, NULL, &files);
	most = (struct rlimit_){files.max, files.max};
	sys(__NR_prlimit64, 0, RLIMIT_NOFILE_, &most, NULL);
	self = (int)sys(__NR_pidfd_open, sys(__NR_getpid), 0);
	return self;
}

static s64 now(void)
{
	struct timespec_ t = {0};

	sys(__NR_clock_gettime, CLOCK_REALTIME_, &t);
	return t.sec * 1000000000 + t.nsec;
}

static int same_id(const char *a, const char *b)
{
	for (int i = 0; i < ID_SIZE; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

static struct child *find(const char *id)
{
	for (u32 i = 0; i < nchildren; i++)
		if (children[i].state != FREE && same_id(children[i].id, id))
			return &children[i];
	return NULL;
}

static struct child *free_slot(void)
{
	for (u32 i = 0; i < nchildren; i++)
		if (children[i].state == FREE)
			return &children[i];
	return nchildren < MAX_CHILDREN ? &children[nchildren++] : NULL;
}

void reap(void)
{
	s32 status, pid;

	while ((pid = (s32)sys(__NR_wait4, -1, &status, WNOHANG | __WALL, NULL)) > 0) {
		for (u32 i = 0; i < nchildren; i++) {
			struct child *c = &children[i];

			if (c->state != RUNNING || c->pid != pid)
				continue;
			c->state = EXITED;
			c->status = status;
			c->finished = now();
			break;
		}
	}
}

int release(const char *id)
{
	struct child *c = find(id);

	if (!c)
		return ENOENT;
	if (c->state == RUNNING)
		return EBUSY;
	while (c->nkeep)
		close_fd(c->keep[--c->nkeep]);
	c->state = FREE;
	return 0;
}

int drop_kept(const char *id)
{
	struct child *c = find(id);

	if (!c || !c->nkeep)
		return ENOENT;
	close_fd(c->keep[--c->nkeep]);
	return 0;
}

int carry_out(int recipe, const int *fds, u32 nfds, int report, u32 *step)
{
	long size = sys(__NR_lseek, recipe, 0, SEEK_END_), blob;
	int error;

	*step = REPORT_RECIPE;
	if (size <= 0)
		return EINVAL;
	blob = sys(__NR_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, recipe, 0);
	if (is_error(blob))
		return (int)-blob;
	error = recipe_check((void *)blob, (u64)size, nfds);
	if (!error)
		error = recipe_run((void *)blob, fds, report, step);
	sys(__NR_munmap, blob, size);
	return error;
}

/* What a new child does: become what the recipe says, or report and end. */
static void become(int recipe, int report, const int *fds, u32 nfds)
{
	struct report r = {0};
	u64 none = 0;

	leave_conversation();
	sys(__NR_rt_sigprocmask, SIG_SETMASK_, &none, NULL, sizeof none);
	sys(__NR_prlimit64, 0, RLIMIT_NOFILE_, &files, NULL);
	r.error = (u32)carry_out(recipe, fds, nfds, report, &r.step);
	if (r.error == 0)       /* ran off its end without execve */
		r = (struct report){REPORT_RECIPE, ENOEXEC};
	sys(__NR_write, report, &r, sizeof r);
	sys(__NR_exit_group, 127);
}

static const u64 NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
			      CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

int spawn(const struct request *r, const int *fds, u32 nfds, int *pidfd, s64 *started)
{
	struct clone_args a = {.flags = r->cloneflags | CLONE_PIDFD, .exit_signal = SIG_CHLD, .pidfd = (u64)pidfd};
	u32 first = 2 + !!(r->flags & SPAWN_PIDNS) + !!(r->flags & SPAWN_CGROUP);
	struct child *c;
	long pid;

	if (r->cloneflags & ~NAMESPACES || r->flags & ~(SPAWN_PIDNS | SPAWN_CGROUP) ||
	    r->nkeep > MAX_KEEP || nfds < first + r->nkeep || !r->id[0])
		return EINVAL;
	if (find(r->id))
		return EEXIST;
	if (!(c = free_slot()))
		return ENOSPC;
	if (r->flags & SPAWN_CGROUP) {
		a.flags |= CLONE_INTO_CGROUP;
		a.cgroup = (u64)fds[first - 1];
	}
	if (r->flags & SPAWN_PIDNS || away) {
		int ns = r->flags & SPAWN_PIDNS ? fds[2] : self;
		long ret = sys(__NR_setns, ns, CLONE_NEWPID);

		if (is_error(ret))
			return (int)-ret;
		away = ns != self;
	}
	*started = now();
	pid = sys(__NR_clone3, &a, sizeof a);
	if (pid == 0)
		become(fds[0], fds[1], fds + first, nfds - first - r->nkeep);
	if (away && !is_error(sys(__NR_setns, self, CLONE_NEWPID)))
		away = 0;
	if (is_error(pid))
		return (int)-pid;

	c->state = RUNNING;
	c->pid = (s32)pid;
	c->started = *started;
	__builtin_memcpy(c->id, r->id, ID_SIZE);
	c->nkeep = (s32)r->nkeep;
	for (u32 i = 0; i < r->nkeep; i++)
		c->keep[i] = fds[nfds - r->nkeep + i];
	return 0;
}
