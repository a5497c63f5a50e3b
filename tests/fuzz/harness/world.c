/* world.c: descriptors without a kernel. See world.h.
 *
 * Faithful where the stack relies on it: edge-triggered readiness, short reads only at the end of what waits (or before an
 * urgent mark), errors told once, the lowest free number for a new descriptor.
 * Not here: what a frame for the child must be (child.c), the stack's books (books.c). */
#include "world.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>

#define CALLS_A_TURN 400000 /* far beyond what a bounded turn makes: 64 KiB in segments of 8 bytes, for some flows */

struct world world;
struct world_fd world_fds[WORLD_FDS];

/* --- descriptors ------------------------------------------------------------------------------------------ */

struct world_fd *world_at(int fd)
{
	HOLDS(fd >= WORLD_FD_BASE && fd < WORLD_FD_BASE + world.fd_top);
	HOLDS(world_fds[fd - WORLD_FD_BASE].kind != KIND_FREE);
	return &world_fds[fd - WORLD_FD_BASE];
}

int world_number(const struct world_fd *d) { return (int)(d - world_fds) + WORLD_FD_BASE; }

int world_open(enum world_kind kind)
{
	for (int i = 0; i < WORLD_FDS; i++) {
		if (i < world.fd_top && world_fds[i].kind != KIND_FREE)
			continue;
		world.fd_top = i < world.fd_top ? world.fd_top : i + 1;
		world_fds[i] = (struct world_fd){.kind = (uint8_t)kind, .room = ALL_ROOM};
		return WORLD_FD_BASE + i;
	}
	errno = EMFILE;
	return -1;
}

int world_connected_stream(void)
{
	int fd = world_open(KIND_STREAM);

	if (fd >= 0)
		world_at(fd)->connected = true;
	return fd;
}

struct world_fd *world_pick(enum world_kind kind, uint32_t n)
{
	uint32_t open = 0;

	for (int i = 0; i < world.fd_top; i++)
		open += world_fds[i].kind == kind;
	if (open == 0)
		return NULL;
	n %= open;
	for (int i = 0;; i++)
		if (world_fds[i].kind == kind && n-- == 0)
			return &world_fds[i];
}

void world_edge(struct world_fd *d) { d->edge = true; }

void world_begin(void)
{
	struct world_frame *frames = world.frames ? world.frames : malloc(WORLD_FRAMES * sizeof(*frames));

	world = (struct world){.frames = frames};
	world.now = 86400000000ull;
	world.timer_at = UINT64_MAX;
	world.tap_room = ALL_ROOM;
	world.connect_result = EINPROGRESS;
	world.trusted = true;
}

bool world_end(void)
{
	for (int i = 0; i < world.fd_top; i++)
		if (world_fds[i].kind != KIND_FREE && world_fds[i].kind != KIND_TAP)
			return false;
	return true;
}

/* Whether this call fails, by the fuzzer's order; errno is set then. The descriptor fires again afterwards, as it would: what
 * made the call worth trying is still there. */
static bool fails_on(enum world_call call, struct world_fd *d)
{
	HOLDS(++world.calls < CALLS_A_TURN);
	if (world.fault[call].error == 0 || world.fault[call].after-- > 0)
		return false;
	errno = world.fault[call].error;
	world.fault[call].error = 0;
	if (d)
		world_edge(d);
	return true;
}

static bool fails(enum world_call call) { return fails_on(call, NULL); }

/* --- epoll and the timer ---------------------------------------------------------------------------------- */

static uint32_t stream_events(const struct world_fd *d)
{
	uint32_t events = 0;

	if (!d->connected && !d->error)
		return 0;
	if (d->waiting > 0 || d->eof)
		events |= EPOLLIN;
	if (d->eof)
		events |= EPOLLRDHUP;
	if (d->urgent)
		events |= EPOLLPRI;
	if (d->room > 0)
		events |= EPOLLOUT;
	if (d->error)
		events |= EPOLLERR | EPOLLIN | EPOLLOUT;
	if (d->hang_up || d->error)
		events |= EPOLLHUP | EPOLLIN | EPOLLRDHUP;
	return events;
}

