/* icmp.c: ICMP errors to the child (RFC 792, 1812, 4443), rate limited, never about an ICMP error (input.c sees to that).
 *
 * Not here: echo and neighbour discovery, which Python does. */
#include <string.h>

#include "checksum.h"
#include "stack.h"

#define ICMP_UNREACHABLE 3
#define ICMP_FRAGMENTATION_NEEDED 4 /* a code of the former */
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TOO_BIG 2
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_TIME_EXCEEDED 3
#define MTU_MIN6 1280 /* RFC 8200, 5 */
#define QUOTE_MAX 512 /* room for an IP header, the transport header and some text; RFC 1812 asks for at most 576 in all */

struct icmp_error icmp_denial(enum cf_denial how, int address_len)
{
	static const uint8_t code4[] = {[CF_DENY_NET] = 0, [CF_DENY_HOST] = 1, [CF_DENY_PORT] = 3, [CF_DENY_PROHIBITED] = 13};
	static const uint8_t code6[] = {[CF_DENY_NET] = 0, [CF_DENY_HOST] = 3, [CF_DENY_PORT] = 4, [CF_DENY_PROHIBITED] = 1};

	if (address_len == 4)
		return (struct icmp_error){.type = ICMP_UNREACHABLE, .code = code4[how]};
	return (struct icmp_error){.type = ICMPV6_UNREACHABLE, .code = code6[how]};
}

bool icmp_is_too_big(int address_len, uint8_t type, uint8_t code)
{
	return address_len == 4 ? type == ICMP_UNREACHABLE && code == ICMP_FRAGMENTATION_NEEDED : type == ICMPV6_TOO_BIG;
}

/* No IPv6 link is narrower than 1280, whatever somebody claims; IPv4's floor is for the child's kernel to set. */
struct icmp_error icmp_too_big(int address_len, uint32_t mtu)
{
	if (address_len == 4)
		return (struct icmp_error){ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, mtu & 0xffff, NULL};
	return (struct icmp_error){ICMPV6_TOO_BIG, 0, mtu < MTU_MIN6 ? MTU_MIN6 : mtu, NULL};
}

/* --- from one family to the other ------------------------------------------------------------------------- */

static bool to_ipv6(struct icmp_error *e)
{
	static const uint8_t unreachable[16] = {0, 3, 255, 4, 255, 255, 0, 3, 0, 1, 1, 0, 3, 1, 255, 1}; /* by IPv4's code; 255: none */

	if (icmp_is_too_big(4, e->type, e->code)) {
		*e = icmp_too_big(16, e->extra + IPV6_HEADER_LEN - IPV4_HEADER_LEN);
		return true;
	}
	if (e->type == ICMP_TIME_EXCEEDED) {
		*e = (struct icmp_error){.type = ICMPV6_TIME_EXCEEDED, .code = e->code};
		return true;
	}
	if (e->type != ICMP_UNREACHABLE || e->code >= sizeof(unreachable) || unreachable[e->code] == 255)
		return false;
	*e = (struct icmp_error){.type = ICMPV6_UNREACHABLE, .code = unreachable[e->code]};
	return true;
}

static bool to_ipv4(struct icmp_error *e)
{
	static const uint8_t unreachable[] = {0, 13, 0, 1, 3}; /* by IPv6's code */

	if (e->type == ICMPV6_TOO_BIG) {
		*e = icmp_too_big(4, e->extra - (IPV6_HEADER_LEN - IPV4_HEADER_LEN));
		return true;
	}
	if (e->type == ICMPV6_TIME_EXCEEDED) {
		*e = (struct icmp_error){.type = ICMP_TIME_EXCEEDED, .code = e->code};
		return true;
	}
	if (e->type != ICMPV6_UNREACHABLE || e->code >= sizeof(unreachable))
		return false;
	*e = (struct icmp_error){.type = ICMP_UNREACHABLE, .code = unreachable[e->code]};
	return true;
}

bool icmp_for_child(const struct flow *f, const uint8_t *to, struct icmp_error *e)
{
	if (f->address_len != f->host_address_len) /* in the spirit of RFC 7915, 4.2 and 5.2; from us, where the router has no such address */
		return f->address_len == 16 ? to_ipv6(e) : to_ipv4(e);
	if (e->from && memcmp(e->from, to, f->address_len) == 0)
		e->from = f->remote;
	return true;
}

/* --- sending ---------------------------------------------------------------------------------------------- */

void icmp_send(struct cf_stack *st, int address_len, struct icmp_error e, const uint8_t *quoted, uint32_t quoted_len)
{
	struct frame_out out;
	uint8_t *p;

	if (!bucket_take(&st->icmp_errors, st->now)) {
		drop(st, CF_DROP_ICMP_RATE);
		return;
	}
	frame_begin(&out, address_len == 4 ? PROTO_ICMP : PROTO_ICMPV6);
	p = frame_prepend(&out, ICMP_HEADER_LEN);
	p[0] = e.type;
	p[1] = e.code;
	put32(p + 4, e.extra);
	out.text[0] = (struct iovec){(void *)(uintptr_t)quoted, quoted_len > QUOTE_MAX ? QUOTE_MAX : quoted_len};
	out.text_pieces = 1;
	out.text_len = (uint32_t)out.text[0].iov_len;
	ip_send(st, &out, address_len, e.from, ICMP_HEADER_LEN, 2);
}

/* The child's packet as its kernel will look it up: addresses, ports, and the sequence number of a SYN. */
static uint32_t rebuild_ip(const struct cf_stack *st, const struct flow *f, uint8_t *p, uint32_t payload_len)
{
	uint16_t sum;

	if (f->address_len == 16) {
		p[0] = 0x60;
		put16(p + 4, (uint16_t)payload_len);
		p[6] = f->protocol;
		p[7] = 1;
		memcpy(p + 8, st->cfg.child6, 16);
		memcpy(p + 24, f->remote, 16);
		return IPV6_HEADER_LEN;
	}
	p[0] = 0x45;
	put16(p + 2, (uint16_t)(IPV4_HEADER_LEN + payload_len));
	p[8] = 1;
	p[9] = f->protocol;
	memcpy(p + 12, st->cfg.child4, 4);
	memcpy(p + 16, f->remote, 4);
	sum = (uint16_t)~checksum_fold(checksum_add(0, p, IPV4_HEADER_LEN));
	memcpy(p + 10, &sum, 2);
	return IPV4_HEADER_LEN;
}

void icmp_send_for_flow(struct cf_stack *st, const struct flow *f, struct icmp_error e, const uint8_t *text, uint32_t text_len)
{
	uint8_t quoted[QUOTE_MAX] = {0}, *p = quoted;
	bool udp = f->protocol == PROTO_UDP;
	uint32_t header_len = udp ? UDP_HEADER_LEN : TCP_HEADER_LEN, room;

	p += rebuild_ip(st, f, p, header_len + text_len);
	put16(p, f->child_port);
	put16(p + 2, f->remote_port);
	if (udp) {
		put16(p + 4, (uint16_t)(UDP_HEADER_LEN + text_len));
	} else {
		put32(p + 4, f->tcp.irs.n);
		p[12] = TCP_HEADER_LEN / 4 << 4;
		p[13] = TCP_SYN;
	}
	p += header_len;
	room = (uint32_t)(quoted + sizeof(quoted) - p);
	text_len = text_len > room ? room : text_len;
	if (text_len > 0)
		memcpy(p, text, text_len);
	icmp_send(st, f->address_len, e, quoted, (uint32_t)(p - quoted) + text_len);
}
