/* init.c: childflow-init, the two small processes of a run that must hold nothing.
 *
 *   childflow-init run CONTROL FLAGS CAPS MASK KEEP -- COMMAND [ARG...]
 *       The init (I) of the command's PID namespace. It is executed from a descriptor, so nothing of the engine's memory is in it.
 *       It mounts /proc, gives up every privilege, waits until the engine (P) releases it, starts the command (X), and then does
 *       three things only: it reaps, it passes on the signals that P names, and it reports X's stops, continuations and end.
 *       CONTROL  its end of a SOCK_SEQPACKET pair with P (struct message, below); its end of file means that P is gone
 *       FLAGS    letters: p mount a fresh /proc, r and that read-only, b empty the bounding set, - none
 *       CAPS     the capabilities that X keeps, in hexadecimal (0 but for a root caller or --map-root)
 *       MASK     X's signal mask, in hexadecimal, bit 0 is signal 1
 *       KEEP     descriptors above 2 that X keeps although they are no pipe: numbers joined by commas, or -
 *   childflow-init hold TAP PIPE
 *       The holder: keeps the TAP's last descriptor until PIPE's other end is closed, so that no one whom a user waits for
 *       pays the tens of milliseconds which the kernel takes to dismantle the interface.
 *
 * Invariants: I is not dumpable before X exists; when X runs, I has no descriptor but CONTROL and a signalfd, and no
 *             capability but, for a root caller, KILL (to signal an X that changed its uid). Every failure before X runs is
 *             told to P and ends I: nothing is started half confined.
 * Not here:   namespaces, links and other mounts (the Python of childflow/sandbox, in C), and what a report means (run.py). */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_FAILED 125
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127
#define KEEP_MAX 256
#define CALL_CLOSE_RANGE 436 /* Linux 5.9; the same number on every architecture */

/* What passes on CONTROL. `kind` is one of the letters; `value` a signal, an exit status or an errno.
 *   P to I   G go: start X     S signal `value` for X
 *   I to P   R ready           E X exited with `value`      K X was killed by signal `value`
 *            T X stopped by signal `value`                  C X continued
 *            F failed before X ran: `value` is errno, `text` the step */
struct message {
	int32_t kind;
	int32_t value;
	char text[56];
};

struct run {
	int control;
	bool fresh_proc, readonly_proc, empty_bounding;
	uint64_t capabilities;
	sigset_t command_mask;
	struct sigaction command_sigchld; /* the caller's disposition, which X gets back */
	int keep[KEEP_MAX];
	int kept;
	char **command;
	pid_t pid; /* X */
	bool stopped; /* as P was told, which stands stopped itself since */
	bool group_continued, engine_continued; /* since then: the whole job was, or P is awake and did it */
};

/* ---- telling P ---- */

static bool tell(const struct run *run, int kind, int value, const char *text)
{
	struct message message = { .kind = kind, .value = value };

	strncpy(message.text, text, sizeof(message.text) - 1);
	return send(run->control, &message, sizeof(message), MSG_NOSIGNAL) == sizeof(message);
}

static _Noreturn void fail(const struct run *run, const char *step)
{
	tell(run, 'F', errno, step);
	_exit(EXIT_FAILED);
}

/* ---- arguments ---- */

static sigset_t mask_from_hex(const char *text)
{
	uint64_t bits = strtoull(text, NULL, 16);
	sigset_t mask;

	sigemptyset(&mask);
	for (int number = 1; number <= 64; number++)
		if (bits & (UINT64_C(1) << (number - 1)))
			sigaddset(&mask, number);
	return mask;
}

static void read_kept(struct run *run, const char *text)
{
	char *end = (char *)text;

	if (*text == '-')
		return;
	do {
		run->keep[run->kept++] = (int)strtol(*end == ',' ? end + 1 : end, &end, 10);
	} while (*end == ',' && run->kept < KEEP_MAX);
}

static bool read_arguments(struct run *run, int argc, char **argv)
{
	if (argc < 9 || strcmp(argv[7], "--") != 0)
		return false;
	run->control = atoi(argv[2]);
	run->fresh_proc = strchr(argv[3], 'p');
	run->readonly_proc = strchr(argv[3], 'r');
	run->empty_bounding = strchr(argv[3], 'b');
	run->capabilities = strtoull(argv[4], NULL, 16);
	run->command_mask = mask_from_hex(argv[5]);
	read_kept(run, argv[6]);
	run->command = argv + 8;
	return true;
}

