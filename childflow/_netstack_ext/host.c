/* host.c: real sockets, non-blocking and in the stack's edge-triggered epoll set.
 *
 * The kernel segments, retransmits and paces towards the far host; nothing of the child's TCP headers gets there.
 * Not here: what is read and written when (tcp_splice.c, udp.c). */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <linux/errqueue.h> /* needs time.h before it */
#include <unistd.h>

#include "stack.h"

#define UDP_BUFFER (1 << 20) /* bytes; a burst that one turn has not read yet. The kernel caps it at net.core.?mem_max */

/* Fill in a sockaddr_in or sockaddr_in6. */
void host_address_of(const struct far_end *to, void *sockaddr, uint32_t *len)
{
	struct sockaddr_in *v4 = sockaddr;
	struct sockaddr_in6 *v6 = sockaddr;

	if (to->address_len == 4) {
		*v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(to->port)};
		memcpy(&v4->sin_addr, to->address, 4);
		*len = sizeof(*v4);
	} else {
		*v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(to->port)};
		memcpy(&v6->sin6_addr, to->address, 16);
		*len = sizeof(*v6);
	}
}

/* The bytes of the address in a sockaddr_in or sockaddr_in6, and its port. */
const uint8_t *host_address_in(const void *sockaddr, uint16_t *port)
{
	const struct sockaddr_in *v4 = sockaddr;
	const struct sockaddr_in6 *v6 = sockaddr;

	*port = ntohs(v4->sin_port); /* at the same place in both */
	return v4->sin_family == AF_INET ? (const uint8_t *)&v4->sin_addr : (const uint8_t *)&v6->sin6_addr;
}

static bool set_int(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof(value)) == 0;
}

#define WATCH_STREAM (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET)
#define WATCH_DATAGRAM (EPOLLIN | EPOLLET) /* errors come anyway; nothing waits for room to send */

static int watch(struct cf_stack *st, int fd, uint32_t events, uint64_t tag)
{
	struct epoll_event e = {.events = events, .data.u64 = tag};

	return epoll_ctl(st->epoll_fd, EPOLL_CTL_ADD, fd, &e);
}

static void close_socket(struct cf_stack *st, int fd)
{
	st->host_sockets--;
	close(fd);
}

/* As close_socket(), and errno as it was. */
static int give_up(struct cf_stack *st, int fd)
{
	int error = errno;

	close_socket(st, fd);
	errno = error;
	return -1;
}

static int new_socket(struct cf_stack *st, int address_len, int type)
{
	bool too_many_udp = type == SOCK_DGRAM && st->udp_sockets >= st->cfg.max_udp_sockets;
	int fd;

	if (too_many_udp || st->host_sockets >= st->cfg.max_sockets) {
		errno = EMFILE;
		return -1;
	}
	fd = socket(address_len == 4 ? AF_INET : AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	st->host_sockets += fd >= 0;
	/* an IPv4-mapped address never becomes an IPv4 connection */
	if (fd >= 0 && address_len == 16 && !set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1))
		return give_up(st, fd);
	return fd;
}

/* Keep ICMP errors with their origin. On a stream this makes passing troubles fatal: only for a connect that traces. */
static bool keep_errors(int fd, int address_len, bool keep)
{
	if (address_len == 4)
		return set_int(fd, IPPROTO_IP, IP_RECVERR, keep);
	return set_int(fd, IPPROTO_IPV6, IPV6_RECVERR, keep);
}

static void set_tos(int fd, int address_len, uint8_t tos)
{
	if (address_len == 4)
		set_int(fd, IPPROTO_IP, IP_TOS, tos);
	else
		set_int(fd, IPPROTO_IPV6, IPV6_TCLASS, tos);
}

/* The child's program has changed its mind on the class of its traffic. The kernel keeps the ECN bits to itself. */
void host_follow_tos(struct flow *f, uint8_t tos)
{
	f->tos = tos;
	if (f->host_fd >= 0)
		set_tos(f->host_fd, f->host_address_len, tos);
}

static void tune_stream(int fd)
{
	set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1); /* the child's own TCP has decided what to hold back */
	set_int(fd, SOL_SOCKET, SO_OOBINLINE, 1);
	set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

/* What a program of the child has asked of its own socket. */
static void set_what_was_asked(const struct flow *f, int fd)
{
	if (f->tos)
		set_tos(fd, f->host_address_len, f->tos);
	if (f->hop_limit == HOP_LIMIT_DEFAULT)
		return;
	if (f->host_address_len == 4)
		set_int(fd, IPPROTO_IP, IP_TTL, f->hop_limit - 1);
	else
		set_int(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, f->hop_limit - 1);
	keep_errors(fd, f->host_address_len, true);
}

/* Start connecting the host side of @f; 0, or the errno that says why it can't be. */
int host_connect(struct cf_stack *st, struct flow *f, const struct far_end *to)
{
	struct sockaddr_in6 address;
	uint32_t len;

	f->host_fd = new_socket(st, to->address_len, SOCK_STREAM);
	if (f->host_fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			drop(st, CF_DROP_NO_DESCRIPTOR);
		return errno;
	}
	tune_stream(f->host_fd);
	set_what_was_asked(f, f->host_fd);
	host_address_of(to, &address, &len);
	if (connect(f->host_fd, (struct sockaddr *)&address, len) < 0 && errno != EINPROGRESS)
		return errno;
	return watch(st, f->host_fd, WATCH_STREAM, flow_id(f)) < 0 ? errno : 0;
}

