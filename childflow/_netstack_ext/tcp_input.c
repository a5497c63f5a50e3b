/* tcp_input.c: the arrival of a segment from the child, in the steps of RFC 9293, 3.10.7.
 *
 * Each step is short and says whether to go on. Segments may come in any order, repeated, overlapping or invented.
 * Invariants: rcv_nxt only grows, by exactly the bytes accepted; what is accepted is never dropped.
 * Not here: what is sent down (tcp_output.c), what becomes of accepted bytes (tcp_splice.c). */
#include <string.h>

#include "stack.h"

#define MSS_DEFAULT_IPV4 536  /* RFC 9293, 3.7.1 */
#define MSS_DEFAULT_IPV6 1220
#define MSS_MIN 48            /* as Linux; a smaller one only costs CPU */
#define DUP_ACKS 3            /* RFC 5681, 3.2 */

/* A segment being looked at: the part of it that is inside the window. */
struct segment {
	const struct tcp_view *tcp;
	const struct tcp_options *options;
	seq seq;
	const uint8_t *text;
	uint32_t text_len;
	bool fin;
};

/* --- a new flow ------------------------------------------------------------------------------------------- */

static uint16_t clamp_mss(const struct cf_stack *st, const struct flow *f, uint16_t offered)
{
	uint16_t ours = own_mss(st, f);

	if (offered == 0)
		offered = f->address_len == 4 ? MSS_DEFAULT_IPV4 : MSS_DEFAULT_IPV6;
	if (offered < MSS_MIN)
		offered = MSS_MIN;
	return offered < ours ? offered : ours;
}

/* RFC 6528: a clock that ticks every 4 microseconds, plus a keyed hash of the connection. */
static seq initial_sequence(const struct cf_stack *st, const struct flow *f)
{
	uint64_t h = flow_hash(st->cfg.isn_key, f->protocol, f->address_len, f->child_port, f->remote, f->remote_port);

	return seq_of((uint32_t)h + (uint32_t)(st->now / 4));
}

/* The smallest shift that lets the whole window be told. */
static uint8_t window_scale(uint32_t window)
{
	uint8_t shift = 0;

	while (window >> shift > 65535 && shift < 14)
		shift++;
	return shift;
}

static void init_tcb(struct cf_stack *st, struct flow *f, const struct tcp_view *tcp, const struct tcp_options *o)
{
	struct tcb *t = &f->tcp;

	t->iss = t->snd_una = t->snd_nxt = t->snd_max = t->recover = t->sacked = initial_sequence(st, f);
	t->irs = tcp->seq;
	t->rcv_nxt = t->rcv_adv = seq_add(tcp->seq, 1);
	t->snd_wl1 = tcp->seq;
	t->snd_wl2 = t->iss;
	t->child_window = tcp->window;
	t->mss = clamp_mss(st, f, o->mss);
	t->sack = o->sack_permitted;
	f->window_scaling = o->has_window_scale;
	t->child_wscale = o->window_scale;
	t->our_wscale = o->has_window_scale ? window_scale(st->cfg.flow_window) : 0;
	t->rto = 1 * US_PER_S; /* RFC 6298, 2.1 */
	t->rtx_at = t->persist_at = NEVER;
}

static void open_flow(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp)
{
	struct tcp_options o;
	struct flow *f;
	int why;

	if (!tcp_options_view(&o, tcp, &why)) {
		drop(st, why);
		return;
	}
	f = flow_new(st, PROTO_TCP, ip->address_len, tcp->child_port, ip->dst, tcp->remote_port);
	if (!f) {
		tcp_refuse_segment(st, ip, tcp);
		return;
	}
	f->hop_limit = ip->hop_limit;
	f->tos = ip->tos;
	init_tcb(st, f, tcp, &o);
	timer_set(st, f, st->now + PARKED_MAX_US);
	flow_ask(st, f);
}

static void no_flow(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp)
{
	uint8_t flags = tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN);

	if (flags == TCP_SYN) {
		open_flow(st, ip, tcp);
		return;
	}
	drop(st, CF_DROP_NO_FLOW);
	if (!(flags & TCP_RST) && !((flags & TCP_SYN) && (flags & TCP_FIN)))
		tcp_refuse_segment(st, ip, tcp);
}

/* --- the steps -------------------------------------------------------------------------------------------- */

