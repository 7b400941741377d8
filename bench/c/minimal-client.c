/*
 * A minimal NBD backup client, which shows the least that the work costs. It is the yardstick of the bench
 * harness, not a tool: one thread, one connection, no retries, no digests, no zero detection.
 *
 *     minimal-client [-c CONTEXT] [-r BYTES] [-w WINDOW] [-n] (-u SOCKET | -t HOST:PORT) EXPORT OUTPUT
 *
 *     -c CONTEXT  which extents to copy: base:allocation (the default; data and allocated zeroes, not holes)
 *                 or a dirty bitmap as qemu:dirty-bitmap:NAME (only dirty extents)
 *     -r BYTES    most bytes of a read request (default 1 MiB)
 *     -w WINDOW   number of read requests in flight (default 16)
 *     -n          null sink: read everything, write nothing (OUTPUT is then ignored)
 *
 * It negotiates newstyle with structured replies and one meta context, asks for the block status of the whole
 * export one request at a time, and then reads. Payload is received straight into the buffer of its request
 * and written with pwrite; the output is a sparse raw file of the export's size.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FLAG_FIXED_NEWSTYLE = 1, FLAG_NO_ZEROES = 2 };
enum { OPT_GO = 7, OPT_STRUCTURED_REPLY = 8, OPT_SET_META_CONTEXT = 10 };
enum { REP_ACK = 1, REP_INFO = 3, REP_META_CONTEXT = 4, INFO_EXPORT = 0 };
enum { CMD_READ = 0, CMD_DISCONNECT = 2, CMD_BLOCK_STATUS = 7 };
enum { CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_HOLE = 2, CHUNK_STATUS = 5 };
#define MAGIC_OPTION 0x49484156454F5054ULL /* IHAVEOPT */
#define MAGIC_OPTION_REPLY 0x0003e889045565a9ULL
#define MAGIC_REQUEST 0x25609513
#define MAGIC_STRUCTURED 0x668e33ef
#define STATUS_LENGTH 0xFFFF0000U /* the largest whole number of 64 KiB blocks that fits a compact request */

struct extent { uint64_t offset, length; };
struct slot { uint64_t offset; uint32_t length, received; char *buffer; };
/* The fields as they are on the wire, without padding. */
struct option { uint64_t magic; uint32_t option, length; } __attribute__((packed));
struct option_reply { uint64_t magic; uint32_t option, type, length; } __attribute__((packed));
struct request { uint32_t magic; uint16_t flags, type; uint64_t cookie, offset; uint32_t length; } __attribute__((packed));
struct chunk { uint32_t magic; uint16_t flags, type; uint64_t cookie; uint32_t length; } __attribute__((packed));

static int sock;
static uint64_t export_size;

static void die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fputs("minimal-client: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

static void receive(void *buffer, size_t length)
{
	for (char *at = buffer; length > 0;) {
		ssize_t got = recv(sock, at, length, MSG_WAITALL);
		if (got == -1 && errno == EINTR)
			continue;
		if (got <= 0)
			die("recv: %s", got == 0 ? "the server has closed the connection" : strerror(errno));
		at += got;
		length -= (size_t)got;
	}
}

static void transmit(const void *buffer, size_t length)
{
	for (const char *at = buffer; length > 0;) {
		ssize_t sent = send(sock, at, length, MSG_NOSIGNAL);
		if (sent == -1 && errno == EINTR)
			continue;
		if (sent == -1)
			die("send: %s", strerror(errno));
		at += sent;
		length -= (size_t)sent;
	}
}

static void *allocate(size_t size)
{
	void *memory = malloc(size);
	if (memory == NULL)
		die("out of memory");
	return memory;
}

static void connect_unix(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address.sun_path))
		die("%s: too long for a socket's path", path);
	strcpy(address.sun_path, path);
	sock = socket(AF_UNIX, SOCK_STREAM, 0);
	if (sock == -1 || connect(sock, (struct sockaddr *)&address, sizeof(address)) == -1)
		die("%s: %s", path, strerror(errno));
}