/* ---- descriptors ---- */

static bool command_keeps(const struct run *run, int fd)
{
	struct stat status;

	for (int i = 0; i < run->kept; i++)
		if (run->keep[i] == fd)
			return true;
	return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

/* Close all that neither I nor X may have. What stays above 2 is X's, but for CONTROL. */
static void close_strangers(const struct run *run)
{
	DIR *open_fds = opendir("/proc/self/fd");
	struct dirent *entry;

	if (!open_fds)
		fail(run, "list /proc/self/fd");
	while ((entry = readdir(open_fds))) {
		int fd = atoi(entry->d_name);

		if (fd > 2 && fd != run->control && fd != dirfd(open_fds) && !command_keeps(run, fd))
			close(fd);
	}
	closedir(open_fds);
	fcntl(run->control, F_SETFD, FD_CLOEXEC);
}

static void close_between(unsigned int first, unsigned int last)
{
	if (first > last || syscall(CALL_CLOSE_RANGE, first, last, 0) == 0)
		return;
	for (unsigned int fd = first; fd <= last && fd < 65536; fd++) /* before Linux 5.9 */
		close((int)fd);
}

static void close_all_but(int one, int other)
{
	int low = one < other ? one : other, high = one < other ? other : one;

	if (low > 0)
		close_between(0, (unsigned int)low - 1);
	close_between((unsigned int)low + 1, (unsigned int)high - 1);
	close_between((unsigned int)high + 1, ~0U);
}

/* ---- privileges ---- */

static void clear_bounding(const struct run *run)
{
	for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
		if (!(run->capabilities >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
			fail(run, "empty the bounding set");
}

static void keep_capabilities(const struct run *run, uint64_t kept)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ .effective = (uint32_t)kept, .permitted = (uint32_t)kept },
		{ .effective = (uint32_t)(kept >> 32), .permitted = (uint32_t)(kept >> 32) },
	};

	if (syscall(SYS_capset, &header, data))
		fail(run, "give up capabilities");
}

/* The place of the command's seccomp filter, which I will carry too: between no_new_privs and the fork. */
static void drop_privileges(const struct run *run)
{
	if (run->empty_bounding)
		clear_bounding(run);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) /* EINVAL: before Linux 4.3 */
		fail(run, "clear the ambient capabilities");
	keep_capabilities(run, run->capabilities);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail(run, "set no_new_privs");
}

/* ---- the parent's death ---- */

static bool engine_lives(const struct run *run)
{
	struct pollfd control = { .fd = run->control };

	return poll(&control, 1, 0) >= 0 && !(control.revents & (POLLHUP | POLLERR));
}

/* A change of credentials clears the death signal, so this comes after the last one; P may be gone by then. getppid()
 * says nothing about a parent in another PID namespace: the socket does. */
static void die_with_engine(const struct run *run)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		fail(run, "set the parent death signal");
	if (!engine_lives(run))
		_exit(EXIT_FAILED);
}

/* ---- X, the command ---- */

static void restore_signals(const struct run *run)
{
	/* Python ignores these two in P; a program expects them to be as its shell left them. */
	signal(SIGPIPE, SIG_DFL);
	signal(SIGXFSZ, SIG_DFL);
	sigaction(SIGCHLD, &run->command_sigchld, NULL);
	sigprocmask(SIG_SETMASK, &run->command_mask, NULL);
}

/* The first file of this name where execvp would look, that may be accessed as @mode says; false when there is none. */
static bool find(const char *name, int mode, char found[PATH_MAX])
{
	const char *path = getenv("PATH");

	if (strchr(name, '/') || !path) {
		snprintf(found, PATH_MAX, "%s", name);
		return access(found, mode) == 0;
	}
	for (const char *part = path; part; part = strchr(part, ':')) {
		part += *part == ':';
		int length = (int)strcspn(part, ":");

		snprintf(found, PATH_MAX, "%.*s/%s", length, length ? part : ".", name);
		if (access(found, mode) == 0)
			return true;
	}
	return false;
}

/* execvp gives what the kernel does not know to sh, as a script without a first line wants. A program for another machine
 * does not want it, so a binary goes to the kernel alone. */
static bool is_elf_program(const char *name)
{
	char path[PATH_MAX], magic[4] = "";
	int fd;

	if (!find(name, X_OK, path))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, magic, sizeof(magic)) != sizeof(magic) || memcmp(magic, "\177ELF", sizeof(magic)) != 0) {
		close(fd);
		return false;
	}
	close(fd);
	return true;
}