/* Cut what came before rcv_nxt; false when nothing is left. */
static bool trim_front(struct cf_stack *st, struct flow *f, struct segment *s)
{
	int32_t old = seq_diff(f->tcp.rcv_nxt, s->seq);

	if (old <= 0)
		return true;
	if ((uint32_t)old >= s->text_len + s->fin) {
		drop(st, CF_DROP_DUPLICATE);
		tcp_ack_soon(st, f); /* also the answer to a keep-alive probe */
		return false;
	}
	s->seq = f->tcp.rcv_nxt;
	s->text += old;
	s->text_len -= (uint32_t)old;
	return true;
}

/* Cut what lies beyond the window; a segment that is all beyond it still may carry a good ACK (RFC 9293, 3.10.7.4). */
static bool trim_back(struct cf_stack *st, struct flow *f, struct segment *s)
{
	int32_t room = seq_diff(f->tcp.rcv_adv, s->seq);

	if (room < 0) {
		drop(st, CF_DROP_OUT_OF_WINDOW);
		tcp_ack_soon(st, f);
		return false;
	}
	if (s->text_len <= (uint32_t)room)
		return true;
	drop(st, CF_DROP_OUT_OF_WINDOW);
	tcp_ack_soon(st, f);
	s->text_len = (uint32_t)room;
	s->fin = false;
	return true;
}

static bool check_sequence(struct cf_stack *st, struct flow *f, struct segment *s)
{
	if ((s->tcp->flags & (TCP_SYN | TCP_RST)) == TCP_SYN && seq_eq(s->seq, f->tcp.irs)) { /* a repeated SYN: our answer was lost */
		drop(st, CF_DROP_DUPLICATE);
		if (f->state == SYN_RECEIVED)
			tcp_retransmit(st, f);
		else
			tcp_ack_soon(st, f);
		return false;
	}
	if (s->tcp->flags & TCP_RST)
		return true;
	return trim_front(st, f, s) && trim_back(st, f, s);
}

/* RFC 5961, 7: at most so many a second for all flows. The segment was counted where it was refused. */
static void challenge(struct cf_stack *st, struct flow *f)
{
	if (bucket_take(&st->challenge_acks, st->now))
		tcp_ack_soon(st, f);
}

static void take_reset(struct cf_stack *st, struct flow *f)
{
	if (!f->fin_taken || !f->tcp.up) {
		tcp_abort(st, f, CF_END_RST_CHILD);
		return;
	}
	tcp_move(st, f, CHILD_ABORTED);
	ring_put(&st->rings, &f->tcp.down); /* nobody wants it, so nothing is on its way */
	f->tcp.snd_nxt = f->tcp.snd_max = f->tcp.sacked = f->tcp.snd_una;
	f->tcp.rtx_at = f->tcp.persist_at = NEVER;
	list_push(st, LIST_READY, f);
}

/* RFC 5961, 3.2: only the exact sequence number resets; another one in the window is asked to prove itself. */
static bool check_reset(struct cf_stack *st, struct flow *f, struct segment *s)
{
	if (!(s->tcp->flags & TCP_RST))
		return true;
	if (seq_eq(s->seq, f->tcp.rcv_nxt) && !child_is_done(f)) {
		take_reset(st, f);
		return false;
	}
	drop(st, CF_DROP_BAD_RESET); /* once all was acknowledged none can take it back (RFC 1337) */
	if (!child_is_done(f) && seq_diff(s->seq, f->tcp.rcv_nxt) >= 0 && seq_diff(f->tcp.rcv_adv, s->seq) > 0)
		challenge(st, f);
	return false;
}

/* RFC 5961, 4.2: a SYN inside a connection gets a challenge ACK. */
static bool check_syn(struct cf_stack *st, struct flow *f, struct segment *s)
{
	if (!(s->tcp->flags & TCP_SYN))
		return true;
	drop(st, CF_DROP_BAD_FLAGS);
	challenge(st, f);
	return false;
}

/* RFC 9293, 3.10.7.4: the window of the newest segment. After an older one the right edge stays where it was told. */
static void take_window(struct flow *f, const struct segment *s)
{
	struct tcb *t = &f->tcp;

	if (seq_after(s->tcp->seq, t->snd_wl1) || (seq_eq(s->tcp->seq, t->snd_wl1) && !seq_before(s->tcp->ack, t->snd_wl2))) {
		t->child_window = (uint32_t)s->tcp->window << (f->window_scaling ? t->child_wscale : 0);
		t->snd_wl1 = s->tcp->seq;
		t->snd_wl2 = s->tcp->ack;
	} else if (seq_after(s->tcp->ack, t->snd_una)) {
		uint32_t acked = (uint32_t)seq_diff(s->tcp->ack, t->snd_una);

		t->child_window = t->child_window > acked ? t->child_window - acked : 0;
	}
}

