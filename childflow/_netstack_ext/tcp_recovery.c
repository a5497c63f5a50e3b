/* tcp_recovery.c: which text was lost on its way to the child, and sending just that again.
 *
 * The child reports what it has with selective acknowledgements (RFC 2018); between the reports lie holes, kept in the down
 * ring. A hole that was never sent again is lost once enough lies behind it (RFC 6675's DupThresh). One that was sent again
 * is lost again once something arrived that was sent later: RFC 8985's thought, with the order of sending in place of its
 * time, since the path to the child does not reorder. Where nothing later was sent, the timer sends the tail (RFC 8985, 7).
 * After a timeout the child sets the pace: as many bytes go again as it reports, twice over (RFC 5681's slow start). So it does
 * for what was sent again already: a child that lies byte by byte must not have the whole window for each.
 * Up, the same option reports our own gaps to the child.
 * Invariants: holes are sorted, apart, within snd_una..sacked; without a down ring there are none.
 * Not here: recovery of a child that permits no SACK (tcp_input.c counts its ACKs), the timer (tcp_timer.c). */
#include <string.h>

#include "stack.h"

#define DUP_THRESHOLD 3 /* segments (RFC 6675) */
#define ALLOWANCE_MAX (1u << 20) /* bytes: what was reported long ago pays for nothing now */

static bool order_before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }

/* --- the list --------------------------------------------------------------------------------------------- */

static void remove_hole(struct ring *r, uint32_t i)
{
	r->hole_count--;
	memmove(r->holes + i, r->holes + i + 1, (r->hole_count - i) * sizeof(r->holes[0]));
}

static bool insert_hole(struct ring *r, uint32_t i, struct hole h)
{
	if (r->hole_count == RING_HOLES)
		return false;
	memmove(r->holes + i + 1, r->holes + i, (r->hole_count - i) * sizeof(r->holes[0]));
	r->holes[i] = h;
	r->hole_count++;
	return true;
}

static void forget_holes(struct tcb *t)
{
	if (t->down)
		t->down->hole_count = 0;
	t->sacked = t->snd_una;
}

/* The child took its window back over what is in flight, or was probed: all goes again, in order, as the window takes it. */
void tcp_start_over(struct flow *f)
{
	f->tcp.snd_nxt = f->tcp.snd_una;
	f->tcp.timed_at = 0; /* Karn */
	f->tcp.slow = false;
	forget_holes(&f->tcp);
}

/* --- what the child reports ------------------------------------------------------------------------------- */

static void note_delivery(struct tcb *t, const struct hole *h)
{
	if (h->order && order_before(t->delivered_order, h->order))
		t->delivered_order = h->order;
}

/* @b covers part of the hole at @i. Returns how many holes the place then has. */
static uint32_t cut_hole(struct tcb *t, uint32_t i, struct sack_block b)
{
	struct ring *r = t->down;
	struct hole *h = &r->holes[i], rest = *h;

	note_delivery(t, h);
	if (!seq_after(b.start, h->start)) {
		if (!seq_before(b.end, h->end)) {
			remove_hole(r, i);
			return 0;
		}
		h->start = b.end;
		return 1;
	}
	h->end = b.start;
	h->lost = h->lost || h->order; /* it was sent before the part that arrived */
	if (!seq_before(b.end, rest.end))
		return 1;
	rest.start = b.end;
	insert_hole(r, i + 1, rest);
	return 2;
}

/* Without room for the second part a block in the middle of a hole is as if it had not come. */
static bool may_cut(const struct ring *r, const struct hole *h, struct sack_block b)
{
	return r->hole_count < RING_HOLES || !seq_after(b.start, h->start) || !seq_before(b.end, h->end);
}

static bool block_is_news(const struct tcb *t, struct sack_block b)
{
	return seq_after(b.start, t->snd_una) && seq_after(b.end, b.start) && !seq_after(b.end, t->snd_max);
}