static uint32_t events_of(const struct world_fd *d)
{
	switch (d->kind) {
	case KIND_TAP:
		if (world.tap_read_error && world.tap_read_error != EIO)
			return EPOLLERR;
		return (world.frames_read < world.frames_queued ? EPOLLIN : 0u) | (world.tap_room > 0 ? EPOLLOUT : 0u);
	case KIND_TIMER:
		return world.timer_at <= world.now ? EPOLLIN : 0;
	case KIND_STREAM:
		return stream_events(d);
	case KIND_DATAGRAM:
		return (d->queued ? EPOLLIN : 0u) | (d->errors_queued || d->error ? EPOLLERR : 0u);
	default:
		return 0;
	}
}

static uint32_t told(const struct world_fd *d)
{
	if (!d->watched || !(d->edge || d->kind == KIND_TIMER))
		return 0;
	return events_of(d) & (d->interest | EPOLLERR | EPOLLHUP);
}

bool world_would_wake(void)
{
	for (int i = 0; i < world.fd_top; i++)
		if (told(&world_fds[i]))
			return true;
	return false;
}

int world_epoll_create1(int flags)
{
	(void)flags;
	return world_open(KIND_EPOLL);
}

int world_epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *e)
{
	struct world_fd *d = world_at(fd);

	HOLDS(world_at(epoll_fd)->kind == KIND_EPOLL);
	if (fails(CALL_EPOLL_CTL))
		return -1;
	if (what == EPOLL_CTL_DEL) {
		d->watched = false;
		return 0;
	}
	HOLDS(what == EPOLL_CTL_MOD || !d->watched);
	d->watched = d->edge = true;
	d->interest = e->events;
	d->tag = e->data.u64;
	return 0;
}

int world_epoll_wait(int epoll_fd, struct epoll_event *out, int max, int timeout)
{
	int n = 0;

	HOLDS(world_at(epoll_fd)->kind == KIND_EPOLL && timeout == 0);
	if (fails(CALL_EPOLL_WAIT))
		return -1;
	for (int i = 0; i < world.fd_top && n < max; i++) {
		struct world_fd *d = &world_fds[i];
		uint32_t events = told(d);

		if (!events)
			continue;
		d->edge = false;
		out[n++] = (struct epoll_event){.events = events, .data.u64 = d->tag};
	}
	return n;
}

int world_timerfd_create(int clock, int flags)
{
	(void)clock;
	(void)flags;
	return world_open(KIND_TIMER);
}

int world_timerfd_settime(int fd, int flags, const struct itimerspec *spec, struct itimerspec *old)
{
	uint64_t in = (uint64_t)spec->it_value.tv_sec * 1000000 + (uint64_t)spec->it_value.tv_nsec / 1000;

	HOLDS(world_at(fd)->kind == KIND_TIMER && flags == 0 && !old);
	HOLDS(spec->it_value.tv_sec >= 0 && spec->it_value.tv_nsec >= 0 && spec->it_value.tv_nsec < 1000000000);
	world.timer_at = in ? world.now + in : UINT64_MAX;
	return 0;
}

/* --- the TAP ---------------------------------------------------------------------------------------------- */

void world_queue_frame(const uint8_t *bytes, uint32_t len)
{
	struct world_frame *f;

	if (world.frames_read == world.frames_queued)
		world.frames_read = world.frames_queued = 0;
	if (world.frames_queued == WORLD_FRAMES || len == 0 || len > sizeof(f->bytes))
		return;
	f = &world.frames[world.frames_queued++];
	f->len = len;
	memcpy(f->bytes, bytes, len);
	world_edge(world_pick(KIND_TAP, 0));
}

/* What lies behind the frame in the stack's buffer is poisoned, so that reading on is a finding. */
static ssize_t read_frame(void *bytes, size_t len)
{
	const struct world_frame *f;
	size_t room = len;

	if (world.tap_read_error) {
		errno = world.tap_read_error;
		return -1;
	}
	if (world.frames_read == world.frames_queued) {
		errno = EAGAIN;
		return -1;
	}
	f = &world.frames[world.frames_read++];
	len = f->len < len ? f->len : len;
	ASAN_UNPOISON_MEMORY_REGION(bytes, room);
	memcpy(bytes, f->bytes, len);
	ASAN_POISON_MEMORY_REGION((uint8_t *)bytes + len, room - len);
	return (ssize_t)len;
}

ssize_t world_read(int fd, void *bytes, size_t len)
{
	if (fails_on(CALL_READ, world_at(fd)))
		return -1;
	if (world_at(fd)->kind == KIND_TAP)
		return read_frame(bytes, len);
	HOLDS(world_at(fd)->kind == KIND_TIMER && len == 8);
	if (world.timer_at > world.now) {
		errno = EAGAIN;
		return -1;
	}
	world.timer_at = UINT64_MAX;
	memset(bytes, 1, len);
	return 8;
}