/* The text and the FIN that @acked sequence numbers from snd_una cover. */
static void take_acked(struct cf_stack *st, struct flow *f, uint32_t acked)
{
	struct tcb *t = &f->tcp;
	uint32_t text = t->down && t->down->len < acked ? t->down->len : acked;

	if (t->down) {
		ring_consume(t->down, text);
		if (t->down->len == 0)
			ring_put(&st->rings, &t->down);
	}
	if (seq_eq(t->snd_una, t->snd_max) &&
	    (f->state == FIN_WAIT_1 || f->state == CLOSING || f->state == LAST_ACK) && f->host_eof && !t->down)
		tcp_move(st, f, FIN_ACKED);
}

static void advance_una(struct cf_stack *st, struct flow *f, seq ack)
{
	struct tcb *t = &f->tcp;
	uint32_t acked = (uint32_t)seq_diff(ack, t->snd_una);
	bool in_recovery = seq_before(t->snd_una, t->recover);

	if (!in_recovery)
		t->recover = ack; /* kept close, or it would wrap to the other side */
	t->snd_una = ack;
	t->snd_nxt = seq_max(t->snd_nxt, ack);
	t->slow = t->slow && seq_before(ack, t->recover);
	if (t->timed_at && !seq_before(ack, t->timed_seq))
		tcp_rtt_sample(f, st->now);
	t->retries = t->dup_acks = 0;
	tcp_forget_acked(f, acked);
	take_acked(st, f, acked);
	if (in_recovery && seq_before(ack, t->recover) && !(t->sack && t->down))
		tcp_retransmit(st, f); /* a partial ACK: the next hole (RFC 6582) */
}

/* The child has reported something new: what it says of the rest, and from now on how long to wait for that. */
static void after_progress(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;

	tcp_infer_losses(f);
	if (t->sack && t->srtt) /* the way is open again; a sample may be long in coming where much is lost */
		tcp_end_back_off(t);
	t->probed = false;
	t->rtx_at = seq_eq(t->snd_una, t->snd_max) ? NEVER : st->now + tcp_loss_timeout(f);
}

static void count_duplicate_ack(struct cf_stack *st, struct flow *f, const struct segment *s, uint32_t old_window)
{
	struct tcb *t = &f->tcp;

	if (s->text_len > 0 || s->fin || old_window != t->child_window || seq_eq(t->snd_una, t->snd_max))
		return;
	if (t->child_window == 0) /* the answer to a probe */
		return;
	if (s->options->sack_count > 0) /* it says more than a count (RFC 6675); of what came twice, perhaps (RFC 2883) */
		return;
	if (t->dup_acks < 255)
		t->dup_acks++;
	if (t->dup_acks == DUP_ACKS && !seq_before(t->snd_una, t->recover)) {
		t->recover = t->snd_max;
		t->timed_at = 0; /* Karn */
		tcp_retransmit(st, f);
	}
}

static bool finish_handshake(struct cf_stack *st, struct flow *f, const struct segment *s)
{
	if (!seq_eq(s->tcp->ack, seq_add(f->tcp.iss, 1))) {
		drop(st, CF_DROP_OLD_ACK);
		tcp_refuse_ack(st, f, s->tcp->ack);
		return false;
	}
	f->state = ESTABLISHED;
	flow_unqueue(st, f);
	f->tcp.snd_una = f->tcp.sacked = f->tcp.snd_max;
	f->tcp.rtx_at = NEVER;
	f->tcp.retries = 0;
	if (f->tcp.timed_at)
		tcp_rtt_sample(f, st->now);
	f->tcp.snd_wl1 = seq_of(s->tcp->seq.n - 1); /* whatever its number, take its window */
	return true;
}

static bool check_ack(struct cf_stack *st, struct flow *f, struct segment *s)
{
	struct tcb *t = &f->tcp;
	uint32_t old_window = t->child_window;
	seq una = t->snd_una;

	if (!(s->tcp->flags & TCP_ACK)) {
		drop(st, CF_DROP_BAD_FLAGS);
		return false;
	}
	if (f->state == SYN_RECEIVED && !finish_handshake(st, f, s))
		return false;
	if (seq_after(s->tcp->ack, t->snd_max)) { /* of what was never sent (RFC 5961, 5.2) */
		drop(st, CF_DROP_OLD_ACK);
		challenge(st, f);
		return false;
	}
	if (!seq_before(s->tcp->ack, t->snd_una))
		take_window(f, s);
	if (seq_after(s->tcp->ack, t->snd_una))
		advance_una(st, f, s->tcp->ack);
	else if (seq_eq(s->tcp->ack, t->snd_una))
		count_duplicate_ack(st, f, s, old_window);
	if ((t->sack && tcp_take_sack(f, s->options)) || seq_after(t->snd_una, una))
		after_progress(st, f);
	if (t->child_window > 0 && t->persist_at != NEVER) {
		t->persist_at = NEVER;
		t->probes = 0;
		tcp_start_over(f); /* the probe's byte may not have been taken */
	}
	list_push(st, LIST_READY, f);
	return true;
}