static void execve_only(char **command)
{
	char path[PATH_MAX];

	if (find(command[0], X_OK, path))
		execv(path, command);
}

static _Noreturn void say_why_not(const char *name, int error)
{
	struct stat status;
	bool searched = !strchr(name, '/');
	/* A folder of PATH that may not be entered makes execvp say EACCES of a command that is nowhere. */
	char path[PATH_MAX];
	bool found = find(name, F_OK, path) || (error != ENOENT && !(searched && error == EACCES));

	bool directory = !searched || strcmp(name, ".") == 0 || strcmp(name, "..") == 0;

	if (!found && strchr(name, '='))
		dprintf(2, "childflow: %s: command not found; to set a variable write: env %s COMMAND\n", name, name);
	else if (!found)
		dprintf(2, "childflow: %s: command not found; check its spelling%s\n", name,
			searched ? " and PATH" : "");
	else if (error == ENOENT)
		dprintf(2, "childflow: %s: the interpreter that the file names is missing; install it or correct the file's first line\n", name);
	else if (error == EACCES && directory && stat(name, &status) == 0 && S_ISDIR(status.st_mode))
		dprintf(2, "childflow: %s: is a directory; name a program in it\n", name);
	else if (error == EACCES)
		dprintf(2, "childflow: %s: permission denied; make the file executable (chmod +x) and its folders accessible\n", name);
	else
		dprintf(2, "childflow: %s: can't be executed: %s; check that it is a program for this machine\n", name, strerror(error));
	_exit(found ? EXIT_NOT_EXECUTABLE : EXIT_NOT_FOUND);
}

static _Noreturn void become_command(const struct run *run, pid_t init)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) || getppid() != init)
		_exit(EXIT_FAILED);
	restore_signals(run);
	if (is_elf_program(run->command[0]))
		execve_only(run->command);
	else
		execvp(run->command[0], run->command);
	say_why_not(run->command[0], errno);
}

/* ---- I ---- */

static void mount_proc(const struct run *run)
{
	unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (!run->readonly_proc && mount("proc", "/proc", "proc", flags, NULL) == 0)
		return;
	/* Where the host's /proc is read-only, the kernel lets us have no other. */
	if (mount("proc", "/proc", "proc", flags | MS_RDONLY, NULL))
		fail(run, "mount /proc");
}

/* The working directory was entered before anything was laid over it: by its path it is what the command may see. Where the
 * path is closed to us the directory stays, unless it lies where things are hidden. */
static void reenter_directory(const struct run *run)
{
	static const char *const hiding[] = { "/proc", "/sys", "/run" };
	char path[PATH_MAX];

	if (!getcwd(path, sizeof(path)) || path[0] != '/')
		return;
	if (chdir(path) == 0)
		return;
	for (size_t i = 0; i < sizeof(hiding) / sizeof(hiding[0]); i++)
		if (strncmp(path, hiding[i], strlen(hiding[i])) == 0 && chdir("/"))
			fail(run, "leave a hidden directory");
}

static void wait_for_release(const struct run *run)
{
	struct message message;

	if (!tell(run, 'R', 0, ""))
		_exit(EXIT_FAILED);
	while (recv(run->control, &message, sizeof(message), 0) == sizeof(message))
		if (message.kind == 'G')
			return;
	_exit(EXIT_FAILED);
}

/* The terminal may have signalled the process group after P last looked and before X existed. I, which blocks everything,
 * has it pending then. */
static void pass_on_missed(const struct run *run, const sigset_t *missed)
{
	static const int from_terminal[] = { SIGINT, SIGQUIT, SIGHUP, SIGTERM };

	for (size_t i = 0; i < sizeof(from_terminal) / sizeof(from_terminal[0]); i++)
		if (sigismember(missed, from_terminal[i]) == 1)
			kill(run->pid, from_terminal[i]);
}

static void start_command(struct run *run)
{
	pid_t init = getpid();
	sigset_t missed;

	sigpending(&missed);
	run->pid = fork();
	if (run->pid < 0)
		fail(run, "fork the command");
	if (run->pid == 0)
		become_command(run, init);
	pass_on_missed(run, &missed);
}

/* X goes on, or is gone, but P may still stand stopped with it: a shell's `fg` continues the whole group, a kill(2) from inside
 * only X. P is beyond this namespace, but in this process group. */
