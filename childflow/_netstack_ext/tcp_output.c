/* tcp_output.c: segments to the child: data and FIN that the window takes now, ACKs, probes, resets.
 *
 * Invariants: snd_una <= snd_nxt <= snd_max; the down ring holds the text from snd_una on; the FIN, once the host is at its
 *             end, is the sequence number behind that text. rcv_adv never moves back: the window that was told is kept.
 * Not here:   when to send again (tcp_timer.c), what (tcp_recovery.c), where the bytes come from (tcp_splice.c). */
#include <string.h>

#include "stack.h"

#define OPTIONS_MAX 40

/* --- the window we tell ----------------------------------------------------------------------------------- */

/* Bytes that this flow may hold: while all large rings are held by others, a page. */
static uint32_t up_capacity(const struct cf_stack *st, const struct flow *f)
{
	return f->tcp.up ? f->tcp.up->capacity : ring_capacity(&st->rings);
}

static uint32_t up_space(const struct cf_stack *st, const struct flow *f)
{
	uint32_t used = f->tcp.up ? f->tcp.up->len : 0, space = up_capacity(st, f) - used;

	if (!f->window_scaling && space > 65535)
		space = 65535;
	return space >> f->tcp.our_wscale << f->tcp.our_wscale;
}

/* RFC 9293, 3.8.6.2.2: the edge moves by a segment or half the buffer, or not at all. */
static bool edge_may_move(const struct cf_stack *st, const struct flow *f)
{
	int32_t by = seq_diff(seq_add(f->tcp.rcv_nxt, up_space(st, f)), f->tcp.rcv_adv);
	uint32_t half = up_capacity(st, f) / 2, step = f->tcp.mss < half ? f->tcp.mss : half;

	return by >= (int32_t)step;
}

static uint16_t window_to_tell(const struct cf_stack *st, struct flow *f, bool syn)
{
	uint32_t window;

	if (edge_may_move(st, f))
		f->tcp.rcv_adv = seq_add(f->tcp.rcv_nxt, up_space(st, f));
	window = (uint32_t)seq_diff(f->tcp.rcv_adv, f->tcp.rcv_nxt);
	if (!syn)
		return (uint16_t)(window >> f->tcp.our_wscale);
	if (window > 65535) { /* the window of a SYN is never scaled (RFC 7323, 2.2) */
		window = 65535;
		f->tcp.rcv_adv = seq_add(f->tcp.rcv_nxt, window);
	}
	return (uint16_t)window;
}

/* Whether flushing has opened the window so far that the child, which may be waiting, should hear of it. After its FIN it
 * waits for nothing, and its socket may be gone: an ACK would be answered with an RST. */
bool tcp_window_opened(const struct cf_stack *st, const struct flow *f)
{
	int32_t told = seq_diff(f->tcp.rcv_adv, f->tcp.rcv_nxt);

	return !f->fin_taken && edge_may_move(st, f) && (uint32_t)told < up_capacity(st, f) / 2;
}

/* --- one segment ------------------------------------------------------------------------------------------ */

/* Only what the child offered (RFC 7323, 2.2; RFC 2018, 2). */
static uint32_t put_syn_options(const struct cf_stack *st, const struct flow *f, uint8_t *p)
{
	const uint8_t *start = p;

	p[0] = TCP_OPTION_MSS;
	p[1] = 4;
	put16(p + 2, own_mss(st, f));
	p += 4;
	if (f->tcp.sack) {
		memcpy(p, (uint8_t[]){TCP_OPTION_NOP, TCP_OPTION_NOP, TCP_OPTION_SACK_PERMITTED, 2}, 4);
		p += 4;
	}
	if (f->window_scaling) {
		memcpy(p, (uint8_t[]){TCP_OPTION_NOP, TCP_OPTION_WINDOW_SCALE, 3, f->tcp.our_wscale}, 4);
		p += 4;
	}
	return (uint32_t)(p - start);
}

static uint32_t put_options(const struct cf_stack *st, struct flow *f, uint8_t flags, uint32_t text_len, uint8_t *p)
{
	if (flags & TCP_SYN)
		return put_syn_options(st, f, p);
	return flags == TCP_ACK && text_len == 0 ? tcp_sack_options(f, p) : 0;
}