ssize_t world_writev(int fd, const struct iovec *iov, int pieces)
{
	static uint8_t frame[1 << 18];
	size_t len = 0;

	HOLDS(world_at(fd)->kind == KIND_TAP);
	for (int i = 0; i < pieces; i++) {
		HOLDS(len + iov[i].iov_len <= sizeof(frame));
		memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	if (fails_on(CALL_WRITEV, world_at(fd)))
		return -1;
	if (world.tap_write_error || world.tap_room == 0) {
		errno = world.tap_write_error ? world.tap_write_error : EAGAIN;
		return -1;
	}
	world.tap_room -= world.tap_room != ALL_ROOM;
	frame_came_down(frame, (uint32_t)len);
	return (ssize_t)len;
}

/* --- sockets ---------------------------------------------------------------------------------------------- */

int world_socket(int family, int type, int protocol)
{
	int fd;

	HOLDS((family == AF_INET || family == AF_INET6) && protocol == 0);
	HOLDS((type & SOCK_NONBLOCK) && (type & SOCK_CLOEXEC));
	if (fails(CALL_SOCKET))
		return -1;
	fd = world_open((type & 0xf) == SOCK_STREAM ? KIND_STREAM : KIND_DATAGRAM);
	if (fd >= 0)
		world_at(fd)->address_len = family == AF_INET ? 4 : 16;
	return fd;
}

/* To any address and port of the socket's own family. */
int world_bind(int fd, const struct sockaddr *to, socklen_t len)
{
	struct world_fd *d = world_at(fd);

	HOLDS(d->kind == KIND_DATAGRAM && to->sa_family == (d->address_len == 4 ? AF_INET : AF_INET6));
	HOLDS(len == (d->address_len == 4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)));
	return fails(CALL_BIND) ? -1 : 0;
}

int world_connect(int fd, const struct sockaddr *to, socklen_t len)
{
	struct world_fd *d = world_at(fd);

	HOLDS(d->kind == KIND_STREAM && !d->connected && to->sa_family == (d->address_len == 4 ? AF_INET : AF_INET6));
	HOLDS(len == (d->address_len == 4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)));
	stream_was_opened(fd, to);
	if (fails(CALL_CONNECT))
		return -1;
	if (world.connect_result == 0) {
		d->connected = true;
		return 0;
	}
	errno = world.connect_result;
	return -1;
}

int world_close(int fd)
{
	HOLDS(world_at(fd)->kind != KIND_TAP);
	if (world_at(fd)->kind == KIND_TIMER)
		world.timer_at = UINT64_MAX;
	*world_at(fd) = (struct world_fd){0};
	errno = EIO; /* close may leave anything there */
	return 0;
}

static bool stream_error(struct world_fd *d)
{
	if (!d->error)
		return false;
	errno = d->error;
	d->error = 0;
	d->eof = d->hang_up = true;
	d->waiting = 0;
	return true;
}

static uint32_t total(const struct iovec *iov, size_t pieces)
{
	size_t len = 0;

	for (size_t i = 0; i < pieces; i++)
		len += iov[i].iov_len;
	return (uint32_t)len;
}

static ssize_t stream_send(int fd, struct world_fd *d, const struct iovec *iov, size_t pieces)
{
	uint32_t len = total(iov, pieces);

	HOLDS(len > 0 && !d->shut);
	if (stream_error(d))
		return -1;
	if (!d->connected || d->room == 0 || d->hang_up) {
		errno = !d->connected ? ENOTCONN : d->hang_up ? EPIPE : EAGAIN;
		return -1;
	}
	len = len < d->room ? len : d->room;
	if (d->room != ALL_ROOM)
		d->room -= len;
	text_went_up(fd, iov, (int)pieces, len);
	d->taken += len;
	return (ssize_t)len;
}

static ssize_t datagram_send(struct world_fd *d, const struct msghdr *m)
{
	struct cmsghdr *c = m->msg_controllen ? CMSG_FIRSTHDR(m) : NULL;

	HOLDS(m->msg_namelen == (d->address_len == 4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)));
	if (c)
		HOLDS(c->cmsg_len <= m->msg_controllen);
	datagram_went_up(m->msg_name);
	if (d->error) {
		errno = d->error;
		d->error = 0;
		return -1;
	}
	return (ssize_t)total(m->msg_iov, m->msg_iovlen);
}

