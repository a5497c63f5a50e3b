/* tcp_timer.c: what a TCP flow does when time passes: retransmission (RFC 6298), zero-window probes, keep-alive, TIME-WAIT. */
#include "stack.h"

#define RTO_MIN_US (200 * US_PER_MS)   /* below RFC 6298's 1 s: the path to the child is this host's memory */
#define TAIL_MIN_US (10 * US_PER_MS)   /* RFC 8985 has 2 RTT; the child's process and ours may wait for a core meanwhile */
#define RTO_MAX_US (60 * US_PER_S)
#define RETRIES_MAX 15                 /* as Linux's tcp_retries2: some 15 minutes */
#define SYN_RETRIES_MAX 5              /* as Linux's tcp_synack_retries */
#define KEEPALIVE_IDLE_US (7200 * US_PER_S) /* RFC 9293, 3.8.4; RFC 5382 REQ-5 wants more than 2 h before a flow is given up */
#define HOST_STALL_US (600 * US_PER_S) /* a host that takes nothing of what a closed child has left */
#define KEEPALIVE_EVERY_US (75 * US_PER_S)
#define KEEPALIVE_RETRIES_MAX 9
#define TIME_WAIT_US (2 * US_PER_S)    /* the child's kernel repeats a FIN within 200 ms; nothing else is on the path */

/* What the RTT calls for, whatever timeouts there were since it was measured (RFC 6298, 2.3). */
void tcp_end_back_off(struct tcb *t)
{
	t->rto = t->srtt + 4 * t->rttvar;
	if (t->rto < RTO_MIN_US)
		t->rto = RTO_MIN_US;
	if (t->rto > RTO_MAX_US)
		t->rto = RTO_MAX_US;
}

void tcp_rtt_sample(struct flow *f, uint64_t now)
{
	struct tcb *t = &f->tcp;
	uint32_t r = (uint32_t)(now - t->timed_at), delta;

	t->timed_at = 0;
	if (t->srtt == 0) {
		t->srtt = r ? r : 1;
		t->rttvar = r / 2;
	} else {
		delta = r > t->srtt ? r - t->srtt : t->srtt - r;
		t->rttvar += delta / 4 - t->rttvar / 4;
		t->srtt += r / 8 - t->srtt / 8;
	}
	tcp_end_back_off(t);
}

/* How long to wait for an answer to what is on its way: at first only until the tail is sent again (RFC 8985, 7.2). The
 * answer to one segment alone may be delayed. */
uint32_t tcp_loss_timeout(const struct flow *f)
{
	const struct tcb *t = &f->tcp;
	uint32_t tail = 2 * t->srtt > TAIL_MIN_US ? 2 * t->srtt : TAIL_MIN_US;

	if (!t->sack || t->probed || t->retries > 0 || t->srtt == 0 || seq_diff(t->snd_max, t->snd_una) <= t->mss)
		return t->rto;
	return tail < t->rto ? tail : t->rto;
}

static void back_off(struct tcb *t)
{
	t->timed_at = 0; /* Karn: an answer now could be to either sending */
	t->rto = t->rto * 2 > RTO_MAX_US ? RTO_MAX_US : t->rto * 2;
}

static uint64_t idle_deadline(const struct flow *f)
{
	uint64_t at;

	if (f->state == TIME_WAIT && up_is_done(f))
		return f->active_at + TIME_WAIT_US;
	if (child_is_done(f))
		return f->active_at + HOST_STALL_US;
	at = f->active_at + KEEPALIVE_IDLE_US;
	if (f->tcp.keepalives > 0 && f->tcp.keepalive_sent_at + KEEPALIVE_EVERY_US > at)
		at = f->tcp.keepalive_sent_at + KEEPALIVE_EVERY_US; /* from the sending: the clock may have jumped while we were stopped */
	return at;
}

/* Set the flow's one deadline from its timers. */
void tcp_deadline(struct cf_stack *st, struct flow *f)
{
	uint64_t at = idle_deadline(f);

	if (f->tcp.rtx_at < at)
		at = f->tcp.rtx_at;
	if (f->tcp.persist_at < at)
		at = f->tcp.persist_at;
	timer_set(st, f, at);
}

static void retransmission_timeout(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;

	if (t->child_window == 0 && t->down) { /* taken back after we sent: probe instead (RFC 9293, 3.8.6) */
		tcp_start_over(f);
		t->rtx_at = NEVER;
		tcp_arm_persist(st, f);
		return;
	}
	if (tcp_probe_tail(st, f)) {
		t->rtx_at = st->now + t->rto;
		return;
	}
	if (t->retries++ >= (f->state == SYN_RECEIVED ? SYN_RETRIES_MAX : RETRIES_MAX)) {
		tcp_abort(st, f, CF_END_TIMEOUT);
		return;
	}
	back_off(t);
	t->dup_acks = 0;
	t->recover = t->snd_max;
	if (t->sack && t->down) {
		tcp_lose_all(f);
		tcp_send_lost(st, f);
	} else {
		tcp_retransmit(st, f);
	}
	t->rtx_at = st->now + t->rto;
}

/* The next probe, each after twice the time (RFC 9293, 3.8.6.1); the RTO is not touched: nothing was lost. */
void tcp_arm_persist(struct cf_stack *st, struct flow *f)
{
	uint64_t in = (uint64_t)f->tcp.rto << f->tcp.probes;

	if (in < RTO_MAX_US)
		f->tcp.probes++;
	f->tcp.persist_at = st->now + (in < RTO_MAX_US ? in : RTO_MAX_US);
}

/* The window may have been opened by an ACK that was lost: ask. Never given up while the child answers. */
static void persist_timeout(struct cf_stack *st, struct flow *f)
{
	if (f->tcp.child_window > 0) {
		f->tcp.persist_at = NEVER;
		tcp_output(st, f);
		return;
	}
	tcp_send_probe(st, f);
	tcp_arm_persist(st, f);
}

static void idle_timeout(struct cf_stack *st, struct flow *f)
{
	if (f->state == TIME_WAIT && up_is_done(f)) {
		flow_close(st, f, CF_END_FIN);
		return;
	}
	if (child_is_done(f)) {
		tcp_abort(st, f, CF_END_TIMEOUT);
		return;
	}
	if (f->tcp.keepalives++ >= KEEPALIVE_RETRIES_MAX) {
		tcp_abort(st, f, CF_END_IDLE);
		return;
	}
	f->tcp.keepalive_sent_at = st->now;
	tcp_send_keepalive(st, f);
}

void tcp_timer(struct cf_stack *st, struct flow *f)
{
	if (f->state == PARKED || f->state == CONNECTING) {
		if (f->state == PARKED)
			flow_close(st, f, CF_END_TIMEOUT);
		return; /* the kernel times a connect */
	}
	if (f->tcp.rtx_at <= st->now)
		retransmission_timeout(st, f);
	else if (f->tcp.persist_at <= st->now)
		persist_timeout(st, f);
	else if (idle_deadline(f) <= st->now)
		idle_timeout(st, f);
	if (f->state != CLOSED)
		tcp_deadline(st, f);
}