static bool send_segment(struct cf_stack *st, struct flow *f, seq at, uint8_t flags, uint32_t offset, uint32_t len)
{
	struct frame_out out;
	uint8_t options[OPTIONS_MAX], *p;
	uint32_t options_len = put_options(st, f, flags, len, options);
	uint32_t header_len = TCP_HEADER_LEN + options_len;
	seq told = f->tcp.rcv_adv;

	frame_begin(&out, PROTO_TCP);
	if (len > 0)
		out.text_pieces = ring_pieces(f->tcp.down, offset, len, out.text);
	out.text_len = len;
	out.gso_size = len > f->tcp.mss ? f->tcp.mss : 0;
	p = frame_prepend(&out, header_len);
	put16(p, f->remote_port);
	put16(p + 2, f->child_port);
	put32(p + 4, at.n);
	put32(p + 8, flags & TCP_ACK ? f->tcp.rcv_nxt.n : 0);
	p[12] = (uint8_t)(header_len / 4 << 4);
	p[13] = flags;
	put16(p + 14, flags & TCP_RST ? 0 : window_to_tell(st, f, flags & TCP_SYN));
	put16(p + 18, 0);
	memcpy(p + TCP_HEADER_LEN, options, options_len);
	if (!ip_send(st, &out, f->address_len, f->remote, header_len, 16)) {
		f->tcp.rcv_adv = told; /* the child has not heard of it */
		return false;
	}
	if (flags & TCP_ACK)
		f->ack_due = false;
	return true;
}

/* --- data and FIN ----------------------------------------------------------------------------------------- */

static bool may_send_fin(const struct flow *f)
{
	return f->host_eof && (f->state == ESTABLISHED || f->state == CLOSE_WAIT || f->state == FIN_WAIT_1 ||
			       f->state == CLOSING || f->state == LAST_ACK);
}

static uint32_t down_len(const struct flow *f) { return f->tcp.down ? f->tcp.down->len : 0; }

static void after_send(struct cf_stack *st, struct flow *f, seq end)
{
	struct tcb *t = &f->tcp;

	if (t->timed_at == 0 && seq_eq(t->snd_nxt, t->snd_max)) { /* never a retransmission: Karn */
		t->timed_at = st->now;
		t->timed_seq = end;
	}
	t->snd_nxt = end;
	t->snd_max = seq_max(t->snd_max, end);
	if (st->now + tcp_loss_timeout(f) < t->rtx_at)
		t->rtx_at = st->now + tcp_loss_timeout(f);
}

/* Bytes of text in the largest frame for this flow: whole segments. */
static uint32_t frame_max(const struct cf_stack *st, const struct flow *f)
{
	uint32_t frame = st->max_payload / f->tcp.mss * f->tcp.mss;

	return !st->cfg.offload || frame < f->tcp.mss ? f->tcp.mss : frame;
}

/* How much text may go in the next frame: what is there, what the window takes, what a frame takes; 0 to wait. */
static uint32_t next_len(const struct cf_stack *st, const struct flow *f, uint32_t sent)
{
	uint32_t unsent = down_len(f) - sent, window = f->tcp.child_window > sent ? f->tcp.child_window - sent : 0;
	uint32_t len = unsent < window ? unsent : window, frame = frame_max(st, f);

	return len < frame ? len : frame;
}

/* Send what is lost, then what the window takes from snd_nxt on; the FIN rides on the last segment. */
void tcp_output(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;
	bool wait = !tcp_send_lost(st, f) || t->slow;

	MUST(st, !seq_before(t->snd_nxt, t->snd_una) && !seq_before(t->snd_max, t->snd_nxt));
	while (!st->tap_gone && !wait) {
		uint32_t sent = (uint32_t)seq_diff(t->snd_nxt, t->snd_una), text = down_len(f);
		uint32_t len = sent < text ? next_len(st, f, sent) : 0;
		bool fin = may_send_fin(f) && sent + len == text;
		uint8_t flags = TCP_ACK;

		if (len == 0 && !fin)
			break;
		if (sent + len == text)
			flags |= TCP_PSH;
		if (fin)
			flags |= TCP_FIN;
		if (!send_segment(st, f, t->snd_nxt, flags, sent, len)) {
			list_push(st, LIST_READY, f);
			break;
		}
		after_send(st, f, seq_add(t->snd_nxt, len + fin));
		if (fin && (f->state == ESTABLISHED || f->state == CLOSE_WAIT))
			tcp_move(st, f, SENT_FIN);
		if (fin)
			break;
	}
	if (down_len(f) > 0 && f->tcp.child_window == 0 && seq_eq(t->snd_una, t->snd_nxt) && t->persist_at == NEVER)
		tcp_arm_persist(st, f);
}

/* Send up to @len sequence numbers from @from on, which were sent before, in one frame. Returns how many went; 0 when the TAP
 * takes nothing now. */
