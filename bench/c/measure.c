/*
 * Runs one command and prints, as one line of JSON, what the kernel counted for it:
 *
 *     measure [-s FILE] [-o FILE] -- COMMAND [ARGUMENT...]
 *
 *     -s FILE  the command's standard output goes there (default /dev/null); its standard error is passed
 *              through
 *     -o FILE  write the line there instead of to standard output
 *
 * wait4 returns the child's own resource usage, exact and complete at its end, together with that of the
 * children that it has waited for itself (a shell that runs four clients reports all four). Sampling /proc
 * from outside would miss the last milliseconds. Processes that the command leaves behind, daemons too,
 * become our children: we wait for them and count them as well. Not counted are processes that no parent
 * waits for (SIGCHLD ignored), because the kernel counts them for nobody, and the work of a service that the
 * command asked for something.
 *
 * Peak RSS is that of the largest single process. The wall time runs from just before the spawn to the end of
 * the command, not to the end of the processes that it left behind. If this program is ended, it kills all of
 * those processes.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* How long processes that the command left behind may run: longer than a server takes to write its image. */
#define PATIENCE_SECONDS 30

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

static pid_t parent_of(const char *pid)
{
	char path[300];
	char line[1024];
	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	FILE *file = fopen(path, "r");
	if (file == NULL)
		return -1;
	size_t length = fread(line, 1, sizeof line - 1, file);
	fclose(file);
	line[length] = '\0';
	/* The name in brackets may hold anything; behind it are the state and the parent. */
	char *rest = strrchr(line, ')');
	int parent;
	return rest != NULL && sscanf(rest + 1, " %*c %d", &parent) == 1 ? parent : -1;
}

/* Kills our children, and then the processes that have become our children by that, until there are none. */
static void end_all(void)
{
	do {
		DIR *processes = opendir("/proc");
		if (processes == NULL)
			return;
		struct dirent *entry;
		while ((entry = readdir(processes)) != NULL)
			if (isdigit((unsigned char)entry->d_name[0]) && parent_of(entry->d_name) == getpid())
				kill(atoi(entry->d_name), SIGKILL);
		closedir(processes);
	} while (waitpid(-1, NULL, 0) > 0);
}

static void add(struct rusage *sum, const struct rusage *more)
{
	timeradd(&sum->ru_utime, &more->ru_utime, &sum->ru_utime);
	timeradd(&sum->ru_stime, &more->ru_stime, &sum->ru_stime);
	if (more->ru_maxrss > sum->ru_maxrss)
		sum->ru_maxrss = more->ru_maxrss;
	sum->ru_minflt += more->ru_minflt;
	sum->ru_majflt += more->ru_majflt;
	sum->ru_nvcsw += more->ru_nvcsw;
	sum->ru_nivcsw += more->ru_nivcsw;
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

	/* A terminal's Ctrl-C must not reach the command directly. */
	posix_spawnattr_t attributes;
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
	/* Signals are blocked, and taken one at a time by sigwaitinfo. The command starts with none blocked. */
	sigset_t awaited, none;
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attributes, &none);
	sigemptyset(&awaited);
	sigaddset(&awaited, SIGCHLD);
	sigaddset(&awaited, SIGTERM);
	sigaddset(&awaited, SIGINT);
	sigaddset(&awaited, SIGALRM);
	sigprocmask(SIG_BLOCK, &awaited, NULL);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) == -1) {
		perror("measure: prctl");
		return 1;
	}

	/*
	 * glibc's posix_spawn is a vfork: the child shares our memory until exec, so none of it is copied or
	 * counted as the child's.
	 */
	pid_t command;
	double began = now();
	int error = posix_spawnp(&command, argv[optind], &actions, &attributes, argv + optind, environ);
	if (error != 0) {
		fprintf(stderr, "measure: %s: %s\n", argv[optind], strerror(error));
		return 127;
	}
	double wall = 0;
	int status = 0;
	struct rusage sum;
	memset(&sum, 0, sizeof sum);
	for (;;) {
		int ended_with;
		struct rusage more;
		pid_t ended = wait4(-1, &ended_with, WNOHANG, &more);
		if (ended == -1)
			break;
		if (ended == 0) {
			int came = sigwaitinfo(&awaited, NULL);
			if (came == SIGCHLD || came == -1)
				continue;
			end_all();
			if (came == SIGALRM)
				fprintf(stderr, "measure: what the command left behind did not end within %d s\n", PATIENCE_SECONDS);
			return 1;
		}
		add(&sum, &more);
		if (ended == command) {
			wall = now() - began;
			status = ended_with;
			alarm(PATIENCE_SECONDS);
		}
	}

	FILE *report = report_path == NULL ? stdout : fopen(report_path, "w");
	if (report == NULL) {
		fprintf(stderr, "measure: %s: %s\n", report_path, strerror(errno));
		return 1;
	}
	fprintf(report,
		"{\"wallSeconds\":%.6f,\"userSeconds\":%.6f,\"systemSeconds\":%.6f,\"peakRssKiB\":%ld,"
		"\"exitCode\":%d,\"signal\":%d,\"minorFaults\":%ld,\"majorFaults\":%ld,"
		"\"voluntarySwitches\":%ld,\"involuntarySwitches\":%ld}\n",
		wall, seconds(sum.ru_utime), seconds(sum.ru_stime), sum.ru_maxrss,
		WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
		sum.ru_minflt, sum.ru_majflt, sum.ru_nvcsw, sum.ru_nivcsw);
	if (fclose(report) != 0) {
		fprintf(stderr, "measure: %s: %s\n", report_path == NULL ? "stdout" : report_path, strerror(errno));
		return 1;
	}
	return 0;
}
