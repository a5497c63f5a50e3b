/* tcp_splice.c: the two connections of a flow joined: the child's (ours to speak) and the host's (the kernel's).
 *
 * Up: a segment's text goes straight from the frame to the host socket; what the socket does not take waits in the up ring,
 * whose free space is the window the child is told. Down: the host socket is read only as far as the child's window goes,
 * into the down ring, where it stays until it is acknowledged. Each end of file is passed on when all before it is gone.
 * While a flow is held (cf_flow_hold) nothing goes up: text waits in the ring as if the host took none, and so does the FIN.
 * Invariants: accepted bytes leave in order and once, none of a flow that is held; an idle flow holds no ring. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "stack.h"

#define DISCARDS 16 /* reads that are thrown away before the others have their turn */
#define SEND_AT_ONCE 8192 /* bytes; below it a copy costs less than a system call */
#define ACKS_AHEAD 3 /* RFC 5681's duplicates that mean a loss */
#define PULL_BUDGET (1u << 20) /* bytes that one flow may bring down before the others have their turn */

/* --- the host connection's coming and going --------------------------------------------------------------- */

static enum cf_denial denial_of(int error)
{
	switch (error) {
	case ENETUNREACH:
	case ENETDOWN:
		return CF_DENY_NET;
	case EHOSTUNREACH:
	case EHOSTDOWN:
		return CF_DENY_HOST;
	case EACCES:
	case EPERM:
		return CF_DENY_PROHIBITED;
	case ETIMEDOUT:
		return CF_DENY_SILENT; /* the child's own timeout, which began before ours */
	default:
		return CF_DENY_RESET;
	}
}

void tcp_connect_failed(struct cf_stack *st, struct flow *f, int error)
{
	_Alignas(struct cmsghdr) char control[HOST_ERROR_ROOM];
	enum cf_denial how = denial_of(error);
	struct icmp_error told;

	f->connect_error = error;
	flow_report_connected(st, f);
	if (host_connect_told_icmp(f, control, &told)) /* for traceroute: by whom, and what */
		icmp_send_for_flow(st, f, told, NULL, 0);
	else if (how == CF_DENY_RESET)
		tcp_send_reset(st, f);
	else if (how != CF_DENY_SILENT)
		icmp_send_for_flow(st, f, icmp_denial(how, f->address_len), NULL, 0);
	flow_close(st, f, error == ETIMEDOUT ? CF_END_TIMEOUT : CF_END_RST_HOST);
}

static void finish_connect(struct cf_stack *st, struct flow *f)
{
	int error = host_take_error(f);

	if (error) {
		tcp_connect_failed(st, f, error);
		return;
	}
	host_connected(f);
	flow_report_connected(st, f);
	tcp_answer_syn(st, f);
}

void tcp_host_event(struct cf_stack *st, struct flow *f, uint32_t events)
{
	if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		f->host_readable = true;
	if (events & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		f->read_to_end = true;
	if (events & EPOLLERR)
		f->host_error = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		f->host_writable = true;
	list_push(st, LIST_READY, f);
}

/* End both connections at once. After the child's RST only the host hears of it, after anything else both do. */
void tcp_abort(struct cf_stack *st, struct flow *f, enum cf_end end)
{
	if (end != CF_END_RST_CHILD && !child_is_done(f))
		tcp_send_reset(st, f);
	host_close(st, f, true);
	flow_close(st, f, end);
}

void tcp_free(struct cf_stack *st, struct flow *f)
{
	ring_put(&st->rings, &f->tcp.up);
	ring_put(&st->rings, &f->tcp.down);
}

/* --- up --------------------------------------------------------------------------------------------------- */

static void host_failed(struct cf_stack *st, struct flow *f, int error)
{
	tcp_abort(st, f, error == ETIMEDOUT ? CF_END_TIMEOUT : CF_END_RST_HOST);
}

/* The host takes nothing more. What it sent before that is still read and given to the child; then the child hears of it. */
static void send_failed(struct cf_stack *st, struct flow *f, int error)
{
	f->send_error = error;
	f->host_writable = false;
	f->host_readable = true;
	f->read_to_end = true;
	list_push(st, LIST_READY, f);
}

/* Send to the host socket; returns bytes taken. */
static uint32_t host_send(struct cf_stack *st, struct flow *f, struct iovec *iov, int pieces)
{
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)pieces};
	ssize_t n;

	do
		n = sendmsg(f->host_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n >= 0) {
		f->bytes_up += (uint64_t)n;
		return (uint32_t)n;
	}
	if (errno == EAGAIN)
		f->host_writable = false;
	else if (errno == ENOBUFS || errno == ENOMEM)
		list_push(st, LIST_MEMORY, f); /* no edge will come */
	else
		send_failed(st, f, errno);
	return 0;
}

