/*
 * Runs an NBD client up to its first request: what it takes to start. It is killed when the request arrives.
 *
 *     until-request SOCKET UPSTREAM PROGRAM ARGUMENT...
 *
 * The client connects to SOCKET, and is passed on to the server at UPSTREAM; both are Unix sockets. Exit 0 after
 * a request; 1 if the client ends before.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FLAGS = 4, OPTION_HEADER = 16, MOST = 65536 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int endpoint(const char *path, int is_server)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address.sun_path)) {
		fprintf(stderr, "until-request: %s: too long for a socket's path\n", path);
		exit(1);
	}
	strcpy(address.sun_path, path);
	int end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (end == -1)
		die("socket");
	if (is_server) {
		unlink(path);
		if (bind(end, (struct sockaddr *)&address, sizeof(address)) == -1 || listen(end, 8) == -1)
			die(path);
	} else if (connect(end, (struct sockaddr *)&address, sizeof(address)) == -1)
		die(path);
	return end;
}

/* Whether a request is among the client's bytes: flags and options come before it, each with its length. */
static int has_request(const char *bytes, size_t length)
{
	for (size_t at = FLAGS; length >= at + 4;) {
		if (memcmp(bytes + at, "IHAV", 4) != 0)
			return 1;
		if (length < at + OPTION_HEADER)
			return 0;
		uint32_t data;
		memcpy(&data, bytes + at + 12, sizeof(data));
		at += OPTION_HEADER + ntohl(data);
	}
	return 0;
}

static void ended_early(int signal_number)
{
	static const char message[] = "until-request: the client ended before its first request\n";
	(void)signal_number;
	if (write(STDERR_FILENO, message, sizeof(message) - 1) == -1)
		_exit(2);
	_exit(1);
}

static void pass_on(int to, const char *bytes, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t sent = send(to, bytes + done, length - done, MSG_NOSIGNAL);
		if (sent == -1)
			die("send");
		done += (size_t)sent;
	}
}

int main(int count, char **arguments)
{
	static char said[MOST], answer[MOST];
	size_t length = 0;
	if (count < 4) {
		fputs("usage: until-request SOCKET UPSTREAM PROGRAM ARGUMENT...\n", stderr);
		return 1;
	}
	int listener = endpoint(arguments[1], 1);
	signal(SIGCHLD, ended_early);
	pid_t child = fork();
	if (child == -1)
		die("fork");
	if (child == 0) {
		execvp(arguments[3], arguments + 3);
		die(arguments[3]);
	}
	int client = accept(listener, NULL, NULL);
	if (client == -1)
		die("accept");
	int server = endpoint(arguments[2], 0);
	while (!has_request(said, length)) {
		struct pollfd both[] = { { client, POLLIN, 0 }, { server, POLLIN, 0 } };
		if (poll(both, 2, -1) == -1)
			die("poll");
		if (both[0].revents) {
			ssize_t got = recv(client, said + length, MOST - length, 0);
			if (got <= 0)
				ended_early(0);
			pass_on(server, said + length, (size_t)got);
			length += (size_t)got;
		}
		if (both[1].revents) {
			ssize_t got = recv(server, answer, sizeof(answer), 0);
			if (got <= 0)
				die("the server hung up");
			pass_on(client, answer, (size_t)got);
		}
	}
	signal(SIGCHLD, SIG_DFL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	unlink(arguments[1]);
	return 0;
}