uint32_t tcp_send_again(struct cf_stack *st, struct flow *f, seq from, uint32_t len)
{
	struct tcb *t = &f->tcp;
	uint32_t offset = (uint32_t)seq_diff(from, t->snd_una), text = down_len(f) - offset, n = len < text ? len : text;
	bool fin;

	if (n > frame_max(st, f))
		n = frame_max(st, f);
	fin = n == text && len > n && may_send_fin(f);
	if (n + fin == 0)
		return 0;
	t->timed_at = 0; /* Karn: an answer now could be to either sending */
	if (!send_segment(st, f, from, (uint8_t)(TCP_ACK | (fin ? TCP_FIN : 0)), offset, n)) {
		list_push(st, LIST_READY, f);
		return 0;
	}
	return n + fin;
}

/* Send the first unacknowledged segment again, whatever snd_nxt is. */
void tcp_retransmit(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;
	uint32_t in_flight = (uint32_t)seq_diff(t->snd_max, t->snd_una), text = down_len(f);

	if (f->state == SYN_RECEIVED) {
		send_segment(st, f, t->iss, TCP_SYN | TCP_ACK, 0, 0);
		return;
	}
	if (in_flight > t->child_window && text > t->child_window)
		in_flight = t->child_window; /* taken back since */
	tcp_send_again(st, f, t->snd_una, in_flight);
	t->rtx_at = st->now + t->rto;
}

/* RFC 9293, 3.8.6.1: one byte beyond a closed window; the child must answer it. */
void tcp_send_probe(struct cf_stack *st, struct flow *f)
{
	if (down_len(f) == 0)
		return;
	if (send_segment(st, f, f->tcp.snd_una, TCP_ACK, 0, 1))
		after_send(st, f, seq_max(f->tcp.snd_nxt, seq_add(f->tcp.snd_una, 1)));
	f->tcp.rtx_at = NEVER; /* the persist timer has it */
	f->tcp.timed_at = 0;
}

/* --- without data ----------------------------------------------------------------------------------------- */

bool tcp_send_ack(struct cf_stack *st, struct flow *f) { return send_segment(st, f, f->tcp.snd_nxt, TCP_ACK, 0, 0); }

void tcp_ack_soon(struct cf_stack *st, struct flow *f)
{
	f->ack_due = true;
	list_push(st, LIST_ACK, f);
}

/* RFC 9293, 3.8.4: an old sequence number, which the child must answer with an ACK. */
void tcp_send_keepalive(struct cf_stack *st, struct flow *f)
{
	send_segment(st, f, seq_of(f->tcp.snd_una.n - 1), TCP_ACK, 0, 0);
}

/* Answer the child's SYN now that the host side is there. */
void tcp_answer_syn(struct cf_stack *st, struct flow *f)
{
	f->state = SYN_RECEIVED;
	f->tcp.snd_nxt = f->tcp.snd_max = seq_add(f->tcp.iss, 1);
	f->tcp.timed_at = st->now;
	f->tcp.timed_seq = f->tcp.snd_max;
	f->tcp.rtx_at = st->now + f->tcp.rto;
	send_segment(st, f, f->tcp.iss, TCP_SYN | TCP_ACK, 0, 0);
	tcp_deadline(st, f);
}

void tcp_send_reset(struct cf_stack *st, struct flow *f)
{
	if (f->state == PARKED || f->state == CONNECTING)
		send_segment(st, f, seq_of(0), TCP_RST | TCP_ACK, 0, 0);
	else
		send_segment(st, f, f->tcp.snd_nxt, TCP_RST | TCP_ACK, 0, 0);
}

/* RFC 9293, 3.10.7.4: an ACK of what was never sent, before the connection is there, is answered with its own number. */
void tcp_refuse_ack(struct cf_stack *st, struct flow *f, seq ack)
{
	f->ack_due = false; /* one answer is enough */
	send_segment(st, f, ack, TCP_RST, 0, 0);
}

/* A segment that belongs to no flow gets the RST of RFC 9293, 3.10.7.1. */
void tcp_refuse_segment(struct cf_stack *st, const struct ip_view *ip, const struct tcp_view *tcp)
{
	struct frame_out out;
	uint32_t len = tcp->text_len + !!(tcp->flags & TCP_SYN) + !!(tcp->flags & TCP_FIN);
	uint8_t *p;

	frame_begin(&out, PROTO_TCP);
	p = frame_prepend(&out, TCP_HEADER_LEN);
	memset(p, 0, TCP_HEADER_LEN);
	put16(p, tcp->remote_port);
	put16(p + 2, tcp->child_port);
	p[12] = TCP_HEADER_LEN / 4 << 4;
	p[13] = TCP_RST;
	if (tcp->flags & TCP_ACK) {
		put32(p + 4, tcp->ack.n);
	} else {
		put32(p + 8, tcp->seq.n + len);
		p[13] |= TCP_ACK;
	}
	ip_send(st, &out, ip->address_len, ip->dst, TCP_HEADER_LEN, 16);
}