static void release_up(struct cf_stack *st, struct flow *f)
{
	if (f->tcp.up->len > 0 || f->tcp.up->ahead_count > 0)
		return;
	ring_put(&st->rings, &f->tcp.up);
}

/* Keep @text, which lies @ahead bytes beyond what is in order, until the host takes it; false when there was no room for all. */
static bool keep(struct cf_stack *st, struct flow *f, uint32_t ahead, const uint8_t *text, uint32_t len)
{
	struct tcb *t = &f->tcp;
	uint32_t before, room, fits;

	if (!t->up && !(t->up = ring_get(&st->rings, RING_LARGE, RING_UP)))
		return false;
	before = t->up->len;
	room = t->up->capacity - before;
	room = ahead < room ? room - ahead : 0;
	fits = len < room ? len : room; /* all, in a large ring: the window fits it */
	if (fits > 0 && !ring_insert(t->up, before + ahead, text, fits))
		drop(st, CF_DROP_REASSEMBLY_FULL);
	t->rcv_nxt = seq_add(t->rcv_nxt, t->up->len - before);
	release_up(st, f);
	return fits == len;
}

/* What comes ahead of a gap is answered at once, each time, since the child counts that (RFC 5681, 4.2). With SACK three are
 * enough, and one for each further gap: the next one tells of all that came meanwhile. */
static bool owes_ack_at_once(struct flow *f, bool ahead, bool new_gap)
{
	struct tcb *t = &f->tcp;

	if (!ahead) {
		t->acks_ahead = 0;
		return false;
	}
	if (t->sack && t->acks_ahead == ACKS_AHEAD)
		return new_gap;
	t->acks_ahead++;
	return true;
}

/* Give the host what waits for it. */
static void flush_text(struct cf_stack *st, struct flow *f)
{
	while (f->tcp.up && f->tcp.up->len > 0 && f->host_writable && !f->held) {
		struct iovec iov[2];
		int pieces = ring_pieces(f->tcp.up, 0, f->tcp.up->len, iov);
		uint32_t n = host_send(st, f, iov, pieces);

		if (n == 0)
			break;
		ring_consume(f->tcp.up, n);
		if (child_is_done(f))
			f->active_at = st->now; /* the child is silent by now; the host's progress is what counts */
	}
	if (f->tcp.up)
		release_up(st, f);
}

/* Text in order goes straight to the host, if nothing waits before it; a short segment of a burst waits for the rest of it
 * (tcp_service comes next), so that one send takes all. Returns the bytes taken. */
static uint32_t send_straight(struct cf_stack *st, struct flow *f, const uint8_t *text, uint32_t len)
{
	struct iovec iov = {(void *)(uintptr_t)text, len};

	if (len >= SEND_AT_ONCE && f->tcp.up)
		flush_text(st, f);
	if (f->tcp.up || !f->host_writable || f->held || (len < SEND_AT_ONCE && (f->tcp.up = ring_get(&st->rings, RING_LARGE, RING_UP))))
		return 0;
	return host_send(st, f, &iov, 1);
}

/* Take text that follows what is in order. What one small ring has no room for the host may still take at once: to drop it
 * would leave a gap that only the child's timer fills. */
static bool take_in_order(struct cf_stack *st, struct flow *f, const uint8_t *text, uint32_t len)
{
	seq start = f->tcp.rcv_nxt;
	uint32_t taken = send_straight(st, f, text, len);

	f->tcp.rcv_nxt = seq_add(start, taken);
	while (!f->send_error && taken < len && !keep(st, f, 0, text + taken, len - taken)) {
		if (!f->tcp.up)
			return false; /* no ring to be had */
		flush_text(st, f);
		if (f->tcp.up && f->tcp.up->len > 0)
			return false; /* the host takes no more */
		taken = (uint32_t)seq_diff(f->tcp.rcv_nxt, start); /* more than @len, when that was there already */
	}
	return true;
}

