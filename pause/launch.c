/*
 * Birth in a user namespace. Its ID mapping has to be written from outside
 * while the new process waits, so the node can't have it cloned by vfork, and
 * a fork of the whole node takes longer the bigger the node is. So the node
 * executes pause as a launcher, which clones the pod's pause for it, says which
 * process it is, and ends. The new process is a child of the node
 * (CLONE_PARENT). It waits for the node's HELLO, which comes once the mapping
 * is written, becomes root of its namespace, and executes pause afresh: only
 * then /proc knows it as one of that namespace.
 */
#include "launch.h"

static void become_pause(void)
{
	static char *argv[] = {"/pause", NULL}, *envp[] = {NULL};
	char byte;

	/* Only looked at: pause itself will read it. 0: the node is gone. */
	if (sys(__NR_recvfrom, CREATOR, &byte, 1, MSG_PEEK_, NULL, NULL) > 0 &&
	    sys(__NR_setgroups, 0, NULL) == 0 &&
	    sys(__NR_setresgid, 0, 0, 0) == 0 &&
	    sys(__NR_setresuid, 0, 0, 0) == 0) {
		sys(__NR_close_range, PROGRAM, PROGRAM, CLOSE_RANGE_CLOEXEC);
		sys(__NR_execveat, PROGRAM, "", argv, envp, AT_EMPTY_PATH);
	}
	sys(__NR_exit_group, 1);
}

void launch(void)
{
	struct request r = {0};
	struct message m = {.type = RESULT};
	int pidfd = -1;
	struct clone_args a = {.pidfd = (u64)&pidfd};
	struct { struct cmsghdr_ h; int fd; } control = {.h = {sizeof control.h + sizeof(int), SOL_SOCKET_, SCM_RIGHTS_}};
	struct iovec_ iov = {&m, sizeof m};
	struct msghdr_ msg = {.iov = &iov, .iovlen = 1};
	long pid;

	if (sys(__NR_recvfrom, CREATOR, &r, sizeof r, 0, NULL, NULL) != sizeof r || r.type != LAUNCH)
		sys(__NR_exit_group, 1);
	a.flags = r.cloneflags | CLONE_PARENT | CLONE_PIDFD;
	pid = sys(__NR_clone3, &a, sizeof a);
	if (pid == 0)
		become_pause();
	m.serial = r.serial;
	if (is_error(pid)) {
		m.error = (u32)-pid;
	} else {
		control.fd = pidfd;
		msg.control = &control;
		msg.controllen = control.h.len;
	}
	sys(__NR_sendmsg, CREATOR, &msg, MSG_NOSIGNAL_);
	sys(__NR_exit_group, 0);
}
