import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { PreconditionError } from "../../../src/backup/base/errors.js";
import { freeze } from "../../../src/backup/libvirt/freeze.js";
import { Virsh } from "../../../src/backup/libvirt/virsh.js";
import { describeWith, findTool } from "../../support/tools.js";

const AGENT = "error: internal error: unable to execute QEMU agent command";
/** Each with libvirt 9.0's message, as virsh prints it. */
const REFUSALS = [
  [
    "E_LIBVIRT",
    "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/s': No such file",
  ],
  ["E_NO_SUCH_DOMAIN", "error: failed to get domain 'lab'"],
  ["E_DOMAIN_OFF", "error: Requested operation is not valid: domain is not running"],
  ["E_DOMAIN_OFF", "error: Unable to read from monitor: Connection reset by peer"],
  ["E_DOMAIN_OFF", "error: Unable to write to monitor: Broken pipe"],
  ["E_DOMAIN_OFF", "error: internal error: End of file from qemu monitor (vm='lab')"],
  ["E_DOMAIN_OFF", "error: internal error: Missing monitor reply object"],
  ["E_DOMAIN_OFF", "error: internal error: QEMU monitor was closed"],
  ["E_DOMAIN_OFF", "error: internal error: Error while processing monitor IO (vm='lab')"],
  ["E_DOMAIN_OFF", "error: operation failed: domain is no longer running"],
  ["E_NO_JOB", "error: Domain backup job id not found: no domain backup job present"],
  ["E_NO_CHECKPOINT", "error: Domain checkpoint not found: no domain checkpoint with matching name 'x'"],
  ["E_NO_AGENT", "error: argument unsupported: QEMU guest agent is not configured"],
  ["E_NO_AGENT", "error: Guest agent is not responding: QEMU guest agent is not connected"],
  ["E_NO_AGENT", "error: Guest agent is not responding: Guest agent disappeared while executing command"],
  ["E_NO_AGENT", "error: Guest agent is not responding: Guest agent not available for now"],
  ["E_NO_AGENT", `${AGENT} 'guest-fsfreeze-freeze': Command x has been disabled: the command is not allowed`],
  [
    "E_GUEST_FROZEN",
    `${AGENT} 'guest-get-fsinfo': Command x has been disabled: the agent is in frozen state`,
  ],
  ["E_GUEST_FROZEN", `${AGENT} 'guest-fsfreeze-freeze': The command x has been disabled for this instance`],
  [
    "E_DOMAIN_BUSY",
    "error: Timed out during operation: cannot acquire state change lock (held by monitor=…)",
  ],
] as const;