/* Text that check_sequence has cut to the window. What is not taken is not acknowledged, so that the child sends it again. */
void tcp_take_up(struct cf_stack *st, struct flow *f, seq at, const uint8_t *text, uint32_t len)
{
	uint32_t ahead = (uint32_t)seq_diff(at, f->tcp.rcv_nxt);
	seq start = f->tcp.rcv_nxt;
	bool all = true, new_gap;

	if (!f->send_error)
		all = ahead > 0 ? keep(st, f, ahead, text, len) : take_in_order(st, f, text, len);
	if (f->send_error) {
		drop(st, CF_DROP_CLOSED_DIRECTION);
		return;
	}
	if (!all)
		drop(st, CF_DROP_NO_BUFFER);
	if (f->held && seq_after(f->tcp.rcv_nxt, start))
		flow_report_flight(st, f);
	new_gap = ahead > 0 && tcp_note_ahead(f, at);
	if (!owes_ack_at_once(f, ahead > 0, new_gap) || !tcp_send_ack(st, f))
		tcp_ack_soon(st, f);
}

static void flush_up(struct cf_stack *st, struct flow *f)
{
	flush_text(st, f);
	if (f->tcp.up && f->send_error)
		f->tcp.up->len = f->tcp.up->ahead_count = 0; /* it can never leave */
	if (f->tcp.up)
		release_up(st, f);
	if (tcp_window_opened(st, f))
		tcp_ack_soon(st, f);
	if (f->fin_taken && up_is_done(f) && !f->host_shut && f->host_fd >= 0) {
		f->host_shut = true;
		if (shutdown(f->host_fd, SHUT_WR) < 0)
			send_failed(st, f, errno); /* the connection broke; its end must not look whole */
	}
}

uint32_t tcp_held(const struct flow *f, uint8_t *out, uint32_t max)
{
	uint32_t len = f->tcp.up ? f->tcp.up->len : 0, left = len < max ? len : max;
	struct iovec iov[2];
	int pieces = left > 0 ? ring_pieces(f->tcp.up, 0, left, iov) : 0;

	for (int i = 0; i < pieces; i++) {
		memcpy(out, iov[i].iov_base, iov[i].iov_len);
		out += iov[i].iov_len;
	}
	return len;
}

/* --- down ------------------------------------------------------------------------------------------------- */

/* Bytes of the child's window that nothing in the down ring will fill. */
static uint32_t window_left(const struct flow *f)
{
	uint32_t held = f->tcp.down ? f->tcp.down->len : 0;

	return f->tcp.child_window > held ? f->tcp.child_window - held : 0;
}

/* Read up to @max bytes into the down ring, @asked of which had room; returns what recvmsg said. */
static ssize_t pull_some(struct flow *f, uint32_t max, uint32_t *asked)
{
	struct ring *r = f->tcp.down;
	struct iovec iov[2];
	struct msghdr m = {.msg_iov = iov};
	ssize_t n;

	*asked = r->capacity - r->len < max ? r->capacity - r->len : max;
	m.msg_iovlen = (size_t)ring_pieces(r, r->len, *asked, iov);
	do
		n = recvmsg(f->host_fd, &m, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		r->len += (uint32_t)n;
		f->bytes_down += (uint64_t)n;
	}
	return n;
}

static bool may_pull(const struct flow *f)
{
	return f->host_readable && !f->host_eof && f->host_fd >= 0 && (f->state == ESTABLISHED || f->state == CLOSE_WAIT);
}

/* Nothing more can be read: the host's end of file, or its failure. */
static void reading_ended(struct cf_stack *st, struct flow *f, int error)
{
	f->host_readable = false;
	if (error == 0)
		error = f->send_error;
	if (error) {
		host_failed(st, f, error);
		return;
	}
	f->host_eof = true;
	tcp_output(st, f); /* the FIN needs no window */
}

/* One read and what follows from it; false when there is nothing more to read now. */
static bool pull_step(struct cf_stack *st, struct flow *f, uint32_t max)
{
	uint32_t asked;
	ssize_t n = pull_some(f, max, &asked);

	if (n < 0 && errno == EAGAIN) {
		f->host_readable = false;
		if (f->send_error)
			reading_ended(st, f, 0);
		return false;
	}
	if (n <= 0) {
		reading_ended(st, f, n < 0 ? errno : 0);
		return false;
	}
	if ((uint32_t)n < asked && !f->read_to_end)
		f->host_readable = false; /* drained; an edge will tell of more */
	tcp_output(st, f);
	return f->host_readable;
}