static void connect_tcp(char *host)
{
	char *port = strrchr(host, ':');
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	if (port == NULL)
		die("%s: expected HOST:PORT", host);
	*port++ = '\0';
	int error = getaddrinfo(host, port, &hints, &found);
	if (error != 0)
		die("%s: %s", host, gai_strerror(error));
	sock = socket(found->ai_family, SOCK_STREAM, 0);
	if (sock == -1 || connect(sock, found->ai_addr, found->ai_addrlen) == -1)
		die("%s:%s: %s", host, port, strerror(errno));
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	freeaddrinfo(found);
}

/*
 * Sends an option and reads its replies up to the acknowledgement. Returns the number of replies of type
 * `wanted` before it.
 */
static int negotiate(uint32_t option, const void *data, uint32_t length, uint32_t wanted)
{
	struct option header = { htobe64(MAGIC_OPTION), htobe32(option), htobe32(length) };
	int found = 0;
	transmit(&header, sizeof(header));
	transmit(data, length);
	for (;;) {
		struct option_reply reply;
		char body[4096];
		receive(&reply, sizeof(reply));
		uint32_t type = be32toh(reply.type), size = be32toh(reply.length);
		if (be64toh(reply.magic) != MAGIC_OPTION_REPLY || be32toh(reply.option) != option)
			die("the server's answer to option %u does not belong to it", option);
		if (size >= sizeof(body))
			die("the server's answer to option %u has %u bytes", option, size);
		receive(body, size);
		body[size] = '\0';
		if (type == REP_ACK)
			return found;
		if (type & 0x80000000U)
			die("the server refuses option %u: error %u %s", option, type & 0x7fffffffU, body);
		if (type == wanted)
			found++;
		if (option == OPT_GO && type == REP_INFO && size >= 12 && be16toh(*(uint16_t *)body) == INFO_EXPORT) {
			memcpy(&export_size, body + 2, sizeof(export_size));
			export_size = be64toh(export_size);
		}
	}
}

static char *put_string(char *at, const char *string)
{
	uint32_t length = htobe32((uint32_t)strlen(string));
	memcpy(at, &length, sizeof(length));
	memcpy(at + sizeof(length), string, strlen(string));
	return at + sizeof(length) + strlen(string);
}

static void handshake(const char *export, const char *context)
{
	struct { uint64_t nbdmagic, version; uint16_t flags; } __attribute__((packed)) greeting;
	receive(&greeting, sizeof(greeting));
	if (memcmp(&greeting.nbdmagic, "NBDMAGIC", 8) != 0 || be64toh(greeting.version) != MAGIC_OPTION)
		die("not a newstyle NBD server");
	uint32_t flags = htobe32(FLAG_FIXED_NEWSTYLE | (be16toh(greeting.flags) & FLAG_NO_ZEROES));
	transmit(&flags, sizeof(flags));

	char *body = allocate(strlen(export) + strlen(context) + 16), *end;
	negotiate(OPT_STRUCTURED_REPLY, "", 0, 0);
	end = put_string(body, export);
	memcpy(end, "\0\0\0\1", 4); /* one query */
	end = put_string(end + 4, context);
	if (negotiate(OPT_SET_META_CONTEXT, body, (uint32_t)(end - body), REP_META_CONTEXT) != 1)
		die("export \"%s\" has no meta context %s", export, context);
	end = put_string(body, export);
	memcpy(end, "\0\0", 2); /* no further information wanted */
	negotiate(OPT_GO, body, (uint32_t)(end + 2 - body), REP_INFO);
	free(body);
}

static void send_request(uint16_t type, uint64_t cookie, uint64_t offset, uint32_t length)
{
	struct request request = { htobe32(MAGIC_REQUEST), 0, htobe16(type), cookie, htobe64(offset), htobe32(length) };
	transmit(&request, sizeof(request));
}

/*
 * The header of the next chunk, in the host's byte order, except for the cookie: that returns as it was sent.
 */