/* Take a connected stream socket as the host side of @f; 0, or -1 with errno and the descriptor left alone. */
int host_adopt(struct cf_stack *st, struct flow *f, int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return -1;
	if (watch(st, fd, WATCH_STREAM, flow_id(f)) < 0)
		return -1;
	tune_stream(fd);
	st->host_sockets++;
	f->host_fd = fd;
	return 0;
}

/* The error that waits on the socket, and no longer waits: of a connect, or of what came after. 0 when there is none. */
int host_take_error(const struct flow *f)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(f->host_fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		return errno;
	return error;
}

static const struct sock_extended_err *extended_error(struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
		if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) ||
		    (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR))
			return (const void *)CMSG_DATA(c);
	return NULL;
}

static const uint8_t *offender(const struct sock_extended_err *e, int address_len)
{
	const struct sockaddr *from = SO_EE_OFFENDER(e);

	if (from->sa_family == AF_INET && address_len == 4)
		return (const uint8_t *)&((const struct sockaddr_in *)(const void *)from)->sin_addr;
	if (from->sa_family == AF_INET6 && address_len == 16)
		return (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)from)->sin6_addr;
	return NULL;
}

/* The ICMP error in @m, which came from an error queue; *e points into it. False when it is none of this family. */
bool host_told_icmp(struct msghdr *m, int address_len, struct icmp_error *e)
{
	const struct sock_extended_err *told = extended_error(m);

	if (!told || told->ee_origin != (address_len == 4 ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6))
		return false;
	*e = (struct icmp_error){.type = told->ee_type, .code = told->ee_code};
	if (icmp_is_too_big(address_len, told->ee_type, told->ee_code))
		*e = icmp_too_big(address_len, told->ee_info);
	e->from = offender(told, address_len);
	return true;
}

/* The MTU for which this host itself refused what was sent, if that is what @m says. */
void host_told_mtu(struct msghdr *m, uint32_t *mtu)
{
	const struct sock_extended_err *told = extended_error(m);

	if (told && told->ee_origin == SO_EE_ORIGIN_LOCAL && told->ee_errno == EMSGSIZE)
		*mtu = told->ee_info;
}

/* The ICMP error that ended a connect with a hop limit of its own; *e points into @control. */
bool host_connect_told_icmp(const struct flow *f, void *control, struct icmp_error *e)
{
	struct sockaddr_in6 to = {0};
	struct msghdr m = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_control = control, .msg_controllen = HOST_ERROR_ROOM};
	uint16_t port;

	return f->host_fd >= 0 && f->hop_limit != HOP_LIMIT_DEFAULT &&
	       recvmsg(f->host_fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0 && host_told_icmp(&m, f->host_address_len, e) &&
	       icmp_for_child(f, host_address_in(&to, &port), e);
}

void host_connected(const struct flow *f)
{
	if (f->hop_limit != HOP_LIMIT_DEFAULT)
		keep_errors(f->host_fd, f->host_address_len, false);
}

/* Close the host socket, at once and with an RST if @reset, else as close(2) does. */
void host_close(struct cf_stack *st, struct flow *f, bool reset)
{
	struct linger now = {1, 0};

	if (f->host_fd < 0)
		return;
	if (reset)
		setsockopt(f->host_fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close_socket(st, f->host_fd);
	f->host_fd = -1;
}

void host_close_udp(struct cf_stack *st, int fd)
{
	st->udp_sockets--;
	close_socket(st, fd);
}

/* Whether datagrams may be cut on their way, by us or by routers; else one that is too large is EMSGSIZE. */
void host_udp_may_fragment(int fd, int address_len, bool may)
{
	if (address_len == 4)
		set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, may ? IP_PMTUDISC_DONT : IP_PMTUDISC_DO);
	else
		set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, may ? IPV6_PMTUDISC_DONT : IPV6_PMTUDISC_DO);
}

/* Left to itself the kernel binds at the first send, and calls a lack of ports EAGAIN. */
static int bind_any(int fd, int address_len)
{
	struct sockaddr_in6 any = {.sin6_family = address_len == 4 ? AF_INET : AF_INET6}; /* all zero in both families */

	return bind(fd, (struct sockaddr *)&any, address_len == 4 ? sizeof(struct sockaddr_in) : sizeof(any));
}

/* False when errors would not be told. */
static bool tune_datagram(int fd, int address_len)
{
	bool told = keep_errors(fd, address_len, true);

	if (address_len == 4)
		set_int(fd, IPPROTO_IP, IP_RECVTOS, 1);
	else
		set_int(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	host_udp_may_fragment(fd, address_len, false);
	set_int(fd, SOL_SOCKET, SO_RCVBUF, UDP_BUFFER);
	set_int(fd, SOL_SOCKET, SO_SNDBUF, UDP_BUFFER);
	return told;
}

/* An unconnected UDP socket that reports ICMP errors with their origin; -1 with errno. */
int host_udp_socket(struct cf_stack *st, int address_len, uint64_t tag)
{
	int fd = new_socket(st, address_len, SOCK_DGRAM);

	if (fd < 0)
		return -1;
	if (!tune_datagram(fd, address_len))
		return give_up(st, fd);
	st->udp_sockets++;
	if (bind_any(fd, address_len) < 0) {
		drop(st, CF_DROP_NO_PORT);
		host_close_udp(st, fd);
		return -1;
	}
	if (watch(st, fd, WATCH_DATAGRAM, tag) < 0) {
		host_close_udp(st, fd);
		return -1;
	}
	return fd;
}
