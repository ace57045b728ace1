/*
 * pause: the parent of all processes of a pod.
 *
 * The node clones it into the pod's namespaces and talks to it over a socket.
 * It clones children and lets them carry out recipes (interp.c), reaps them
 * and every orphan, and remembers exit statuses and descriptors until the node
 * releases them. It decides nothing, trusts nobody but its creator and never
 * blocks but in ppoll. Read pause_main and live at the end, then serve, then
 * spawn in child.c.
 */
#include "child.h"
#include "interp.h"
#include "launch.h"

enum {
	MAX_STASH = 1024,       /* descriptors that come with one request */
	MAX_SCM = 253,          /* ... with one message (the kernel's SCM_MAX_FD) */
	MAX_MESSAGE = 512,
};

static int signals;             /* signalfd */
static int last;                /* of the descriptors that are pause's own */
static int conn = -1;           /* the node's connection */
static int greeted, ready;      /* HELLO was done; SETUP was done */
static struct ucred_ creator;   /* as we see it */

/* Descriptors received for the request with this serial. */
static struct { int fd[MAX_STASH]; u32 n, serial; int error; } stash;

/* The one message on its way out; nothing is read before it is gone. */
static struct { struct message m; int fd[1 + MAX_KEEP], nfds, own; int pending; } out;

/* A LIST being answered: the next slot and the request's serial. */
static struct { u32 next, serial; int active; } list;

static void drop_stash(void)
{
	while (stash.n)
		close_fd(stash.fd[--stash.n]);
	stash.error = 0;
}

void leave_conversation(void)
{
	close_fd(LISTENER);
	close_fd(conn);
}

/* ---- requests ---- */

static int creator_is_gone(void)
{
	struct pollfd p = {.fd = conn};
	struct timespec_ at_once = {0};

	sys(__NR_ppoll, &p, 1, &at_once, NULL, 0);
	return p.revents & POLLHUP;
}

/* pause's own recipe: empty root, sysctls. Whatever it leaves open is closed.
 * Only then can anybody else connect. A creator that died meanwhile may have a
 * successor that has already found nobody here: then there must be nobody. If
 * it dies later, the successor can connect. */
static int setup(u32 *step)
{
	long ret;
	int error = 0;

	if (ready)
		return EALREADY;
	*step = REPORT_RECIPE;
	if (stash.n)
		error = carry_out(stash.fd[0], stash.fd + 1, stash.n - 1, -1, step);
	if (error)
		return error;
	stash.n = 0;
	sys(__NR_close_range, last + 1, ~0u, 0);
	ret = sys(__NR_listen, LISTENER, 16);
	if (is_error(ret))
		return (int)-ret;
	if (creator_is_gone())
		sys(__NR_exit_group, 1);
	ready = 1;
	return 0;
}

/* ---- the connection ---- */

static void hang_up(void)
{
	if (!ready)
		sys(__NR_exit_group, 1);  /* half made, and nobody will finish it */
	close_fd(conn);
	conn = -1;
	greeted = list.active = 0;
	drop_stash();
	while (out.own)
		close_fd(out.fd[--out.own]);
	out.pending = 0;
	for (u32 i = 0; i < nchildren; i++)
		if (children[i].state == TOLD)
			children[i].state = EXITED;
}

/* Only who is what our creator was may speak: the same uid and, where we have a
 * PID namespace, outside of it (0), so that no container of ours ever may. */
static int is_node(int fd)
{
	struct ucred_ peer = {0};
	u32 len = sizeof peer;

	return !is_error(sys(__NR_getsockopt, fd, SOL_SOCKET_, SO_PEERCRED_, &peer, &len)) &&
	       peer.uid == creator.uid && !peer.pid == !creator.pid;
}

/* A new connection replaces the old: a node that was restarted doesn't wait
 * for its predecessor's socket to be closed. */
static void accept_node(void)
{
	long fd = sys(__NR_accept4, LISTENER, NULL, NULL, O_CLOEXEC_ | O_NONBLOCK_);

	if (is_error(fd))
		return;
	if (!is_node((int)fd)) {
		close_fd((int)fd);
		return;
	}
	if (conn >= 0)
		hang_up();
	conn = (int)fd;
}

