/* api.h: the contract between the C stack and Python. This one text is cffi's cdef and what the C files include.
 *
 * C moves bytes and never decides: it parks a flow, puts a question where cf_events() finds it, and goes on. Python
 * answers allow, deny or attach, or holds the flow to see first what the child has to say. C never calls Python, has no global state, and no clock or randomness of its own:
 * both are arguments. Addresses are in network byte order; ports and times (microseconds of a monotonic clock) are plain
 * numbers. `up` is child to host, `down` is host to child. One thread at a time may call into one stack. */

typedef struct cf_stack cf_stack;
typedef uint64_t cf_flow_id; /* never reused within a run */

enum cf_result {
	CF_OK = 0,
	CF_EFLOW = -1,  /* no such flow, or not waiting for this answer: it died meanwhile */
	CF_ENOMEM = -2,
	CF_ESYS = -3,   /* a system call failed: see errno */
	CF_EINVAL = -4, /* an argument is out of its range */
	CF_EBUSY = -5,  /* the TAP takes nothing now */
};

struct cf_config {
	int tap_fd;             /* frames with a 10-byte virtio header; any descriptor with frame boundaries will do */
	_Bool offload;          /* the TAP takes partial checksums and TCP segments of up to 64 KiB */
	uint8_t child4[4], gateway4[4], child6[16], gateway6[16], child_mac[6], gateway_mac[6];
	uint16_t mtu;           /* bytes of an IP packet, 68..65521 */
	/* Limits. Each is refused or made room for as childflow/limits.py says, and counted under a cf_drop. */
	uint32_t max_flows;     /* TCP connections and UDP peers together */
	uint32_t max_half_open; /* TCP flows before the child's last ACK of the handshake; at most half of max_sockets */
	uint32_t max_udp_peers; /* at most half of max_flows */
	uint32_t max_sockets;   /* host sockets */
	uint32_t max_udp_sockets; /* of those, for child ports; at most half of max_sockets */
	uint32_t flow_window;   /* bytes that one flow may hold in each direction, a power of two */
	uint64_t buffer_limit;  /* bytes that all flows may hold together; a flow that comes too late has a page */
	uint32_t parked_datagrams; /* of one UDP peer that waits for its verdict */
	uint32_t parked_bytes;  /* of all such peers */
	uint32_t slow_packets;  /* for Python, between two turns */
	uint32_t slow_bytes;
	uint32_t control_rate;  /* ARP, neighbour discovery, echo for Python: a second */
	uint32_t fragment_rate; /* fragments for Python: a second */
	uint32_t icmp_error_rate; /* to the child: a second */
	uint32_t challenge_ack_rate; /* RFC 5961, 7: a second */
	char crash_path[256];   /* where the last frames are written when an assertion of ours fails; "" for nowhere */
	uint8_t hash_key[16];   /* of the flow table: the child chooses what is hashed */
	uint8_t isn_key[16];    /* of RFC 6528 */
};

/* Why a flow is refused, as the child sees it. */
enum cf_denial {
	CF_DENY_SILENT,         /* nothing: the child's own timeout */
	CF_DENY_RESET,          /* TCP only */
	CF_DENY_NET,            /* ICMP 3/0, ICMPv6 1/0 */
	CF_DENY_HOST,           /* ICMP 3/1, ICMPv6 1/3 */
	CF_DENY_PORT,           /* ICMP 3/3, ICMPv6 1/4 */
	CF_DENY_PROHIBITED,     /* ICMP 3/13, ICMPv6 1/1 */
};

enum cf_event_kind {
	CF_EVENT_QUESTION,      /* a new flow is parked: allow, deny or attach it */
	CF_EVENT_CONNECTED,     /* the host side of a TCP flow is there, or `error` (an errno) says why not */
	CF_EVENT_ENDED,         /* the flow is over; `detail` is a cf_end */
	CF_EVENT_DATAGRAM,      /* UDP payload for port 53 of `remote`, the gateway or any other host, in `data`; never a flow */
	CF_EVENT_SLOW,          /* a packet for the slow path in `data`; `detail` is a cf_slow */
	CF_EVENT_FLIGHT,        /* more of what the child says is held; `detail` is 1 when it has said all (its FIN) */
};

enum cf_end { CF_END_FIN, CF_END_RST_CHILD, CF_END_RST_HOST, CF_END_TIMEOUT, CF_END_IDLE, CF_END_KILLED };
/* ECHO_FRAGMENTABLE: an echo request without DF, or that the child had cut itself. SPOOFED: the head of a packet that was
 * dropped for its source, at most one a second. */
