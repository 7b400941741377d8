// Runs the built nbdpull again and again in one process: each start of a process compiles the same code anew.
// A message says what to run. The marks on stdout and stderr say that it has ended, as a process would have:
// with nothing under way any more.
import { readdirSync, readlinkSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** What is under way for so long after a command has done its work would keep its process from ending. */
const LONGEST_END_MS = 60_000;
/**
 * Looks, one a second, that find nothing under way before a command has done its work. Some work of libuv's
 * threads (zlib's) is not seen, but not for so long.
 */
const MOST_IDLE_TIMES = 30;

const bin = new URL("../../dist/bin/", import.meta.url);
/** The built program's own files. */
const code = fileURLToPath(bin);
const script = readdirSync(bin).find((name) => /^command-line-.+\.js$/.test(name));
// All of them count as under way from now on, also those that no command has used yet.
const streams = [process, process.stdin, process.stdout, process.stderr];
const EVENTS = ["uncaughtException", "beforeExit", "error"];
/** Those that commands listen for. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"];
/** One that only libraries listen for: once loaded, they want to know of every signal that ends a process. */
const SIGNAL_OF_LIBRARIES = "SIGALRM";
/** What is under way no longer may take so long to be closed. */
const LONGEST_CLOSE_MS = 30_000;
/** The exit code of a command that has left something behind. */
const LEFT_BEHIND = 99;

/** What keeps this process alive, by its kind. */
function underWay() {
  const counts = new Map();
  for (const kind of process.getActiveResourcesInfo()) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return counts;
}

/**
 * The descriptors of this process for files, without the one by which the folder is read: that is closed by
 * then. A connection to a store that is idle ends with its process, and counts as under way if it is not. Of
 * a thread that is terminated while it loads its code, Node itself leaves the file of that code open.
 */
function descriptors() {
  const folder = "/proc/self/fd";
  return readdirSync(folder).flatMap((fd) => {
    try {
      const target = readlinkSync(`${folder}/${fd}`);
      const isNoMatter = target.startsWith("socket:") || target.startsWith(code);
      return isNoMatter ? [] : [`descriptor ${fd} (${target})`];
    } catch {
      return [];
    }
  });
}

/** By signal, how many listeners there are that no library has added. */
function listenersOfCommands() {
  const ofLibraries = process.listenerCount(SIGNAL_OF_LIBRARIES);
  return SIGNALS.map((name) => process.listenerCount(name) - ofLibraries);
}

/** What a command has left behind in this process, which has done all of its work. */
async function leftBehind(before) {
  const begun = performance.now();
  let now = descriptors();
  while (now.length > before.descriptors.length && performance.now() - begun < LONGEST_CLOSE_MS) {
    await new Promise((resolve) => {
      setTimeout(resolve, 1);
    });
    now = descriptors();
  }
  const isMore = now.length > before.descriptors.length;
  const listening = listenersOfCommands();
  return [
    ...(isMore ? now.filter((each) => !before.descriptors.includes(each)) : []),
    ...SIGNALS.filter((_, i) => listening[i] > before.listening[i]).map((name) => `a listener for ${name}`),
  ];
}

process.on("disconnect", () => process.exit());
process.on("message", async ({ number, argv, env, folder, umask, mark }) => {
  const idle = underWay();
  const busy = () => [...underWay()].filter(([kind, count]) => count > (idle.get(kind) ?? 0));
  const before = { descriptors: descriptors(), listening: listenersOfCommands() };
  const listeners = streams.map((stream) => EVENTS.map((event) => stream.listeners(event)));
  for (const name of Object.keys(process.env)) if (!Object.hasOwn(env, name)) delete process.env[name];
  Object.assign(process.env, env);
  process.chdir(folder);
  process.umask(umask);
  process.argv.splice(1, process.argv.length, ...argv);
  process.exitCode = undefined;
  // The script that runs the command is loaded anew each time, and all that it loads only once.
  let idleTimes = 0;
  const watch = setInterval(() => {
    idleTimes = busy().length > 0 ? 0 : idleTimes + 1;
    // A process of its own would end here, without a result.
    if (idleTimes > MOST_IDLE_TIMES) process.emit("beforeExit", 0);
  }, 1000).unref();
  await import(new URL(`${script}?call=${number}`, bin).href);
  clearInterval(watch);
  const begun = performance.now();
  while (busy().length > 0) {
    await new Promise((resolve) => {
      setTimeout(resolve, 1).unref();
    });
    if (performance.now() - begun > LONGEST_END_MS) {
      process.stderr.write(`this does not end: ${busy().map(String).join("; ")}\n`);
      process.exit(99);
    }
  }
  const left = await leftBehind(before);
  if (left.length > 0) {
    process.stderr.write(`this command has left behind: ${left.join("; ")}\n`);
    process.exitCode = LEFT_BEHIND;
  }
  for (const [i, stream] of streams.entries()) {
    for (const [j, event] of EVENTS.entries()) {
      for (const listener of stream.listeners(event)) {
        if (!listeners[i][j].includes(listener)) stream.off(event, listener);
      }
    }
  }
  for (const stream of [process.stdout, process.stderr]) {
    stream.write(`${mark} ${process.exitCode ?? 0}\n`);
  }
});
