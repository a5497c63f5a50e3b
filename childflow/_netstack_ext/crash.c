/* crash.c: what is left to look at when an assertion of ours fails: the last frames, as a pcapng file.
 *
 * Each frame that crosses the TAP is noted in a ring inside the stack: time, direction, length, first bytes; a copy of at most
 * 138 bytes, no allocation. When MUST() fails the heap may be broken, so the file is written from the ring with open(2) and
 * write(2) alone, from a buffer on the stack of this function. Then one line on stderr, and abort(3): the command loses its
 * network with us, and is killed.
 * The file is new (O_EXCL, never through a link) and its owner's alone: a frame may hold what the command sent.
 * Times are those of the stack's clock, not of the day. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stack.h"

#define BLOCK_MAX 512 /* a frame's block: 28 + 128 + options of at most 4 + 48 + 8 + 4 + 4 */
#define SECTION_HEADER 0x0a0d0d0au
#define INTERFACE 1u
#define ENHANCED_PACKET 6u
#define BYTE_ORDER_MAGIC 0x1a2b3c4du
#define LINK_ETHERNET 1u
#define OPTION_COMMENT 1u
#define OPTION_FLAGS 2u

/* --- keeping ---------------------------------------------------------------------------------------------- */

void crash_keep(struct cf_stack *st, enum crash_direction direction, const struct iovec *iov, int pieces)
{
	struct crash_frame *f = &st->crash.frames[st->crash.next++ % CRASH_FRAMES];
	size_t len = 0, kept = 0;

	for (int i = 0; i < pieces; i++) {
		size_t room = sizeof(f->bytes) - kept, n = iov[i].iov_len < room ? iov[i].iov_len : room;

		if (n > 0)
			memcpy(f->bytes + kept, iov[i].iov_base, n);
		kept += n;
		len += iov[i].iov_len;
	}
	f->at = st->now;
	f->len = (uint32_t)len;
	f->kept = (uint16_t)kept;
	f->direction = (uint8_t)direction;
}

/* --- pcapng ----------------------------------------------------------------------------------------------- */

struct block { /* in this machine's byte order, which the section header tells */
	uint8_t bytes[BLOCK_MAX];
	uint32_t len;
};

static void put_bytes(struct block *b, const void *bytes, uint32_t len)
{
	if (len > 0)
		memcpy(b->bytes + b->len, bytes, len);
	b->len += len;
	while (b->len % 4)
		b->bytes[b->len++] = 0;
}

static void put_word(struct block *b, uint32_t word) { put_bytes(b, &word, 4); }

static void put_option(struct block *b, uint16_t code, const void *value, uint16_t len)
{
	put_bytes(b, (uint16_t[]){code, len}, 4);
	put_bytes(b, value, len);
}

static void begin(struct block *b, uint32_t type)
{
	b->len = 0;
	put_word(b, type);
	put_word(b, 0); /* the length, once it is known */
}

static void end(struct block *b, int fd)
{
	uint32_t whole;

	put_word(b, 0); /* end of options */
	whole = b->len + 4;
	put_word(b, whole);
	memcpy(b->bytes + 4, &whole, 4);
	if (write(fd, b->bytes, b->len) < 0)
		return; /* a full disk: the line on stderr is what is left */
}

static void write_heads(int fd, const char *comment)
{
	static const uint32_t unknown_length[2] = {0xffffffffu, 0xffffffffu};
	struct block b;

	begin(&b, SECTION_HEADER);
	put_word(&b, BYTE_ORDER_MAGIC);
	put_word(&b, 1); /* version 1.0 */
	put_bytes(&b, unknown_length, sizeof(unknown_length));
	put_option(&b, OPTION_COMMENT, comment, (uint16_t)strlen(comment));
	end(&b, fd);
	begin(&b, INTERFACE);
	put_word(&b, LINK_ETHERNET);
	put_word(&b, 0); /* whole frames, as far as this file knows; each says how much of it is here */
	end(&b, fd);
}

static void put_virtio_header(struct block *b, const struct crash_frame *f)
{
	char text[16 + 2 * CRASH_HEAD + 1] = "virtio header ";
	uint32_t at = (uint32_t)strlen(text);

	for (int i = 0; i < CRASH_HEAD && i < f->kept; i++) {
		text[at++] = "0123456789abcdef"[f->bytes[i] >> 4];
		text[at++] = "0123456789abcdef"[f->bytes[i] & 15];
	}
	put_option(b, OPTION_COMMENT, text, (uint16_t)at);
}

static void write_frame(int fd, const struct crash_frame *f)
{
	uint32_t head = f->kept < CRASH_HEAD ? f->kept : CRASH_HEAD, flags = f->direction;
	struct block b;

	begin(&b, ENHANCED_PACKET);
	put_word(&b, 0); /* the interface */
	put_word(&b, (uint32_t)(f->at >> 32));
	put_word(&b, (uint32_t)f->at);
	put_word(&b, f->kept - head);
	put_word(&b, f->len - head);
	put_bytes(&b, f->bytes + head, f->kept - head);
	put_virtio_header(&b, f);
	put_option(&b, OPTION_FLAGS, &flags, 4);
	end(&b, fd);
}

static bool write_file(const struct cf_stack *st, const char *comment)
{
	const struct crash_ring *r = &st->crash;
	uint32_t count = r->next < CRASH_FRAMES ? r->next : CRASH_FRAMES;
	int fd;

	if (!st->cfg.crash_path[0])
		return false;
	fd = open(st->cfg.crash_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	write_heads(fd, comment);
	for (uint32_t i = r->next - count; i != r->next; i++)
		write_frame(fd, &r->frames[i % CRASH_FRAMES]);
	return close(fd) == 0;
}

/* --- the end ---------------------------------------------------------------------------------------------- */

static void say(const char *comment, const char *path)
{
	char line[700];
	int n = snprintf(line, sizeof(line), "childflow: internal error, please report it: %s%s%s\n", comment,
			 path ? "; the last frames are in " : "", path ? path : "");

	if (n > 0 && write(STDERR_FILENO, line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1) < 0)
		return;
}

void crash(struct cf_stack *st, const char *what, const char *file, int line)
{
	const char *name = strrchr(file, '/');
	char comment[200];

	snprintf(comment, sizeof(comment), "%s:%d: %s does not hold", name ? name + 1 : file, line, what);
	say(comment, write_file(st, comment) ? st->cfg.crash_path : NULL);
	abort();
}
