/* checksum.h: the Internet checksum (RFC 1071), in the machine's byte order throughout: the sum does not care. */
#ifndef CHILDFLOW_CHECKSUM_H
#define CHILDFLOW_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Add @len bytes at @bytes to a running @sum; every part but the last must have even length. */
uint64_t checksum_add(uint64_t sum, const void *bytes, size_t len);
/* Fold to 16 bits, not inverted: what a partial checksum field holds. */
uint16_t checksum_fold(uint64_t sum);
/* The sum of a TCP, UDP or ICMPv6 pseudo-header; @address_len is 4 or 16. */
uint64_t checksum_pseudo(const uint8_t *src, const uint8_t *dst, int address_len, uint8_t protocol, uint32_t len);

#endif