enum cf_slow { CF_SLOW_ARP, CF_SLOW_ND, CF_SLOW_ECHO, CF_SLOW_FRAGMENT, CF_SLOW_ECHO_FRAGMENTABLE, CF_SLOW_SPOOFED };

struct cf_event {
	uint8_t kind, protocol, detail, address_len; /* address_len: 4 or 16 bytes of `remote` count */
	uint16_t child_port, remote_port;
	int32_t error;
	cf_flow_id flow;
	uint64_t bytes_up, bytes_down, duration_us;
	uint8_t remote[16];
	const uint8_t *data;    /* valid until the next cf_turn() */
	uint32_t data_len;
};

/* What cf_turn() says, or-ed. */
enum cf_turn_flag {
	CF_TURN_MORE = 1,       /* the budget cut the turn short: call again, no descriptor will fire for what is left */
	CF_TURN_EVENTS = 2,     /* cf_events() has something */
	CF_TURN_TAP_GONE = 4,   /* the TAP was taken away: nothing will come any more */
};

/* Every frame that is not carried is counted under one of these names. */
enum cf_drop {
	CF_DROP_SHORT_FRAME, CF_DROP_BAD_VNET_HEADER, CF_DROP_BAD_ETHERTYPE, CF_DROP_WRONG_MAC,
	CF_DROP_BAD_IP_HEADER, CF_DROP_BAD_IP_CHECKSUM, CF_DROP_BAD_IP_OPTIONS, CF_DROP_SOURCE_ROUTE,
	CF_DROP_BAD_EXTENSION_HEADER, CF_DROP_SPOOFED_SOURCE, CF_DROP_MULTICAST, CF_DROP_UNKNOWN_PROTOCOL,
	CF_DROP_HOP_LIMIT, CF_DROP_BAD_TCP_HEADER, CF_DROP_BAD_TCP_CHECKSUM, CF_DROP_BAD_TCP_OPTIONS,
	CF_DROP_BAD_UDP_HEADER, CF_DROP_BAD_UDP_CHECKSUM, CF_DROP_BAD_ICMP, CF_DROP_ICMP_IGNORED,
	CF_DROP_BAD_ARP, CF_DROP_BAD_ND,
	CF_DROP_BAD_FRAGMENT, CF_DROP_FRAGMENT_OVERLAP, CF_DROP_FRAGMENT_OVERFLOW, CF_DROP_FRAGMENT_TIMEOUT,
	CF_DROP_FRAGMENT_LIMIT, CF_DROP_ECHO_LIMIT, CF_DROP_MARTIAN,
	CF_DROP_SLOW_PATH_FULL, CF_DROP_SLOW_PATH_RATE, CF_DROP_ICMP_RATE,
	CF_DROP_NO_FLOW, CF_DROP_FLOW_TABLE_FULL, CF_DROP_NO_DESCRIPTOR, CF_DROP_NO_BUFFER, CF_DROP_PARKED_FULL,
	CF_DROP_FLOW_DENIED, CF_DROP_BAD_FLAGS, CF_DROP_OUT_OF_WINDOW, CF_DROP_DUPLICATE, CF_DROP_REASSEMBLY_FULL,
	CF_DROP_OLD_ACK, CF_DROP_BAD_RESET, CF_DROP_CLOSED_DIRECTION,
	CF_DROP_UNKNOWN_PEER, CF_DROP_NO_PORT, CF_DROP_TOO_BIG, CF_DROP_HOST_SEND_FAILED, CF_DROP_HOST_SOCKET_FULL, CF_DROP_TAP_FULL,
	/* flows that had to make room for newer ones: one for each flow, or UDP socket */
	CF_DROP_HALF_OPEN_EVICTED, CF_DROP_TIME_WAIT_EVICTED, CF_DROP_UDP_PEER_EVICTED, CF_DROP_UDP_SOCKET_EVICTED,
	CF_DROP_COUNT
};

/* Make a stack on @config (copied). NULL with errno on failure. The TAP stays the caller's to close. */
cf_stack *cf_stack_new(const struct cf_config *config);
/* Close every host socket and free everything; the child side is not told. */
void cf_stack_free(cf_stack *st);
/* End every flow, so that cf_events() tells what each one carried: CF_END_KILLED for those that were not done. */
int cf_close_all(cf_stack *st);
/* The one descriptor to watch for reading: an epoll set of TAP, host sockets and timer. */
int cf_stack_fd(const cf_stack *st);