/* Returns the bytes that were not reported before. */
static uint32_t take_block(struct tcb *t, struct sack_block b)
{
	struct ring *r = t->down;
	uint32_t news = 0;

	for (uint32_t i = 0; i < r->hole_count && seq_after(b.end, r->holes[i].start);) {
		seq from = seq_max(b.start, r->holes[i].start), to = seq_before(b.end, r->holes[i].end) ? b.end : r->holes[i].end;

		if (seq_before(from, to) && may_cut(r, &r->holes[i], b)) {
			news += (uint32_t)seq_diff(to, from);
			i += cut_hole(t, i, b);
		} else {
			i++;
		}
	}
	if (!seq_after(b.end, t->sacked))
		return news;
	if (seq_after(b.start, t->sacked) && !insert_hole(r, r->hole_count, (struct hole){.start = t->sacked, .end = b.start}))
		return news; /* as if it had not come */
	news += (uint32_t)seq_diff(b.end, seq_max(b.start, t->sacked));
	t->sacked = b.end;
	return news;
}

/* The child has so many bytes more. */
static void allow(struct tcb *t, uint32_t reported)
{
	t->allowance += 2 * reported;
	if (t->allowance > ALLOWANCE_MAX)
		t->allowance = ALLOWANCE_MAX;
}

/* True when the child reports something new. */
bool tcp_take_sack(struct flow *f, const struct tcp_options *o)
{
	uint32_t news = 0;

	for (int i = 0; f->tcp.down && i < o->sack_count; i++)
		if (block_is_news(&f->tcp, o->sack[i]))
			news += take_block(&f->tcp, o->sack[i]);
	allow(&f->tcp, news);
	return news > 0;
}

/* snd_una has moved by @acked. */
void tcp_forget_acked(struct flow *f, uint32_t acked)
{
	struct tcb *t = &f->tcp;
	struct ring *r = t->down;

	allow(t, acked);
	t->sacked = seq_max(t->sacked, t->snd_una);
	while (r && r->hole_count > 0 && seq_before(r->holes[0].start, t->snd_una)) {
		note_delivery(t, &r->holes[0]);
		if (seq_after(r->holes[0].end, t->snd_una)) {
			r->holes[0].start = t->snd_una;
			return;
		}
		remove_hole(r, 0);
	}
}

/* --- what is lost ----------------------------------------------------------------------------------------- */

static bool is_lost(const struct tcb *t, const struct hole *h)
{
	if (h->order)
		return order_before(h->order, t->delivered_order) || seq_after(t->sacked, h->mark);
	return t->probed || seq_diff(t->sacked, h->end) >= DUP_THRESHOLD * t->mss;
}

void tcp_infer_losses(struct flow *f)
{
	struct ring *r = f->tcp.down;

	for (uint32_t i = 0; r && i < r->hole_count; i++)
		r->holes[i].lost = r->holes[i].lost || is_lost(&f->tcp, &r->holes[i]);
}

/* The timer has run out: nothing that was not reported is on its way. A child that stays silent may have thrown away what it
 * had reported (RFC 2018, 8). */
void tcp_lose_all(struct flow *f)
{
	struct tcb *t = &f->tcp;

	if (!t->down)
		return;
	if (t->retries > 1)
		forget_holes(t);
	if (seq_before(t->sacked, t->snd_max) &&
	    insert_hole(t->down, t->down->hole_count, (struct hole){.start = t->sacked, .end = t->snd_max}))
		t->sacked = t->snd_max;
	for (uint32_t i = 0; i < t->down->hole_count; i++)
		t->down->holes[i].lost = true;
	t->slow = true;
	t->allowance = t->mss;
}

/* --- sending it again ------------------------------------------------------------------------------------- */

/* Part of the hole at @i was sent; the rest waits for its turn. */
static void split_sent(struct tcb *t, uint32_t i, seq end)
{
	struct hole rest = t->down->holes[i];

	rest.start = end;
	if (seq_before(end, rest.end) && insert_hole(t->down, i + 1, rest))
		t->down->holes[i].end = end;
}

/* False when the TAP or the pace allows no more. */
static bool send_hole(struct cf_stack *st, struct flow *f, uint32_t i)
{
	struct tcb *t = &f->tcp;
	struct hole *h = &t->down->holes[i];
	bool paced = t->slow || h->order;
	uint32_t len = (uint32_t)seq_diff(h->end, h->start), most = paced && t->allowance < len ? t->allowance : len, sent = 0;

	while (sent < most) {
		uint32_t n = tcp_send_again(st, f, seq_add(h->start, sent), most - sent);

		if (n == 0)
			break;
		sent += n;
	}
	if (sent == 0)
		return false;
	if (paced)
		t->allowance -= sent;
	split_sent(t, i, seq_add(h->start, sent));
	h->order = ++t->sent_order;
	h->mark = t->snd_max;
	h->lost = false;
	return sent == len;
}