static struct chunk receive_chunk(void)
{
	struct chunk chunk;
	receive(&chunk, sizeof(chunk));
	if (be32toh(chunk.magic) != MAGIC_STRUCTURED)
		die("expected a structured reply");
	chunk.flags = be16toh(chunk.flags);
	chunk.type = be16toh(chunk.type);
	chunk.length = be32toh(chunk.length);
	if (chunk.type & 0x8000) {
		uint32_t error = 0;
		if (chunk.length >= 4)
			receive(&error, sizeof(error));
		die("the server reports error %u", be32toh(error));
	}
	return chunk;
}

/*
 * Reads the context over the whole export. Neighbours of one kind become one extent. Returns the number of
 * extents to copy.
 */
static size_t query_extents(int dirty_bitmap, struct extent **result)
{
	struct extent *extents = NULL;
	size_t count = 0, capacity = 0;
	for (uint64_t offset = 0; offset < export_size;) {
		uint64_t rest = export_size - offset;
		send_request(CMD_BLOCK_STATUS, 0, offset, rest < STATUS_LENGTH ? (uint32_t)rest : STATUS_LENGTH);
		for (int done = 0; !done;) {
			struct chunk chunk = receive_chunk();
			done = chunk.flags & 1;
			if (chunk.type == CHUNK_NONE)
				continue;
			if (chunk.type != CHUNK_STATUS || chunk.length < 12 || chunk.length % 8 != 4)
				die("expected extents, the server sent a chunk of type %u", chunk.type);
			uint32_t *body = allocate(chunk.length);
			receive(body, chunk.length);
			for (uint32_t i = 1; i < chunk.length / 4; i += 2) {
				uint64_t length = be32toh(body[i]);
				uint32_t status = be32toh(body[i + 1]);
				/* A bitmap sets bit 0 for dirty, base:allocation sets it for a hole. */
				if (((status & 1) != 0) == dirty_bitmap) {
					struct extent *last = count > 0 ? &extents[count - 1] : NULL;
					if (last != NULL && last->offset + last->length == offset) {
						last->length += length;
					} else {
						if (count == capacity) {
							capacity = capacity > 0 ? capacity * 2 : 1024;
							extents = realloc(extents, capacity * sizeof(*extents));
							if (extents == NULL)
								die("out of memory");
						}
						extents[count++] = (struct extent){ offset, length };
					}
				}
				offset += length;
			}
			free(body);
		}
	}
	/* The last extent may reach past the end of what was asked for, and so past the end of the export. */
	if (count > 0 && extents[count - 1].offset + extents[count - 1].length > export_size)
		extents[count - 1].length = export_size - extents[count - 1].offset;
	*result = extents;
	return count;
}

static void write_all(int output, const char *buffer, size_t length, uint64_t offset)
{
	while (length > 0) {
		ssize_t written = pwrite(output, buffer, length, (off_t)offset);
		if (written == -1)
			die("pwrite at %llu: %s", (unsigned long long)offset, strerror(errno));
		buffer += written;
		offset += (uint64_t)written;
		length -= (size_t)written;
	}
}

/* Receives one chunk into its slot. Returns nonzero when it was the last of its request. */
static int receive_read_chunk(struct slot *slots, unsigned window, struct slot **which)
{
	struct chunk chunk = receive_chunk();
	if (chunk.cookie >= window)
		die("the server answers a request that was never sent");
	struct slot *slot = *which = &slots[chunk.cookie];
	uint64_t at = 0;
	uint32_t length = 0;
	if (chunk.type == CHUNK_DATA && chunk.length > 8) {
		length = chunk.length - 8;
	} else if (chunk.type == CHUNK_HOLE && chunk.length == 12) {
		length = 0;
	} else if (chunk.type == CHUNK_NONE && chunk.length == 0) {
		return chunk.flags & 1;
	} else {
		die("a read is answered by a chunk of type %u and %u bytes", chunk.type, chunk.length);
	}
	receive(&at, sizeof(at));
	at = be64toh(at) - slot->offset;
	if (chunk.type == CHUNK_HOLE) {
		receive(&length, sizeof(length));
		length = be32toh(length);
	}
	if (at > slot->length || length > slot->length - at)
		die("the server sent bytes that nobody has asked for");
	if (chunk.type == CHUNK_DATA)
		receive(slot->buffer + at, length);
	else
		memset(slot->buffer + at, 0, length);
	slot->received += length;
	return chunk.flags & 1;
}