/* Do a bounded amount of work at time @now_us: frames, host sockets, timers. Returns cf_turn_flag bits. */
int cf_turn(cf_stack *st, uint64_t now_us);
/* Move up to @max (at least 6) waiting events to @out; returns how many. A flow's events come in their order. A flow that died
 * before its question was read is not heard of. */
int cf_events(cf_stack *st, struct cf_event *out, int max);

/* The time of what is answered between two turns, when that may be long after the last one. It never goes back. */
void cf_clock(cf_stack *st, uint64_t now_us);

/* Let a parked flow out: TCP connects a host socket and reports CF_EVENT_CONNECTED; UDP sends what was parked. */
int cf_flow_allow(cf_stack *st, cf_flow_id flow);
/* As cf_flow_allow(), but the host side is @port of the 4 or 16 bytes of @address (unicast, of either family). What the child
 * sees keeps the address that it used. */
int cf_flow_allow_to(cf_stack *st, cf_flow_id flow, int address_len, const uint8_t *address, uint16_t port);
/* Refuse a parked flow, or a held one whatever its state; @how is what the child sees, but a TCP handshake that was answered
 * ends in an RST. What was held is thrown away, and a host side that is there already is reset: no byte of it ever left. */
int cf_flow_deny(cf_stack *st, cf_flow_id flow, enum cf_denial how);
/* End a UDP peer whose host side is gone: nothing is sent there any more. The child hears nothing; its next datagram is a new
 * question. */
int cf_flow_forget(cf_stack *st, cf_flow_id flow);
/* Use the connected stream socket @fd as the host side of a parked TCP flow. On CF_OK @fd belongs to the stack. */
int cf_flow_attach(cf_stack *st, cf_flow_id flow, int fd);

/* Hold a parked flow, so that Python may look at what the child says before any of it leaves. TCP: allow or attach it as usual;
 * the child is connected, what it sends is acknowledged and kept (its window says how much may come), its end is kept back,
 * too; what the host sends goes down. UDP: the peer stays parked. CF_EVENT_FLIGHT tells of what comes. */
int cf_flow_hold(cf_stack *st, cf_flow_id flow);
/* Copy up to @max bytes of what is held of a held flow to @out: of TCP the text in order (@index 0), of UDP the @index-th datagram
 * that is not empty. Returns how many bytes there are, 0 when none. */
int64_t cf_flow_held(cf_stack *st, cf_flow_id flow, uint32_t index, uint8_t *out, uint32_t max);
/* Let what is held of a TCP flow leave with the next cf_turn(), and all that follows. A held UDP peer is allowed instead. */
int cf_flow_pass(cf_stack *st, cf_flow_id flow);

/* Answer a CF_EVENT_DATAGRAM from port 53 of the 4 or 16 bytes of @address to the child's @child_port. */
int cf_reply_datagram(cf_stack *st, int address_len, const uint8_t *address, uint16_t child_port, const uint8_t *payload,
		      uint32_t len);
/* Give the child the whole IP packet, or the whole Ethernet frame, at @bytes. */
int cf_send_ip(cf_stack *st, const uint8_t *bytes, uint32_t len);
int cf_send_frame(cf_stack *st, const uint8_t *bytes, uint32_t len);
/* Take the whole IP packet at @bytes as if the child had just sent it (a reassembled datagram). */
int cf_input_ip(cf_stack *st, const uint8_t *bytes, uint32_t len);
/* Count a drop that Python decided. */
int cf_drop(cf_stack *st, enum cf_drop why);
/* CF_DROP_COUNT counters, alive as long as the stack. */
const uint64_t *cf_drops(const cf_stack *st);
/* Flows in the table now, parked and closing ones included. */
uint32_t cf_flow_count(const cf_stack *st);
/* TCP flows whose child has not finished sending, or whose host has not taken everything yet. Walks the table. */
uint32_t cf_unfinished(const cf_stack *st);
/* Payload bytes that flows hold now, and the heads of parked datagrams. */
uint64_t cf_buffered(const cf_stack *st);

/* The Internet checksum (RFC 1071) of @len bytes, as it stands in a header; for the tests that hold it against a plain one. */
uint16_t cf_checksum(const uint8_t *bytes, uint32_t len);
