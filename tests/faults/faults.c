/* faults.c: a library for LD_PRELOAD that makes chosen calls into libc fail.
 *
 * One order at a time: from the n-th call of one function on, so many calls are not made and fail with an errno (or return
 * a number). Counted are only the calls of the order's scope: those of the C stack, those of the whole process once it has
 * a stack, or all. A test in the same process orders by faults_order(); for a program the order stands in its environment,
 * CHILDFLOW_FAULT="scope function nth times errno answer", which is taken out, with LD_PRELOAD, before the program looks, and
 * forked children are left alone: the command knows nothing of it. CHILDFLOW_FAULT_REPORT names a file for the counts.
 *
 * Each wrapper passes six words on, whatever the function takes: right by the calling conventions of x86-64 and arm64. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MODULE "_netstack"
#define WATCHED_MAX 4096
#define CALLS(X) \
	X(socket) X(connect) X(sendmsg) X(sendmmsg) X(send) X(sendto) X(recv) X(recvfrom) X(recvmsg) X(recvmmsg) X(read) X(write) \
	X(readv) X(writev) X(epoll_create1) X(epoll_wait) X(epoll_pwait) X(epoll_ctl) X(setsockopt) X(getsockopt) X(accept) X(accept4) \
	X(fcntl) X(fcntl64) X(timerfd_create) X(timerfd_settime) X(shutdown) X(bind) X(socketpair) X(poll) X(malloc) X(calloc) X(realloc)

enum scope { STACK, ENGINE, PROCESS };
enum call {
#define NAME(f) CALL_##f,
	CALLS(NAME)
#undef NAME
	CALL_COUNT
};

typedef long function(long, long, long, long, long, long);

static const char *const names[] = {
#define NAME(f) #f,
	CALLS(NAME)
#undef NAME
};
static function *real[CALL_COUNT];
static uintptr_t module_start, module_end;
static struct {
	int call, error;
	enum scope scope;
	long nth, times, answer;
} order = {.call = -1};
static struct {
	int epoll;
	struct epoll_event event;
} watched[WATCHED_MAX];
static long seen[CALL_COUNT], failed, held;
static bool off;
static char report_path[4096];

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

static function *real_of(enum call call)
{
	if (!real[call])
		real[call] = (function *)dlsym(RTLD_NEXT, names[call]);
	return real[call];
}

static long make(enum call call, long a, long b, long c, long d, long e, long f)
{
	/* not by dlsym, which allocates */
	if (call == CALL_malloc)
		return (long)__libc_malloc((size_t)a);
	if (call == CALL_calloc)
		return (long)__libc_calloc((size_t)a, (size_t)b);
	if (call == CALL_realloc)
		return (long)__libc_realloc((void *)a, (size_t)b);
	return real_of(call)(a, b, c, d, e, f);
}

static int look(struct dl_phdr_info *info, size_t size, void *unused)
{
	(void)size, (void)unused;
	if (!strstr(info->dlpi_name, MODULE))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];

		if (p->p_type == PT_LOAD && p->p_flags & PF_X) {
			module_start = info->dlpi_addr + p->p_vaddr;
			module_end = module_start + p->p_memsz;
		}
	}
	return 1;
}

static bool is_stack(uintptr_t caller) { return caller >= module_start && caller < module_end; }

/* Whether the order says that this call fails. */
static bool fails(enum call call, uintptr_t caller)
{
	bool stack;

	if (off)
		return false;
	if (!module_start && call == CALL_epoll_create1)
		dl_iterate_phdr(look, NULL);
	stack = is_stack(caller);
	if (order.scope == STACK ? !stack : order.scope == ENGINE && !module_start)
		return false;
	seen[call]++;
	if (order.call != (int)call || seen[call] < order.nth || failed >= order.times)
		return false;
	failed++;
	return true;
}

/* A kernel that says EAGAIN promises an edge; watching anew makes one as soon as the descriptor is ready, which it is. */
static void promise_edge(long fd)
{
	if (fd >= 0 && fd < WATCHED_MAX && watched[fd].epoll)
		real_of(CALL_epoll_ctl)(watched[fd].epoll, EPOLL_CTL_MOD, fd, (long)&watched[fd].event, 0, 0);
}