static bool take_text(struct cf_stack *st, struct flow *f, struct segment *s)
{
	if (s->text_len == 0)
		return true;
	if (f->fin_taken) {
		drop(st, CF_DROP_CLOSED_DIRECTION);
		tcp_ack_soon(st, f);
		return false;
	}
	tcp_take_up(st, f, s->seq, s->text, s->text_len);
	return f->state != CLOSED;
}

static bool take_fin(struct cf_stack *st, struct flow *f, struct segment *s)
{
	if (s->fin && !f->fin_taken) {
		f->fin_seen = true;
		f->tcp.fin_seq = seq_add(s->seq, s->text_len);
	}
	if (!f->fin_seen || f->fin_taken || !seq_eq(f->tcp.fin_seq, f->tcp.rcv_nxt))
		return true;
	f->fin_taken = true;
	if (f->tcp.up)
		f->tcp.up->ahead_count = 0; /* text that claims to come after the FIN */
	f->tcp.rcv_nxt = seq_add(f->tcp.rcv_nxt, 1);
	f->tcp.rcv_adv = seq_max(f->tcp.rcv_adv, f->tcp.rcv_nxt);
	tcp_move(st, f, GOT_CHILD_FIN);
	tcp_ack_soon(st, f);
	list_push(st, LIST_READY, f);
	if (f->held)
		flow_report_flight(st, f);
	return true;
}

static bool (*const step[])(struct cf_stack *, struct flow *, struct segment *) = {
	check_sequence, check_reset, check_syn, check_ack, take_text, take_fin,
};

/* --- arrival ---------------------------------------------------------------------------------------------- */

/* Before the host has answered: the child can only repeat its SYN or give up. */
static void while_waiting(struct cf_stack *st, struct flow *f, const struct tcp_view *tcp)
{
	struct tcp_options o;
	int why;

	if ((tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN && !seq_eq(tcp->seq, f->tcp.irs)) {
		if (tcp_options_view(&o, tcp, &why)) /* it gave up and uses the port anew */
			init_tcb(st, f, tcp, &o);
		else
			drop(st, why);
		return;
	}
	if ((tcp->flags & TCP_RST) && (seq_eq(tcp->seq, f->tcp.rcv_nxt) || seq_eq(tcp->seq, f->tcp.irs)))
		tcp_abort(st, f, CF_END_RST_CHILD);
	else
		drop(st, tcp->flags & TCP_SYN ? CF_DROP_DUPLICATE : CF_DROP_NO_FLOW);
}

/* RFC 9293, MAY-2: a new SYN takes over a tuple in TIME-WAIT, if its number is beyond what was used. */
static bool reopens(const struct flow *f, const struct tcp_view *tcp)
{
	return child_is_done(f) && (tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN &&
	       seq_after(tcp->seq, f->tcp.rcv_nxt);
}

void tcp_input(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp)
{
	struct flow *f = flow_find(st, PROTO_TCP, ip->address_len, tcp->child_port, ip->dst, tcp->remote_port);
	struct tcp_options options;
	struct segment s = {tcp, &options, tcp->seq, tcp->text, tcp->text_len, (tcp->flags & TCP_FIN) != 0};
	int why;

	if (f && reopens(f, tcp)) {
		if (!up_is_done(f))
			flow_unhash(st, f); /* the host still takes what was acknowledged */
		else
			flow_close(st, f, CF_END_FIN);
		f = NULL;
	}
	if (!f) {
		no_flow(st, ip, tcp);
		return;
	}
	tcp_options_view(&options, tcp, &why); /* inside a connection what can be read of them counts, as Linux has it */
	f->active_at = st->now;
	f->tcp.keepalives = 0;
	if ((ip->tos ^ f->tos) & DSCP_MASK)
		host_follow_tos(f, ip->tos);
	if (f->state == PARKED || f->state == CONNECTING) {
		while_waiting(st, f, tcp);
		return;
	}
	for (size_t i = 0; i < sizeof(step) / sizeof(step[0]); i++)
		if (!step[i](st, f, &s))
			break;
	if (f->state != CLOSED)
		tcp_deadline(st, f);
}