static void wake_engine(struct run *run)
{
	if (run->stopped && !run->group_continued && !run->engine_continued)
		kill(0, SIGCONT);
	run->stopped = false;
}

static bool report(struct run *run, int status)
{
	if (WIFSTOPPED(status)) {
		run->stopped = true;
		run->group_continued = run->engine_continued = false;
		return tell(run, 'T', WSTOPSIG(status), "");
	}
	wake_engine(run);
	if (WIFCONTINUED(status))
		return tell(run, 'C', 0, "");
	if (WIFSIGNALED(status))
		return tell(run, 'K', WTERMSIG(status), "");
	return tell(run, 'E', WEXITSTATUS(status), "");
}

/* Collect what children there are to collect; true once X has ended. */
static bool reap(struct run *run)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED)) > 0) {
		if (pid != run->pid)
			continue;
		report(run, status);
		if (WIFEXITED(status) || WIFSIGNALED(status))
			return true;
	}
	return false;
}

/* One message of P's: a signal for X. False when P is gone. */
static bool take_message(struct run *run)
{
	struct message message;

	if (recv(run->control, &message, sizeof(message), MSG_DONTWAIT) != sizeof(message))
		return errno == EAGAIN || errno == EINTR;
	if (message.kind == 'S') {
		run->engine_continued = run->engine_continued || message.value == SIGCONT;
		kill(run->pid, message.value);
	}
	return true;
}

/* Take what the signalfd has: SIGCHLD says that there is something to reap, SIGCONT that the group was continued. */
static void take_signals(struct run *run, int signals)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo == SIGCONT)
			run->group_continued = true;
}

static void serve(struct run *run, int child_events)
{
	struct pollfd watched[] = { { .fd = run->control, .events = POLLIN }, { .fd = child_events, .events = POLLIN } };

	for (;;) {
		if (poll(watched, 2, -1) < 0 && errno != EINTR)
			return;
		if (watched[1].revents) {
			take_signals(run, child_events);
			if (reap(run))
				return;
		}
		errno = 0;
		if (watched[0].revents && !take_message(run))
			return;
	}
}

/* Without a PID namespace nothing ends with us, so what is left of the tree, all of it our children by now or soon (we are
 * their subreaper), is killed by hand. */
static void end_leftovers(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	for (;;) {
		FILE *children = fopen(path, "re");
		int pid, killed = 0;

		while (children && fscanf(children, "%d", &pid) == 1)
			killed += kill(pid, SIGKILL) == 0;
		if (children)
			fclose(children);
		if (!killed)
			return;
		/* No more than were killed: the children of these become ours, and live. */
		while (killed-- > 0 && waitpid(-1, NULL, 0) > 0)
			;
	}
}

static int run_command(struct run *run)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t all;
	int child_events;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigaction(SIGCHLD, &standard, &run->command_sigchld); /* ignored, there would be no status to wait for */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail(run, "close init to others");
	close_strangers(run);
	if (run->fresh_proc)
		mount_proc(run);
	reenter_directory(run);
	drop_privileges(run);
	die_with_engine(run);
	wait_for_release(run);
	start_command(run);

	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	sigaddset(&all, SIGCONT);
	keep_capabilities(run, run->capabilities & (UINT64_C(1) << CAP_KILL));
	die_with_engine(run);
	child_events = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (child_events < 0)
		fail(run, "make a signalfd");
	close_all_but(run->control, child_events);
	serve(run, child_events);
	if (!run->fresh_proc)
		end_leftovers();
	return 0;
}

/* ---- the holder ---- */

static int hold(int tap, int pipe_from_engine)
{
	char unused;

	setsid();
	close_all_but(tap, pipe_from_engine);
	if (chdir("/") || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return EXIT_FAILED;
	keep_capabilities(&(struct run){ .control = -1 }, 0);
	while (read(pipe_from_engine, &unused, 1) < 0 && errno == EINTR)
		;
	return 0;
}

int main(int argc, char **argv)
{
	static struct run run;

	if (argc == 4 && strcmp(argv[1], "hold") == 0)
		return hold(atoi(argv[2]), atoi(argv[3]));
	if (argc > 1 && strcmp(argv[1], "run") == 0 && read_arguments(&run, argc, argv))
		return run_command(&run);
	dprintf(2, "childflow-init: a part of childflow, which starts it; run `childflow -- COMMAND` instead\n");
	return EXIT_FAILED;
}