/* Keeps `window` reads of at most `request_bytes` in flight until every extent is in the output. */
static uint64_t copy(const struct extent *extents, size_t count, uint32_t request_bytes, unsigned window, int output)
{
	struct slot *slots = allocate(window * sizeof(*slots));
	struct slot **idle = allocate(window * sizeof(*idle));
	unsigned idle_count = window;
	uint64_t done = 0, copied = 0;
	for (unsigned i = 0; i < window; i++) {
		slots[i].buffer = allocate(request_bytes);
		idle[i] = &slots[i];
	}
	for (size_t next = 0; next < count || idle_count < window;) {
		while (next < count && idle_count > 0) {
			struct slot *slot = idle[--idle_count];
			uint64_t rest = extents[next].length - done;
			slot->offset = extents[next].offset + done;
			slot->length = rest < request_bytes ? (uint32_t)rest : request_bytes;
			slot->received = 0;
			send_request(CMD_READ, (uint64_t)(slot - slots), slot->offset, slot->length);
			done += slot->length;
			if (done == extents[next].length) {
				next++;
				done = 0;
			}
		}
		struct slot *slot;
		if (!receive_read_chunk(slots, window, &slot))
			continue;
		if (slot->received != slot->length)
			die("a read of %u bytes was answered with %u", slot->length, slot->received);
		if (output != -1)
			write_all(output, slot->buffer, slot->length, slot->offset);
		copied += slot->length;
		idle[idle_count++] = slot;
	}
	return copied;
}

int main(int argc, char **argv)
{
	const char *context = "base:allocation", *path = NULL;
	char *host = NULL;
	long request_bytes = 1024 * 1024, window = 16;
	int option, null_sink = 0;
	while ((option = getopt(argc, argv, "c:r:w:nu:t:")) != -1) {
		switch (option) {
		case 'c': context = optarg; break;
		case 'r': request_bytes = atol(optarg); break;
		case 'w': window = atol(optarg); break;
		case 'n': null_sink = 1; break;
		case 'u': path = optarg; break;
		case 't': host = optarg; break;
		default: return 2;
		}
	}
	if (argc - optind != 2 || (path == NULL) == (host == NULL) || window < 1 || request_bytes < 512 ||
	    request_bytes > 32 * 1024 * 1024) {
		fputs("usage: minimal-client [-c CONTEXT] [-r BYTES] [-w WINDOW] [-n] (-u SOCKET | -t HOST:PORT) EXPORT OUTPUT\n", stderr);
		return 2;
	}
	if (path != NULL)
		connect_unix(path);
	else
		connect_tcp(host);
	handshake(argv[optind], context);

	struct extent *extents;
	size_t count = query_extents(strncmp(context, "qemu:dirty-bitmap:", 18) == 0, &extents);
	int output = -1;
	if (!null_sink) {
		output = open(argv[optind + 1], O_WRONLY | O_CREAT | O_TRUNC, 0666);
		if (output == -1 || ftruncate(output, (off_t)export_size) == -1)
			die("%s: %s", argv[optind + 1], strerror(errno));
	}
	uint64_t copied = copy(extents, count, (uint32_t)request_bytes, (unsigned)window, output);
	send_request(CMD_DISCONNECT, 0, 0, 0);
	if (output != -1 && close(output) == -1)
		die("%s: %s", argv[optind + 1], strerror(errno));
	printf("{\"extents\":%zu,\"bytes\":%llu}\n", count, (unsigned long long)copied);
	return 0;
}