static void note_watch(long epoll, long op, long fd, const struct epoll_event *event)
{
	if (op == EPOLL_CTL_ADD && fd >= 0 && fd < WATCHED_MAX) {
		watched[fd].epoll = (int)epoll;
		watched[fd].event = *event;
	}
}

static long answer(enum call call, long fd)
{
	if (order.error == EAGAIN)
		promise_edge(fd);
	errno = order.error;
	if (call == CALL_malloc || call == CALL_calloc || call == CALL_realloc)
		return 0;
	return order.error ? -1 : order.answer;
}

/* Pieces of memory that the stack holds: what it leaves when it is freed is a leak, to the piece. */
static long noted(enum call call, long old, long result, uintptr_t caller)
{
	bool more = call == CALL_malloc || call == CALL_calloc || (call == CALL_realloc && !old);

	if (more && result && is_stack(caller))
		held++;
	return result;
}

EXPORT void wrapped_free(void *p) __asm__("free");
void wrapped_free(void *p)
{
	if (p && is_stack((uintptr_t)__builtin_return_address(0)))
		held--;
	__libc_free(p);
}

#define WRAPPER(f) \
	EXPORT long wrapped_##f(long a, long b, long c, long d, long e, long g) __asm__(#f); \
	long wrapped_##f(long a, long b, long c, long d, long e, long g) \
	{ \
		if (fails(CALL_##f, (uintptr_t)__builtin_return_address(0))) \
			return answer(CALL_##f, a); \
		if (CALL_##f == CALL_epoll_ctl) \
			note_watch(a, b, c, (const struct epoll_event *)d); \
		return noted(CALL_##f, a, make(CALL_##f, a, b, c, d, e, g), (uintptr_t)__builtin_return_address(0)); \
	}
CALLS(WRAPPER)

/* --- orders --------------------------------------------------------------------------------------------------- */

static int call_of(const char *name)
{
	for (int i = 0; i < CALL_COUNT; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return -1;
}

/* From now on; the counts begin anew. A function that is unknown, as "", only counts. */
EXPORT void faults_order(const char *function, int scope, long nth, long times, int error, long value)
{
	order.call = -1;
	memset(seen, 0, sizeof(seen));
	failed = 0;
	dl_iterate_phdr(look, NULL);
	order.scope = (enum scope)scope;
	order.nth = nth;
	order.times = times;
	order.error = error;
	order.answer = value;
	order.call = call_of(function);
}

EXPORT long faults_seen(const char *function)
{
	int call = call_of(function);

	return call < 0 ? -1 : seen[call];
}

EXPORT long faults_failed(void) { return failed; }

EXPORT long faults_held(void) { return held; }

static void leave_alone(void) { off = true; }

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("CHILDFLOW_FAULT"), *path = getenv("CHILDFLOW_FAULT_REPORT");
	char name[32] = "";
	int scope, error;
	long nth, times, value;

	for (int i = 0; i < CALL_COUNT; i++)
		real_of((enum call)i);
	if (!text || sscanf(text, "%d %31s %ld %ld %d %ld", &scope, name, &nth, &times, &error, &value) != 6)
		return;
	snprintf(report_path, sizeof(report_path), "%s", path ? path : "");
	pthread_atfork(NULL, NULL, leave_alone);
	unsetenv("LD_PRELOAD");
	unsetenv("CHILDFLOW_FAULT");
	unsetenv("CHILDFLOW_FAULT_REPORT");
	faults_order(name, scope, nth, times, error, value);
}

__attribute__((destructor)) static void end(void)
{
	FILE *file;

	if (off || !report_path[0])
		return;
	off = true;
	file = fopen(report_path, "w");
	if (!file)
		return;
	fprintf(file, "failed %ld\n", failed);
	for (int i = 0; i < CALL_COUNT; i++)
		fprintf(file, "%s %ld\n", names[i], seen[i]);
	fclose(file);
}