describe("virsh", () => {
  let folder: string;

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "nbdpull-virsh-"));
  });

  afterEach(async () => {
    vi.unstubAllEnvs();
    await rm(folder, { recursive: true });
  });

  /** Puts a shell script in place of virsh. */
  async function install(script: string): Promise<void> {
    const path = join(folder, "virsh");
    await writeFile(path, `#!/bin/sh\n${script}\n`);
    await chmod(path, 0o755);
    vi.stubEnv("PATH", `${folder}${delimiter}${process.env["PATH"]}`);
  }

  it("says how to install virsh if it is missing", async () => {
    vi.stubEnv("PATH", folder);
    const answer = new Virsh().domainUuid("lab");
    await expect(answer).rejects.toBeInstanceOf(PreconditionError);
    await expect(answer).rejects.toMatchObject({
      code: "E_NO_VIRSH",
      message: expect.stringContaining("apt install"),
    });
  });

  it.each(REFUSALS)("gives %s for libvirt's own message, and keeps the message", async (code, said) => {
    await install(`cat >&2 <<'END'\n${said}\nEND\nexit 1`);
    const answer = new Virsh().backupXml("lab");
    await expect(answer).rejects.toBeInstanceOf(PreconditionError);
    await expect(answer).rejects.toMatchObject({ code, message: expect.stringContaining("(libvirt: ") });
  });

  it("asks again while libvirt doesn't answer, until its patience ends", async () => {
    const refusing = `cat >&2 <<'END'\n${REFUSALS[0][1]}\nEND\nexit 1`;
    await install(`[ -e "$0.up" ] && { echo lab; exit 0; }\n: > "$0.up"\n${refusing}`);
    expect(await new Virsh().withPatience(30_000).domainName("x")).toBe("lab");
    await install(`echo >> "$0.asked"\n${refusing}`);
    await expect(new Virsh().withPatience(600).domainName("x")).rejects.toMatchObject({ code: "E_LIBVIRT" });
    const asked = (await readFile(join(folder, "virsh.asked"), "utf8")).length;
    expect(asked).toBeGreaterThan(1);
    const stop = new AbortController();
    const waiting = new Virsh({ signal: stop.signal }).withPatience(30_000).domainName("x");
    stop.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });

  it("passes on an unknown refusal", async () => {
    await install("echo 'error: internal error: QEMU is tired' >&2; exit 1");
    await expect(new Virsh().backupXml("lab")).rejects.toMatchObject({
      code: "E_VIRSH",
      message: "virsh backup-dumpxml lab failed: internal error: QEMU is tired",
    });
  });

  it("runs in the C locale, without a shell, and never takes a domain for an option", async () => {
    await install('echo "$LC_ALL"; for argument; do echo "$argument"; done');
    const domain = "--all; $(reboot)";
    expect((await new Virsh({ connect: "test:///default" }).run("dumpxml", domain)).split("\n")).toEqual([
      "C",
      "--quiet",
      "--connect=test:///default",
      "dumpxml",
      `--domain=${domain}`,
    ]);
  });

  it("asks for a known domain by its UUID, and shows its name", async () => {
    await install('case "$*" in *--domain=uuid-1*) echo "error: domain is not running" >&2; exit 1;; esac');
    await expect(new Virsh().jobInfo({ uuid: "uuid-1", name: "lab" })).rejects.toMatchObject({
      code: "E_DOMAIN_OFF",
      message: expect.stringContaining("virsh start lab"),
    });
  });

  it("does not wait for ever", async () => {
    await install("exec sleep 60");
    await expect(new Virsh({ timeoutMs: 100 }).backupXml("lab")).rejects.toMatchObject({
      code: "E_VIRSH_TIMEOUT",
    });
  });

  it("ends when the signal fires, except for the instance that cleans up", async () => {
    await install('case "$*" in *domuuid*) echo clean;; *) exec sleep 60;; esac');
    const controller = new AbortController();
    const virsh = new Virsh({ signal: controller.signal });
    const answer = virsh.backupXml("lab");
    const reason = new Error("interrupted");
    setTimeout(() => controller.abort(reason), 100);
    await expect(answer).rejects.toBe(reason);
    await expect(virsh.domainUuid("lab")).rejects.toBe(reason);
    await expect(virsh.withSignal(undefined).domainUuid("lab")).resolves.toBe("clean");
  });

  it("leaves a migration alone when it is to end a backup job", async () => {
    await install(
      `case "$*" in *domjobabort*) touch ${folder}/aborted;; *) printf 'Job type: 1\\n\\noperation: 5\\n';; esac`,
    );
    await new Virsh().abortJob("lab");
    await expect(rm(join(folder, "aborted"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  it("asks simultaneous questions in one process, in order", async () => {
    await install(`echo "$*" >> ${folder}/asked; exec ${findTool("virsh")} "$@"`);
    const virsh = new Virsh({ connect: "test:///default" });
    const answers = await Promise.allSettled([
      virsh.uri(),
      virsh.domainId("test"),
      virsh.jobInfo('it\'s; "not" there'),
      virsh.domainXml("test"),
    ]);
    expect(answers).toMatchObject([
      { value: "test:///default" },
      { value: 1 },
      { reason: { code: "E_NO_SUCH_DOMAIN", message: expect.stringContaining('it\'s; "not" there') } },
      { value: expect.stringMatching(/^<domain type='test' id='1'>.*<\/domain>\s*$/s) },
    ]);
    const asked = (await readFile(join(folder, "asked"), "utf8")).trim().split("\n");
    expect(asked).toEqual([expect.stringMatching(/ uri; .*domid .*domjobinfo .*dumpxml /)]);
  });

  it("asks one by one if virsh can't answer several at once", async () => {
    await install(
      `case "$*" in *echo*) echo "error: unknown command: 'echo'" >&2; exit 1;; *) echo "$3";; esac`,
    );
    const virsh = new Virsh();
    expect(await Promise.all([virsh.domainXml("a"), virsh.backupXml("b")])).toEqual([
      "--domain=a",
      "--domain=b",
    ]);
  });

  it("asks one by one if one of several questions has neither an answer nor an error", async () => {
    const mark = "$(echo \"$*\" | sed 's/.*echo --err \\([^;]*\\);.*/\\1/')";
    await install(
      `case "$*" in *echo*) m=${mark}; echo "<a/>$m"; echo "error: $m" >&2;; *) echo "$3";; esac`,
    );
    const virsh = new Virsh();
    expect(await Promise.all([virsh.domainXml("a"), virsh.backupXml("b")])).toEqual([
      "--domain=a",
      "--domain=b",
    ]);
  });

  it("asks one by one if one of several questions has both an answer and an error", async () => {
    const mark = "$(echo \"$*\" | sed 's/.*echo --err \\([^;]*\\);.*/\\1/')";
    await install(
      `case "$*" in *echo*) m=${mark}; echo "<a/>$m<b/>"; echo "error: proxy" >&2; echo "error: $m" >&2;; *) echo "$3";; esac`,
    );
    const virsh = new Virsh();
    expect(await Promise.all([virsh.domainXml("a"), virsh.backupXml("b")])).toEqual([
      "--domain=a",
      "--domain=b",
    ]);
  });

  it("asks one by one if several questions are too long for one process", async () => {
    // Linux allows 128 KiB in one argument.
    const long = (letter: string): string => letter.repeat(100_000);
    await install('case "$*" in *echo*) exit 1;; *) echo "$3" | wc -c;; esac');
    const virsh = new Virsh();
    const answers = await Promise.all([virsh.domainXml(long("a")), virsh.backupXml(long("b"))]);
    expect(answers.map(Number)).toEqual([100_010, 100_010]);
  });

  it("asks no further questions if libvirt doesn't answer the first of several", async () => {
    await install(
      `echo "$*" >> ${folder}/asked; echo "error: failed to connect to the hypervisor" >&2; exit 1`,
    );
    const virsh = new Virsh();
    const answers = await Promise.allSettled([virsh.domainXml("a"), virsh.backupXml("b"), virsh.uri()]);
    for (const answer of answers) expect(answer).toMatchObject({ reason: { code: "E_LIBVIRT" } });
    expect((await readFile(join(folder, "asked"), "utf8")).trim().split("\n")).toHaveLength(2);
  });

  it("gives up on several questions at once when they take too long, and when the signal fires", async () => {
    await install("exec sleep 60");
    const late = new Virsh({ timeoutMs: 200 });
    const answers = await Promise.allSettled([late.domainXml("a"), late.backupXml("b")]);
    for (const answer of answers) expect(answer).toMatchObject({ reason: { code: "E_VIRSH_TIMEOUT" } });

    const controller = new AbortController();
    const virsh = new Virsh({ signal: controller.signal });
    const asked = Promise.allSettled([virsh.domainXml("a"), virsh.backupXml("b")]);
    const reason = new Error("interrupted");
    setTimeout(() => controller.abort(reason), 100);
    for (const answer of await asked) expect(answer).toMatchObject({ reason });
  });

  it("reports a cancelled job that doesn't end", async () => {
    await install("printf 'Job type: 2\\n\\noperation: 9\\n'");
    const patience = { stillMs: 100_000, libvirtMs: 200 };
    await expect(new Virsh().abortJob("lab", { patience })).rejects.toMatchObject({ code: "E_JOB_STUCK" });
  });

  it("refuses mountpoints of which the agent froze none", async () => {
    await install("printf 'Froze 0 filesystem(s)\\n'");
    await expect(freeze(new Virsh(), "lab", ["/x"])).rejects.toMatchObject({ code: "E_NO_MOUNTPOINT" });
    await freeze(new Virsh(), "lab", []);
  });

  it("waits for a cancelled job as long as QEMU's part of it moves, and while libvirt is busy", async () => {
    // The scratch file grows, then libvirt can't answer, then the job is QEMU's no longer, then it is gone.
    await install(
      `cd ${folder}; case "$*" in *domjobabort*) touch aborted; exit 0;; *--rawstats*) echo >> asked;; *) echo "error: no domain backup job present" >&2; exit 1;; esac\n` +
        "n=$(wc -l < asked); if [ $n -ge 24 ]; then printf 'Job type: 0\\n'; exit 0; fi\n" +
        "[ $n -ge 8 ] && [ $n -le 12 ] && { echo 'error: Timed out during operation: cannot acquire state change lock' >&2; exit 1; }\n" +
        "printf 'Job type: 2\\n\\noperation: 9\\n'; [ $n -lt 8 ] && echo disk_temp_used: $n; exit 0",
    );
    const patience = { stillMs: 250, libvirtMs: 5000 };
    await new Virsh().abortJob("lab", { patience });
    await rm(join(folder, "aborted"));
    await writeFile(join(folder, "asked"), "\n".repeat(13));
    const hasty = { stillMs: 250, libvirtMs: 0 };
    await expect(new Virsh().abortJob("lab", { patience: hasty })).rejects.toMatchObject({
      code: "E_JOB_STUCK",
    });
  });
});

describeWith(["virsh"], "the real virsh", () => {
  it("takes a number as a domain's name if one has it, else as a running domain's ID", async () => {
    const folder = await mkdtemp(join(tmpdir(), "nbdpull-virsh-"));
    const domains = ["web", "1"].map(
      (name, i) =>
        `<domain type='test'><name>${name}</name><uuid>0000000${i}-0000-4000-8000-000000000000</uuid>` +
        "<memory>8192</memory><os><type>hvm</type></os></domain>",
    );
    try {
      await writeFile(join(folder, "node.xml"), `<node>${domains.join("")}</node>`);
      const virsh = new Virsh({ connect: `test://${join(folder, "node.xml")}` });
      expect(await virsh.runningDomains()).toEqual(["web", "1"]);
      const uuids = await Promise.all(["web", "1", "2"].map((name) => virsh.domainUuid(name)));
      expect(uuids.map((uuid) => uuid.slice(0, 8))).toEqual(["00000000", "00000001", "00000001"]);
      await expect(virsh.domainUuid("3")).rejects.toMatchObject({ code: "E_NO_SUCH_DOMAIN" });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("gives E_LIBVIRT if nothing listens", async () => {
    const nowhere = join(tmpdir(), "no-such-libvirt.sock");
    const virsh = new Virsh({ connect: `qemu+unix:///system?socket=${nowhere}` });
    await expect(virsh.domainUuid("lab")).rejects.toMatchObject({
      code: "E_LIBVIRT",
      message: expect.stringContaining(nowhere),
    });
  });
});