/* Send what is pending; keep it if the node is slow. */
static void flush(void)
{
	struct { struct cmsghdr_ h; int fd[1 + MAX_KEEP]; } control = {
		.h = {sizeof control.h + (u64)out.nfds * sizeof(int), SOL_SOCKET_, SCM_RIGHTS_},
	};
	struct iovec_ iov = {&out.m, sizeof out.m};
	struct msghdr_ msg = {.iov = &iov, .iovlen = 1};
	long ret;

	__builtin_memcpy(control.fd, out.fd, sizeof out.fd);
	if (out.nfds) {
		msg.control = &control;
		msg.controllen = control.h.len;
	}
	ret = sys(__NR_sendmsg, conn, &msg, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
	if (ret == -EAGAIN || ret == -ENOBUFS || ret == -ENOMEM || ret == -ETOOMANYREFS)
		return;
	if (is_error(ret)) {
		hang_up();
		return;
	}
	while (out.own)
		close_fd(out.fd[--out.own]);
	out.pending = 0;
}

static struct message *prepare(u32 type, u32 serial)
{
	out.m = (struct message){.type = type, .serial = serial};
	out.nfds = out.own = 0;
	out.pending = 1;
	return &out.m;
}

static void tell_child(u32 type, u32 serial, const struct child *c)
{
	struct message *m = prepare(type, serial);

	m->exited = c->state != RUNNING;
	m->status = c->status;
	m->started = c->started;
	m->finished = c->finished;
	__builtin_memcpy(m->id, c->id, ID_SIZE);
	if (type != CHILD)
		return;
	if (c->state == RUNNING) {
		long pidfd = sys(__NR_pidfd_open, c->pid, 0);

		if (is_error(pidfd)) {
			m->error = (u32)-pidfd;
			return;
		}
		out.fd[out.own++] = (int)pidfd;
	}
	out.nfds = out.own;
	for (int i = 0; i < c->nkeep; i++)
		out.fd[out.nfds++] = c->keep[i];
}

/* What else is there to say? Answers to LIST first, then ends of children. */
static void speak(void)
{
	while (conn >= 0 && greeted && !out.pending) {
		u32 i;

		if (list.active) {
			while (list.next < nchildren && children[list.next].state == FREE)
				list.next++;
			if (list.next < nchildren) {
				tell_child(CHILD, list.serial, &children[list.next++]);
			} else {
				prepare(RESULT, list.serial);
				list.active = 0;
			}
		} else {
			for (i = 0; i < nchildren && children[i].state != EXITED; i++)
				;
			if (i == nchildren)
				return;
			tell_child(EXIT, 0, &children[i]);
			children[i].state = TOLD;
		}
		flush();
	}
}

/* Carry out one request and prepare its answer. */
static void serve(const struct request *r)
{
	struct message *m;
	int pidfd = -1;

	if (r->type == FILES && greeted)
		return;
	m = prepare(RESULT, r->serial);
	if (stash.error) {
		m->error = (u32)stash.error;
	} else if (r->type == HELLO) {
		m->magic = PROTOCOL_MAGIC;
		m->version = m->oldest = PROTOCOL_VERSION;
		m->limit = MAX_CHILDREN;
		greeted = r->magic == PROTOCOL_MAGIC;
		m->error = greeted ? 0 : EPROTO;
	} else if (!greeted) {
		m->error = EPROTO;
	} else if (r->type == SETUP) {
		m->error = (u32)setup(&m->step);
	} else if (r->type == SPAWN) {
		m->error = ready ? (u32)spawn(r, stash.fd, stash.n, &pidfd, &m->started) : EINVAL;
		if (!m->error) {
			stash.n -= r->nkeep;    /* they are the child's now */
			out.fd[out.nfds++] = pidfd;
			out.own = 1;
		}
	} else if (r->type == RELEASE) {
		m->error = (u32)release(r->id);
	} else if (r->type == DROP) {
		m->error = (u32)drop_kept(r->id);
	} else if (r->type == LIST) {
		out.pending = 0;
		list.next = 0;
		list.serial = r->serial;
		list.active = 1;
	} else {
		m->error = ENOSYS;
	}
	drop_stash();
}

/* Descriptors belong to the serial they came with, FILES before the request
 * itself; those of a request that never came are dropped. */
static void stash_files(const struct msghdr_ *msg, u32 serial)
{
	const struct cmsghdr_ *h = msg->control;

	if (stash.serial != serial)
		drop_stash();
	stash.serial = serial;
	if (msg->flags & MSG_CTRUNC_)
		stash.error = EMFILE;
	if (msg->controllen < sizeof *h || h->level != SOL_SOCKET_ || h->type != SCM_RIGHTS_)
		return;
	for (u64 i = 0; i < (h->len - sizeof *h) / sizeof(int); i++) {
		int fd = ((const int *)(h + 1))[i];

		if (stash.n < MAX_STASH) {
			stash.fd[stash.n++] = fd;
		} else {
			close_fd(fd);
			stash.error = E2BIG;
		}
	}
}

static void listen_to_node(void)
{
	static union { struct request r; char bytes[MAX_MESSAGE]; } in;
	static struct { struct cmsghdr_ h; int fd[MAX_SCM + 1]; } control;
	struct iovec_ iov = {&in, sizeof in};
	struct msghdr_ msg = {.iov = &iov, .iovlen = 1, .control = &control, .controllen = sizeof control};
	long n;

	__builtin_memset(&in, 0, sizeof in);
	n = sys(__NR_recvmsg, conn, &msg, MSG_DONTWAIT_ | MSG_CMSG_CLOEXEC_);
	if (n == -EAGAIN)
		return;
	if (n <= 0 || is_error(n)) {
		hang_up();
		return;
	}
	stash_files(&msg, in.r.serial);
	/* A shorter request than ours is an older one: the rest is zero. A longer
	 * one is a newer one, and understood only if its rest is zero. */
	for (u32 i = sizeof in.r; i < MAX_MESSAGE; i++)
		if (in.bytes[i])
			stash.error = E2BIG;
	if (msg.flags & MSG_TRUNC_ || in.r.id[ID_SIZE - 1])
		stash.error = E2BIG;
	serve(&in.r);
}

/* ---- life ---- */

static void hear_signals(void)
{
	u32 info[32];   /* struct signalfd_siginfo, 128 bytes; the first is the signal */
	int chld = 0;

	while (sys(__NR_read, signals, info, sizeof info) == sizeof info) {
		if (info[0] == SIG_TERM || info[0] == SIG_INT)
			sys(__NR_exit_group, 0);
		chld = 1;
	}
	if (chld)
		reap();
}

static void be_born(void)
{
	u64 all = ~0ull, heard = 1ull << (SIG_CHLD - 1) | 1ull << (SIG_TERM - 1) | 1ull << (SIG_INT - 1);
	struct sigaction_ dfl = {0};
	u32 len = sizeof creator;

	/* Every signal but SIGKILL and SIGSTOP waits; three are heard. Children
	 * get an empty mask and default handlers. */
	sys(__NR_rt_sigprocmask, SIG_SETMASK_, &all, NULL, sizeof all);
	for (int i = 1; i <= SIG_MAX; i++)
		sys(__NR_rt_sigaction, i, &dfl, NULL, sizeof dfl.mask);
	sys(__NR_setsid);
	sys(__NR_prctl, PR_SET_DUMPABLE, 0);
	sys(__NR_prctl, PR_SET_NAME, "pause");
	sys(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1);
	sys(__NR_close_range, LISTENER, ~0u, CLOSE_RANGE_CLOEXEC);
	conn = CREATOR;
	signals = (int)sys(__NR_signalfd4, -1, &heard, sizeof heard, O_CLOEXEC_ | O_NONBLOCK_);
	last = children_init();
	if (signals < 0 || last < 0 || is_error(sys(__NR_getsockopt, conn, SOL_SOCKET_, SO_PEERCRED_, &creator, &len)))
		sys(__NR_exit_group, 1);
}

static void live(void)
{
	struct pollfd p[3] = {
		{.fd = signals, .events = POLLIN},
		{.fd = ready ? LISTENER : -1, .events = POLLIN},
		{.fd = conn, .events = out.pending ? POLLOUT : POLLIN},
	};

	if (is_error(sys(__NR_ppoll, p, 3, NULL, NULL, 0)))
		return;
	if (p[0].revents)
		hear_signals();
	if (p[2].revents && out.pending)
		flush();
	else if (p[2].revents)
		listen_to_node();
	if (p[1].revents)
		accept_node();
	if (conn >= 0 && out.pending)
		flush();
	speak();
}

/* argc is where the kernel puts it: at the top of the stack. */
void pause_main(const long *argc)
{
	if (*argc > 1)
		launch();
	be_born();
	for (;;)
		live();
}
