/* world.h: the kernel as the stack sees it when it is fuzzed: descriptors, an epoll set, a clock; all in memory, all at the
 * fuzzer's command.
 *
 * Edges are told as epoll tells them: once for each thing that happens, with all that is true by then. The harness takes a
 * turn only when the epoll set would wake a loop, so a wake-up that the stack relies on and that never comes is a finding.
 * Text is a function of its place (child_byte, host_byte), so that every byte can be held against what it should be. */
#ifndef FUZZ_WORLD_H
#define FUZZ_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

#define WORLD_FDS 420
#define WORLD_FD_BASE 1000 /* nothing that a real call could mean */
#define WORLD_FRAMES 64
#define WORLD_DATAGRAMS 8
#define ALL_ROOM UINT32_MAX

enum world_kind { KIND_FREE, KIND_TAP, KIND_EPOLL, KIND_TIMER, KIND_STREAM, KIND_DATAGRAM };

enum world_call {
	CALL_SOCKET, CALL_CONNECT, CALL_EPOLL_CTL, CALL_SENDMSG, CALL_RECVMSG, CALL_RECVMMSG, CALL_RECV, CALL_READ, CALL_WRITEV,
	CALL_FCNTL, CALL_GETSOCKOPT, CALL_ALLOCATE, CALL_EPOLL_WAIT, CALL_BIND, CALLS
};

struct world_datagram {
	uint8_t remote[16];
	uint16_t remote_port;
	uint32_t len;
	bool error;            /* of the error queue: origin, type, code and info follow */
	uint8_t origin, type, code, control_shape;
	uint32_t info;
};

struct world_fd {
	uint8_t kind;
	bool watched, edge;
	uint32_t interest;
	uint64_t tag;
	/* stream */
	bool connected, eof, hang_up, urgent, shut;
	int error;             /* waits, as SO_ERROR does */
	uint32_t room, waiting;
	uint64_t taken, given; /* bytes from the child, bytes from the host */
	/* datagram */
	uint8_t address_len;
	struct world_datagram queue[WORLD_DATAGRAMS], errors[WORLD_DATAGRAMS];
	uint32_t queued, errors_queued;
};

struct world_frame {
	uint32_t len;
	uint8_t bytes[70000];
};

struct cf_stack;

struct world {
	struct cf_stack *st;
	int fd_top;
	uint64_t now, timer_at;
	struct world_frame *frames;    /* for the stack to read */
	uint32_t frames_queued, frames_read;
	uint32_t tap_room;             /* frames that the TAP takes before it is full */
	int tap_read_error, tap_write_error;
	int connect_result;            /* errno of the next connects; 0: at once */
	struct { uint32_t after; int error; } fault[CALLS]; /* error 0: none */
	uint64_t calls;                /* since the turn began */
	bool trusted;                  /* no frame of unknown text has been sent: streams can be compared */
	bool unchecked;                /* what comes down now is the harness's own */
	uint32_t down_frames, down_resets; /* since the harness last looked */
};

extern struct world world;
extern struct world_fd world_fds[WORLD_FDS]; /* the first world.fd_top of them mean something */

void world_begin(void);
/* Frees what the world itself holds; false when the stack has left a descriptor open. */
bool world_end(void);
bool world_would_wake(void);       /* the epoll set has something */
int world_open(enum world_kind kind);
int world_connected_stream(void);
struct world_fd *world_at(int fd);
/* The @n-th open descriptor of @kind, counted round; NULL when there is none. */
struct world_fd *world_pick(enum world_kind kind, uint32_t n);
int world_number(const struct world_fd *d);
void world_edge(struct world_fd *d);
void world_queue_frame(const uint8_t *bytes, uint32_t len);

static inline uint8_t child_byte(uint32_t seq) { return (uint8_t)((seq * 0x85ebca6bu) >> 24); }
static inline uint8_t host_byte(uint64_t offset) { return (uint8_t)(((uint32_t)offset * 0x9e3779b1u) >> 24); }

/* What the harness checks, called by the world. */
void text_went_up(int fd, const struct iovec *iov, int pieces, uint32_t len);
void stream_was_opened(int fd, const void *sockaddr);
void stream_was_ended(int fd);
void datagram_went_up(const void *sockaddr);
void frame_came_down(const uint8_t *bytes, uint32_t len);
void fail(const char *what);
#define HOLDS(condition) ((condition) ? (void)0 : fail(#condition))

/* The calls. */
struct mmsghdr;
int world_socket(int family, int type, int protocol);
int world_bind(int fd, const struct sockaddr *to, socklen_t len);
int world_connect(int fd, const struct sockaddr *to, socklen_t len);
int world_close(int fd);
ssize_t world_read(int fd, void *bytes, size_t len);
ssize_t world_writev(int fd, const struct iovec *iov, int pieces);
ssize_t world_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t world_recvmsg(int fd, struct msghdr *m, int flags);
int world_recvmmsg(int fd, struct mmsghdr *m, unsigned n, int flags, void *timeout);
ssize_t world_recv(int fd, void *bytes, size_t len, int flags);
int world_shutdown(int fd, int how);
int world_setsockopt(int fd, int level, int option, const void *value, socklen_t len);
int world_getsockopt(int fd, int level, int option, void *value, socklen_t *len);
int world_fcntl(int fd, int command, ...);
int world_epoll_create1(int flags);
int world_epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *e);
int world_epoll_wait(int epoll_fd, struct epoll_event *out, int max, int timeout);
int world_timerfd_create(int clock, int flags);
int world_timerfd_settime(int fd, int flags, const struct itimerspec *spec, struct itimerspec *old);
void *world_malloc(size_t size);
void *world_calloc(size_t n, size_t size);
void *world_realloc(void *old, size_t size);

#endif