ssize_t world_sendmsg(int fd, const struct msghdr *m, int flags)
{
	struct world_fd *d = world_at(fd);

	HOLDS((flags & MSG_NOSIGNAL) && (flags & MSG_DONTWAIT));
	if (fails_on(CALL_SENDMSG, d))
		return -1;
	if (d->kind == KIND_STREAM)
		return stream_send(fd, d, m->msg_iov, m->msg_iovlen);
	HOLDS(d->kind == KIND_DATAGRAM);
	return datagram_send(d, m);
}

static ssize_t stream_recv(struct world_fd *d, const struct iovec *iov, size_t pieces)
{
	uint32_t len = total(iov, pieces), done = 0;

	HOLDS(len > 0);
	if (d->waiting == 0 && stream_error(d))
		return -1;
	if (d->waiting == 0 && !d->eof) {
		errno = d->connected ? EAGAIN : ENOTCONN;
		return -1;
	}
	len = len < d->waiting ? len : d->waiting;
	if (d->urgent && len > 1) { /* a read stops at the mark */
		len = (len + 1) / 2;
		d->urgent = false;
	}
	for (size_t i = 0; i < pieces; i++)
		for (size_t k = 0; k < iov[i].iov_len && done < len; k++, done++)
			((uint8_t *)iov[i].iov_base)[k] = host_byte(d->given + done);
	d->waiting -= len;
	d->given += len;
	return (ssize_t)len;
}

static socklen_t put_address(const struct world_fd *d, void *to, const uint8_t *remote, uint16_t port)
{
	if (d->address_len == 4) {
		struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};

		memcpy(&v4.sin_addr, remote, 4);
		memcpy(to, &v4, sizeof(v4));
		return sizeof(v4);
	}
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

	memcpy(&v6.sin6_addr, remote, 16);
	memcpy(to, &v6, sizeof(v6));
	return sizeof(v6);
}

static uint32_t put_text(const struct iovec *iov, size_t pieces, uint32_t len)
{
	uint32_t done = 0;

	for (size_t i = 0; i < pieces; i++)
		for (size_t k = 0; k < iov[i].iov_len && done < len; k++, done++)
			((uint8_t *)iov[i].iov_base)[k] = host_byte(done);
	return done;
}

static void put_extended_error(const struct world_fd *d, const struct world_datagram *g, struct msghdr *m)
{
	bool v4 = (d->address_len == 4) != (g->control_shape == 1);
	struct { struct sock_extended_err e; struct sockaddr_in6 offender; } body = {
		.e = {.ee_errno = g->origin == SO_EE_ORIGIN_LOCAL ? EMSGSIZE : ECONNREFUSED, .ee_origin = g->origin, .ee_type = g->type, .ee_code = g->code, .ee_info = g->info},
	};
	struct world_fd shape = {.address_len = v4 ? 4 : 16};
	struct cmsghdr *c = CMSG_FIRSTHDR(m);

	if (g->control_shape != 2)
		put_address(&shape, &body.offender, g->remote, 0); /* else the kernel knows none: AF_UNSPEC */
	c->cmsg_level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
	c->cmsg_type = g->control_shape == 3 ? IP_TTL : v4 ? IP_RECVERR : IPV6_RECVERR;
	c->cmsg_len = CMSG_LEN(sizeof(body));
	memcpy(CMSG_DATA(c), &body, sizeof(body));
	m->msg_controllen = CMSG_SPACE(sizeof(body));
}

static ssize_t take_error(struct world_fd *d, struct msghdr *m)
{
	struct world_datagram g = d->errors[0];

	if (d->errors_queued == 0) {
		errno = EAGAIN;
		return -1;
	}
	d->errors_queued--;
	memmove(d->errors, d->errors + 1, d->errors_queued * sizeof(g));
	put_extended_error(d, &g, m);
	if (m->msg_name)
		m->msg_namelen = put_address(d, m->msg_name, g.remote, g.remote_port);
	m->msg_flags = MSG_ERRQUEUE;
	return (ssize_t)put_text(m->msg_iov, m->msg_iovlen, g.len);
}

