/*
 * Runs one command and prints, as one line of JSON, what the kernel counted for it:
 *
 *     measure [-s FILE] [-o FILE] -- COMMAND [ARGUMENT...]
 *
 *     -s FILE  the command's standard output goes there (default /dev/null); its standard error is passed through
 *     -o FILE  write the line there instead of to standard output
 *
 * wait4 returns the child's own resource usage, exact and complete at its end, together with that of the children
 * that it has waited for itself (a shell that runs four clients reports all four). Sampling /proc from outside
 * would miss the last milliseconds. The command gets a process group of its own, which ends with us. Peak RSS is that of the largest single process. The wall time runs from just before the
 * spawn to the end of the wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double seconds(struct timeval value)
{
	return (double)value.tv_sec + (double)value.tv_usec / 1e6;
}

static pid_t pid;

static void end_group(int number)
{
	(void)number;
	if (pid > 0)
		kill(-pid, SIGKILL);
}

static void usage(void)
{
	fputs("usage: measure [-s FILE] [-o FILE] -- COMMAND [ARGUMENT...]\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	const char *report_path = NULL;
	const char *output_path = "/dev/null";
	int option;
	while ((option = getopt(argc, argv, "+s:o:")) != -1) {
		if (option == 's')
			output_path = optarg;
		else if (option == 'o')
			report_path = optarg;
		else
			usage();
	}
	if (optind >= argc)
		usage();

	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);

	posix_spawnattr_t attributes;
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
	signal(SIGTERM, end_group);
	signal(SIGINT, end_group);

	/* glibc's posix_spawn is a vfork: the child shares our memory until exec, so nothing of ours is copied or counted. */
	double began = now();
	int error = posix_spawnp(&pid, argv[optind], &actions, &attributes, argv + optind, environ);
	if (error != 0) {
		fprintf(stderr, "measure: %s: %s\n", argv[optind], strerror(error));
		return 127;
	}
	int status;
	struct rusage usage_of_child;
	while (wait4(pid, &status, 0, &usage_of_child) == -1) {
		if (errno != EINTR) {
			perror("measure: wait4");
			return 1;
		}
	}
	double wall = now() - began;

	FILE *report = report_path == NULL ? stdout : fopen(report_path, "w");
	if (report == NULL) {
		fprintf(stderr, "measure: %s: %s\n", report_path, strerror(errno));
		return 1;
	}
	fprintf(report,
		"{\"wallSeconds\":%.6f,\"userSeconds\":%.6f,\"systemSeconds\":%.6f,\"peakRssKiB\":%ld,"
		"\"exitCode\":%d,\"signal\":%d,\"minorFaults\":%ld,\"majorFaults\":%ld,"
		"\"voluntarySwitches\":%ld,\"involuntarySwitches\":%ld}\n",
		wall, seconds(usage_of_child.ru_utime), seconds(usage_of_child.ru_stime), usage_of_child.ru_maxrss,
		WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
		usage_of_child.ru_minflt, usage_of_child.ru_majflt, usage_of_child.ru_nvcsw, usage_of_child.ru_nivcsw);
	if (fclose(report) != 0) {
		fprintf(stderr, "measure: %s: %s\n", report_path == NULL ? "stdout" : report_path, strerror(errno));
		return 1;
	}
	return 0;
}