static void release_empty_down(struct cf_stack *st, struct flow *f)
{
	if (f->tcp.down && f->tcp.down->len == 0)
		ring_put(&st->rings, &f->tcp.down);
}

static void pull_down(struct cf_stack *st, struct flow *f)
{
	uint64_t enough = f->bytes_down + PULL_BUDGET;

	while (may_pull(f)) {
		uint32_t left = window_left(f), held = f->tcp.down ? f->tcp.down->len : 0;

		if (left == 0 || (f->tcp.down && held == f->tcp.down->capacity))
			break;
		if (left < f->tcp.mss && !seq_eq(f->tcp.snd_una, f->tcp.snd_nxt))
			break; /* RFC 9293, 3.8.6.2.1: no silly segment while an ACK is on its way */
		if (f->bytes_down >= enough) {
			list_push(st, LIST_READY, f);
			break;
		}
		if (!f->tcp.down && !(f->tcp.down = ring_get(&st->rings, RING_LARGE, RING_DOWN))) {
			list_push(st, LIST_RING, f);
			break;
		}
		if (!pull_step(st, f, left))
			break;
	}
	if (f->state != CLOSED)
		release_empty_down(st, f);
}

/* The window is closed and the host has more: have one byte to probe with, and the timer that sends it. */
static void prepare_probe(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;

	if (!may_pull(f) || t->child_window > 0 || !seq_eq(t->snd_una, t->snd_nxt))
		return;
	if (!t->down && !(t->down = ring_get(&st->rings, RING_SMALL, RING_DOWN))) {
		list_push(st, LIST_RING, f);
		return;
	}
	if (t->down->len == 0)
		pull_step(st, f, 1); /* an end of file or an error shows here, too */
	if (f->state == CLOSED)
		return;
	release_empty_down(st, f);
	if (t->down && t->persist_at == NEVER)
		tcp_arm_persist(st, f);
}

/* After the child's RST nobody wants what the host sends, but a host that can't send may not read either. The frame buffer is
 * free between frames. */
static void discard_down(struct cf_stack *st, struct flow *f)
{
	for (int i = 0; i < DISCARDS && f->state == DRAINING && f->host_readable && f->host_fd >= 0; i++)
		f->host_readable = recv(f->host_fd, st->frame, FRAME_MAX, MSG_DONTWAIT) > 0;
	if (f->state == DRAINING && f->host_readable)
		list_push(st, LIST_READY, f);
}

/* --- service ---------------------------------------------------------------------------------------------- */

/* When the child's side is done and the host has everything, the descriptor goes at once; TIME-WAIT needs none. */
static void finish(struct cf_stack *st, struct flow *f)
{
	if (!child_is_done(f) || !up_is_done(f) || f->send_error) /* what can't leave must not end in good order */
		return;
	host_close(st, f, false);
	flow_report_end(st, f, CF_END_FIN);
	if (f->state == DRAINING)
		flow_close(st, f, CF_END_FIN);
	else if (f->queue == QUEUE_NONE)
		flow_queue(st, f, QUEUE_DONE);
}

/* Where nothing is read any more, a failure of the host must be asked for. True when the flow has ended by it. */
static bool host_was_lost(struct cf_stack *st, struct flow *f)
{
	int error = f->send_error;
	bool reads_on = !f->host_eof && (f->state == ESTABLISHED || f->state == CLOSE_WAIT) && f->tcp.child_window > 0;

	if (f->host_fd < 0 || reads_on)
		return false;
	if (!error && f->host_error) {
		f->host_error = false;
		error = host_take_error(f);
	}
	if (error)
		host_failed(st, f, error);
	return error != 0;
}

void tcp_service(struct cf_stack *st, struct flow *f)
{
	if (f->state == CONNECTING && f->host_writable)
		finish_connect(st, f);
	if (f->state < ESTABLISHED || host_was_lost(st, f))
		return;
	flush_up(st, f);
	if (f->state != CLOSED)
		pull_down(st, f);
	if (f->state == CLOSED)
		return;
	discard_down(st, f);
	tcp_output(st, f);
	prepare_probe(st, f);
	if (f->state != CLOSED)
		finish(st, f);
	if (f->state != CLOSED)
		tcp_deadline(st, f);
}