ssize_t world_recvmsg(int fd, struct msghdr *m, int flags)
{
	struct world_fd *d = world_at(fd);

	HOLDS(flags & MSG_DONTWAIT);
	if (fails_on(CALL_RECVMSG, d))
		return -1;
	if (d->kind == KIND_STREAM && !(flags & MSG_ERRQUEUE))
		return stream_recv(d, m->msg_iov, m->msg_iovlen);
	HOLDS(flags & MSG_ERRQUEUE);
	return take_error(d, m);
}

ssize_t world_recv(int fd, void *bytes, size_t len, int flags)
{
	struct iovec iov = {bytes, len};

	HOLDS(world_at(fd)->kind == KIND_STREAM && (flags & MSG_DONTWAIT));
	ASAN_UNPOISON_MEMORY_REGION(bytes, len); /* the frame's buffer serves to throw away into */
	return fails_on(CALL_RECV, world_at(fd)) ? -1 : stream_recv(world_at(fd), &iov, 1);
}

/* The TOS comes as a byte with IPv4 and as a number with IPv6. */
static void put_tos(const struct world_fd *d, const struct world_datagram *g, struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int tos = g->code;

	if (!c || !g->control_shape) {
		m->msg_controllen = 0;
		return;
	}
	c->cmsg_level = d->address_len == 4 ? IPPROTO_IP : IPPROTO_IPV6;
	c->cmsg_type = d->address_len == 4 ? IP_TOS : IPV6_TCLASS;
	c->cmsg_len = d->address_len == 4 ? CMSG_LEN(1) : CMSG_LEN(sizeof(tos));
	if (d->address_len == 4)
		*CMSG_DATA(c) = g->code;
	else
		memcpy(CMSG_DATA(c), &tos, sizeof(tos));
	m->msg_controllen = CMSG_SPACE(sizeof(tos));
}

int world_recvmmsg(int fd, struct mmsghdr *m, unsigned n, int flags, void *timeout)
{
	struct world_fd *d = world_at(fd);
	unsigned i = 0;

	HOLDS(d->kind == KIND_DATAGRAM && (flags & MSG_DONTWAIT) && !timeout);
	if (fails_on(CALL_RECVMMSG, d))
		return -1;
	if (d->error || d->queued == 0) {
		errno = d->error ? d->error : EAGAIN;
		d->error = 0;
		return -1;
	}
	for (; i < n && i < d->queued; i++) {
		struct msghdr *h = &m[i].msg_hdr;

		h->msg_namelen = put_address(d, h->msg_name, d->queue[i].remote, d->queue[i].remote_port);
		m[i].msg_len = put_text(h->msg_iov, h->msg_iovlen, d->queue[i].len);
		put_tos(d, &d->queue[i], h);
	}
	d->queued -= i;
	memmove(d->queue, d->queue + i, d->queued * sizeof(d->queue[0]));
	return (int)i;
}

int world_shutdown(int fd, int how)
{
	HOLDS(world_at(fd)->kind == KIND_STREAM && how == SHUT_WR && !world_at(fd)->shut);
	stream_was_ended(fd);
	world_at(fd)->shut = true;
	return 0;
}

int world_setsockopt(int fd, int level, int option, const void *value, socklen_t len)
{
	(void)level;
	(void)option;
	HOLDS(world_at(fd)->kind >= KIND_STREAM && value && len > 0);
	return 0;
}

int world_getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
	struct world_fd *d = world_at(fd);

	if (fails(CALL_GETSOCKOPT))
		return -1;
	HOLDS(level == SOL_SOCKET && *len == sizeof(int));
	if (option == SO_ERROR) {
		memcpy(value, &d->error, sizeof(int));
		if (d->error)
			d->eof = d->hang_up = true;
		d->error = 0;
	} else {
		memset(value, 0, *len);
	}
	return 0;
}

int world_fcntl(int fd, int command, ...)
{
	world_at(fd);
	if (fails(CALL_FCNTL))
		return -1;
	return command == F_GETFL ? O_RDWR : 0;
}

/* --- memory ----------------------------------------------------------------------------------------------- */

void *world_malloc(size_t size)
{
	if (!fails(CALL_ALLOCATE))
		return malloc(size);
	errno = ENOMEM;
	return NULL;
}

void *world_calloc(size_t n, size_t size)
{
	if (!fails(CALL_ALLOCATE))
		return calloc(n, size);
	errno = ENOMEM;
	return NULL;
}

void *world_realloc(void *old, size_t size)
{
	if (!fails(CALL_ALLOCATE))
		return realloc(old, size);
	errno = ENOMEM;
	return NULL;
}