/* Send what is lost; false when some of it still waits. */
bool tcp_send_lost(struct cf_stack *st, struct flow *f)
{
	struct ring *r = f->tcp.down;

	for (uint32_t i = 0; r && i < r->hole_count; i++)
		if (r->holes[i].lost && !send_hole(st, f, i))
			return false;
	return true;
}

/* Before the timer backs off: once, what was sent again and not reported, and the last segment, whose report shows any hole
 * (RFC 8985, 7.3). False when there is nothing to probe with. */
bool tcp_probe_tail(struct cf_stack *st, struct flow *f)
{
	struct tcb *t = &f->tcp;
	uint32_t left = (uint32_t)seq_diff(t->snd_max, t->sacked), len = left < t->mss ? left : t->mss;

	if (!t->sack || t->probed || t->retries > 0 || !t->down)
		return false;
	t->probed = true;
	for (uint32_t i = 0; i < t->down->hole_count; i++)
		t->down->holes[i].lost = true;
	tcp_send_lost(st, f);
	if (len > 0)
		tcp_send_again(st, f, seq_of(t->snd_max.n - len), len);
	return true;
}

/* --- our own gaps, told to the child ---------------------------------------------------------------------- */

/* The index of the interval that @at lies in; ahead_count when it is in none. */
static uint32_t interval_of(const struct tcb *t, seq at)
{
	uint32_t offset = t->up->len + (uint32_t)seq_diff(at, t->rcv_nxt), count = t->up->ahead_count, i = 0;

	if (!seq_after(at, t->rcv_nxt))
		return count;
	while (i < count && t->up->ahead[i].end <= offset)
		i++;
	return i < count && t->up->ahead[i].start <= offset ? i : count;
}

/* Text at @at came ahead of a gap. True when the child's next ACK must tell of an interval that no recent one told of. */
bool tcp_note_ahead(struct flow *f, seq at)
{
	struct tcb *t = &f->tcp;
	uint32_t mine, place = 0;
	bool news;

	if (!t->up || (mine = interval_of(t, at)) == t->up->ahead_count)
		return false; /* not kept */
	while (place < t->recent_count && interval_of(t, t->recent[place]) != mine)
		place++;
	news = place == t->recent_count;
	if (news && t->recent_count < SACK_BLOCKS_MAX)
		t->recent_count++;
	if (place == SACK_BLOCKS_MAX)
		place--;
	memmove(t->recent + 1, t->recent, place * sizeof(t->recent[0]));
	t->recent[0] = at;
	return news;
}

/* Add interval @i to the @n that are chosen, unless it is among them; returns the new number. */
static uint32_t choose(uint32_t *chosen, uint32_t n, uint32_t i)
{
	for (uint32_t k = 0; k < n; k++)
		if (chosen[k] == i)
			return n;
	chosen[n] = i;
	return n + 1;
}

/* The SACK option for an ACK, at @p: the intervals that came last, the newest first (RFC 2018, 4), then others from the lowest on.
 * Returns its length, a multiple of 4; 0 without a gap. */
uint32_t tcp_sack_options(const struct flow *f, uint8_t *p)
{
	const struct tcb *t = &f->tcp;
	uint32_t count = t->up ? t->up->ahead_count : 0, chosen[SACK_BLOCKS_MAX], n = 0;

	if (!t->sack || count == 0)
		return 0;
	for (uint32_t i = 0; i < t->recent_count; i++)
		if (interval_of(t, t->recent[i]) < count)
			n = choose(chosen, n, interval_of(t, t->recent[i]));
	for (uint32_t i = 0; i < count && n < SACK_BLOCKS_MAX; i++)
		n = choose(chosen, n, i);
	p[0] = p[1] = TCP_OPTION_NOP;
	p[2] = TCP_OPTION_SACK;
	p[3] = (uint8_t)(2 + 8 * n);
	for (uint32_t i = 0; i < n; i++) {
		const struct interval *in = &t->up->ahead[chosen[i]];

		put32(p + 4 + 8 * i, t->rcv_nxt.n + (in->start - t->up->len));
		put32(p + 8 + 8 * i, t->rcv_nxt.n + (in->end - t->up->len));
	}
	return 4 + 8 * n;
}
