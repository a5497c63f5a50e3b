/* ip.c: the way down: IP, Ethernet and virtio headers before a transport segment.
 *
 * With offload the checksum is left partial and the child's kernel takes it as good; without, it is computed here over
 * the same bytes. Headers are written back to front into frame_out.room, so nothing is moved.
 * Not here: segmentation (tcp_output.c cuts to one MSS when there is no offload). */
#include <string.h>

#include "checksum.h"
#include "stack.h"

#define VNET_F_NEEDS_CSUM 1
#define VNET_GSO_TCPV4 1
#define VNET_GSO_TCPV6 4
#define IPV4_DONT_FRAGMENT 0x4000

void frame_begin(struct frame_out *out, uint8_t protocol)
{
	out->start = sizeof(out->room);
	out->text_pieces = 0;
	out->text_len = 0;
	out->gso_size = 0;
	out->protocol = protocol;
	out->hop_limit = 0;
	out->tos = 0;
}

uint8_t *frame_prepend(struct frame_out *out, uint32_t len)
{
	out->start -= len;
	return out->room + out->start;
}

static void put_native16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }

static uint64_t add_text(uint64_t sum, const struct frame_out *out)
{
	const uint8_t *second = out->text_pieces > 1 ? out->text[1].iov_base : NULL;
	size_t odd = out->text_pieces > 1 ? out->text[0].iov_len & 1 : 0;
	uint8_t joint[2];

	if (out->text_pieces == 0)
		return sum;
	sum = checksum_add(sum, out->text[0].iov_base, out->text[0].iov_len - odd);
	if (!second)
		return sum;
	if (odd) { /* a ring may wrap in the middle of a 16-bit word */
		joint[0] = ((const uint8_t *)out->text[0].iov_base)[out->text[0].iov_len - 1];
		joint[1] = second[0];
		sum = checksum_add(sum, joint, 2);
	}
	return checksum_add(sum, second + odd, out->text[1].iov_len - odd);
}

static void put_transport_checksum(const struct cf_stack *st, struct frame_out *out, uint64_t pseudo, uint32_t transport_len,
				   uint32_t checksum_offset)
{
	uint8_t *transport = out->room + out->start;
	uint16_t folded;

	put_native16(transport + checksum_offset, 0);
	if (st->cfg.offload && out->protocol != PROTO_ICMP && out->protocol != PROTO_ICMPV6) {
		put_native16(transport + checksum_offset, checksum_fold(pseudo));
		return;
	}
	folded = (uint16_t)~checksum_fold(add_text(checksum_add(pseudo, transport, transport_len), out));
	if (folded == 0 && out->protocol == PROTO_UDP)
		folded = 0xffff; /* 0 would say that there is no checksum (RFC 768) */
	put_native16(transport + checksum_offset, folded);
}

static void put_ipv4(struct frame_out *out, const uint8_t *src, const uint8_t *dst, uint32_t payload_len)
{
	uint8_t *p = frame_prepend(out, IPV4_HEADER_LEN);

	memset(p, 0, IPV4_HEADER_LEN);
	p[0] = 0x45;
	p[1] = out->tos;
	put16(p + 2, (uint16_t)(IPV4_HEADER_LEN + payload_len));
	put16(p + 6, IPV4_DONT_FRAGMENT); /* and so an identification of 0 is right (RFC 6864, 4.1) */
	p[8] = out->hop_limit ? out->hop_limit : HOP_LIMIT_DEFAULT;
	p[9] = out->protocol;
	memcpy(p + 12, src, 4);
	memcpy(p + 16, dst, 4);
	put_native16(p + 10, (uint16_t)~checksum_fold(checksum_add(0, p, IPV4_HEADER_LEN)));
}

static void put_ipv6(struct frame_out *out, const uint8_t *src, const uint8_t *dst, uint32_t payload_len)
{
	uint8_t *p = frame_prepend(out, IPV6_HEADER_LEN);

	put32(p, 6u << 28 | (uint32_t)out->tos << 20);
	put16(p + 4, (uint16_t)payload_len);
	p[6] = out->protocol;
	p[7] = out->hop_limit ? out->hop_limit : HOP_LIMIT_DEFAULT;
	memcpy(p + 8, src, 16);
	memcpy(p + 24, dst, 16);
}

static void put_ethernet(const struct cf_stack *st, struct frame_out *out, int address_len)
{
	uint8_t *p = frame_prepend(out, ETHERNET_HEADER_LEN);

	memcpy(p, st->cfg.child_mac, 6);
	memcpy(p + 6, st->cfg.gateway_mac, 6);
	put16(p + 12, address_len == 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6);
}

/* @header_len: bytes from the Ethernet header to the text; @csum_start: to the transport header. */
static void put_vnet(const struct cf_stack *st, struct frame_out *out, int address_len, uint16_t header_len,
		     uint16_t csum_start, uint16_t csum_offset)
{
	uint8_t *p = frame_prepend(out, VNET_HEADER_LEN);

	memset(p, 0, VNET_HEADER_LEN);
	if (!st->cfg.offload || out->protocol == PROTO_ICMP || out->protocol == PROTO_ICMPV6)
		return;
	p[0] = VNET_F_NEEDS_CSUM;
	put_native16(p + 6, csum_start);
	put_native16(p + 8, csum_offset);
	if (out->gso_size == 0)
		return;
	p[1] = address_len == 4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6;
	put_native16(p + 2, header_len);
	put_native16(p + 4, out->gso_size);
}

bool ip_send(struct cf_stack *st, struct frame_out *out, int address_len, const uint8_t *src, uint32_t transport_len,
	     uint32_t checksum_offset)
{
	bool v4 = address_len == 4;
	const uint8_t *dst = v4 ? st->cfg.child4 : st->cfg.child6;
	uint32_t payload_len = transport_len + out->text_len;
	uint16_t csum_start = (uint16_t)(ETHERNET_HEADER_LEN + (v4 ? IPV4_HEADER_LEN : IPV6_HEADER_LEN));
	uint64_t pseudo = 0;

	if (!src)
		src = v4 ? st->cfg.gateway4 : st->cfg.gateway6;
	if (out->protocol != PROTO_ICMP)
		pseudo = checksum_pseudo(src, dst, address_len, out->protocol, payload_len);
	put_transport_checksum(st, out, pseudo, transport_len, checksum_offset);
	if (v4)
		put_ipv4(out, src, dst, payload_len);
	else
		put_ipv6(out, src, dst, payload_len);
	put_ethernet(st, out, address_len);
	put_vnet(st, out, address_len, (uint16_t)(csum_start + transport_len), csum_start, (uint16_t)checksum_offset);
	return tap_write(st, out);
}
