/* wire.h: the checked views of a frame's bytes. A view is made once, by a function that either checks every length or
 * names the reason for the drop; after it no length test appears. No byte offset is read outside this file and wire.c. */
#ifndef CHILDFLOW_WIRE_H
#define CHILDFLOW_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "seq.h"

#define VNET_HEADER_LEN 10      /* struct virtio_net_hdr without num_buffers; set with TUNSETVNETHDRSZ */
#define ETHERNET_HEADER_LEN 14
#define IPV4_HEADER_LEN 20
#define IPV6_HEADER_LEN 40
#define TCP_HEADER_LEN 20
#define UDP_HEADER_LEN 8
#define ICMP_HEADER_LEN 8
#define FRAME_MAX (VNET_HEADER_LEN + ETHERNET_HEADER_LEN + 4 + 65575) /* a VLAN tag; the largest IPv6 packet */

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_IPV6 0x86dd

#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ICMPV6 58

#define DNS_PORT 53
#define DSCP_MASK 0xfc /* of the TOS byte; the rest is ECN */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_MSS 2
#define TCP_OPTION_WINDOW_SCALE 3
#define TCP_OPTION_SACK_PERMITTED 4
#define TCP_OPTION_SACK 5
#define SACK_BLOCKS_MAX 4       /* that 40 bytes of options take (RFC 2018, 3) */

static inline uint16_t be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t be32(const uint8_t *p) { return (uint32_t)be16(p) << 16 | be16(p + 2); }
static inline void put16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, (uint16_t)(v >> 16)); put16(p + 2, (uint16_t)v); }

/* Whether the transport checksum of a frame is known to be right, must be computed, or is left to the receiver. */
enum transport_checksum { CHECKSUM_VERIFY, CHECKSUM_PARTIAL };

/* What the virtio header claims, after the check that it contradicts nothing: only these two are ever believed. */
struct vnet_view {
	enum transport_checksum checksum;
	uint16_t csum_start, csum_offset; /* bytes from the start of the Ethernet header; with CHECKSUM_PARTIAL only */
};

/* One IP packet whose header is whole and whose padding is trimmed. */
struct ip_view {
	const uint8_t *packet;
	uint32_t packet_len;
	const uint8_t *src, *dst;      /* address_len bytes each */
	uint8_t address_len;           /* 4 or 16 */
	uint8_t protocol;              /* of the payload, behind any extension headers */
	uint32_t protocol_at;          /* where in the packet that number stands */
	uint8_t hop_limit, tos;        /* tos: IPv6 calls it the traffic class */
	bool fragment, dont_fragment;  /* dont_fragment: it is to leave in one piece; in IPv6 all do that the child did not cut */
	const uint8_t *payload;
	uint32_t payload_len;
};

struct tcp_view {
	uint16_t child_port, remote_port;
	seq seq, ack;
	uint8_t flags;
	uint16_t window;               /* unscaled */
	const uint8_t *options;
	uint32_t options_len;
	const uint8_t *text;
	uint32_t text_len;
};

struct sack_block {
	seq start, end;                /* end is the first one not received */
};

struct tcp_options {
	uint16_t mss;                  /* 0: not given */
	bool has_window_scale, sack_permitted;
	uint8_t sack_count;
	struct sack_block sack[SACK_BLOCKS_MAX];
	uint8_t window_scale;          /* at most 14 (RFC 7323, 2.3) */
};

struct udp_view {
	uint16_t child_port, remote_port;
	const uint8_t *text;
	uint32_t text_len;
};

/* Each returns true, or false with the reason (an enum cf_drop) in *why. */
bool vnet_view(struct vnet_view *v, const uint8_t *header, int *why);
bool ipv4_view(struct ip_view *v, const uint8_t *bytes, uint32_t len, int *why);
bool ipv6_view(struct ip_view *v, const uint8_t *bytes, uint32_t len, int *why);
bool tcp_view(struct tcp_view *v, const struct ip_view *ip, enum transport_checksum checksum, int *why);
bool tcp_options_view(struct tcp_options *o, const struct tcp_view *tcp, int *why);
bool udp_view(struct udp_view *v, const struct ip_view *ip, enum transport_checksum checksum, int *why);
/* ICMP and ICMPv6: at least a header, and a right checksum. */
bool icmp_view(const struct ip_view *ip, int *why);

#endif
