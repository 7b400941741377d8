import { describe, expect, it, vi } from "vitest";
import { BackupError, PreconditionError } from "../../../src/backup/base/errors.js";
import { parseDomain } from "../../../src/backup/libvirt/documents/domain-xml.js";
import { guestEnd } from "../../../src/backup/libvirt/guest-end.js";
import type { JobInfo } from "../../../src/backup/libvirt/job-info.js";
import { Libvirt } from "../../../src/backup/libvirt/libvirt.js";
import { DOMAIN } from "./dumps.js";

const domain = parseDomain(DOMAIN);

/** A libvirt that gives a domain's state and the number of its run. */
class StateLibvirt extends Libvirt {
  readonly #answers: (string | Error)[];
  readonly #run: number | undefined;

  constructor(answers: (string | Error)[], run: number | undefined) {
    super();
    this.#answers = answers;
    this.#run = run;
  }

  /** Gives this state from now on. */
  say(state: string): void {
    this.#answers.splice(0, this.#answers.length, state);
  }

  override async domainId(): Promise<number | undefined> {
    return this.#run;
  }

  override async domainState(): Promise<string> {
    const answer = this.#answers.length > 1 ? this.#answers.shift() : this.#answers[0];
    if (answer instanceof Error) throw answer;
    return answer ?? "";
  }
}

const ask = (answers: (string | Error)[], run = domain.id, error = new Error("broken")) =>
  guestEnd(new StateLibvirt(answers, run), domain, error);

describe("the end of a guest", () => {
  it.each([
    ["shut off (crashed)", domain.id, "libvirt: shut off (crashed)"],
    ["shut off (destroyed)", undefined, "libvirt: shut off (destroyed)"],
    ["in shutdown (unknown)", domain.id, "libvirt: in shutdown (unknown)"],
    ["running (booted)", (domain.id ?? 0) + 1, "it was started anew since"],
  ])("is named, with libvirt's reason: %s", async (state, run, told) => {
    const ended = await ask([state], run);
    expect(ended).toMatchObject({ code: "E_GUEST_ENDED", details: { state: told, failedWith: "broken" } });
    expect(ended?.message).toContain(`(${told})`);
  });

  it("is named for a domain that libvirt forgets when it ends", async () => {
    const gone = new PreconditionError("E_NO_SUCH_DOMAIN", "gone");
    expect(await ask([gone])).toMatchObject({ details: { state: "libvirt has forgotten it" } });
  });

  it.each(["NBD_CLOSED_BY_SERVER", "E_JOB_ENDED"])("is noticed a moment after %s", async (code) => {
    const lost = new BackupError(code, "closed");
    expect(await ask(["running (booted)", "shut off (crashed)"], domain.id, lost)).toMatchObject({
      code: "E_GUEST_ENDED",
    });
  });

  it("is named with its reason once libvirt has one", async () => {
    const ended = await ask(["in shutdown (unknown)", "in shutdown (unknown)", "shut off (destroyed)"]);
    expect(ended).toMatchObject({ details: { state: "libvirt: shut off (destroyed)" } });
  });

  it("is noticed where libvirt learns of it late", async () => {
    const lost = new BackupError("NBD_CLOSED_BY_SERVER", "closed");
    const answers = [...Array<string>(6).fill("running (booted)"), "shut off (crashed)"];
    expect(await ask(answers, domain.id, lost)).toMatchObject({
      details: { state: "libvirt: shut off (crashed)" },
    });
  });

  it("is waited for where libvirt is late by half a minute, but can't ask QEMU any more", async () => {
    const lost = new BackupError("NBD_CLOSED_BY_SERVER", "closed");
    const now = performance.now.bind(performance);
    let slept = 0;
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + slept);
    try {
      const libvirt = new StateLibvirt(["running (booted)"], domain.id);
      const late = guestEnd(libvirt, domain, lost);
      const off = new PreconditionError("E_DOMAIN_OFF", "QEMU monitor was closed");
      libvirt.jobInfo = async () => {
        // That is asked once the wait for a libvirt with nothing else to do is over.
        if (slept >= 30_000) libvirt.say("shut off (crashed)");
        slept += 10_000;
        throw off;
      };
      slept = 5000;
      expect(await late).toMatchObject({ details: { state: "libvirt: shut off (crashed)" } });
      expect(slept).toBeGreaterThan(30_000);

      // Not for ever, and not while QEMU answers.
      libvirt.say("running (booted)");
      const never = guestEnd(libvirt, domain, lost);
      libvirt.jobInfo = async () => {
        slept += 10_000;
        throw off;
      };
      slept += 5000;
      expect(await never).toBeUndefined();
      const lives = guestEnd(libvirt, domain, lost);
      let asked = 0;
      libvirt.jobInfo = async () => {
        asked += 1;
        return { active: true } as JobInfo;
      };
      slept += 5000;
      expect([await lives, asked]).toEqual([undefined, 1]);
    } finally {
      clock.mockRestore();
    }
  });

  it("is named, too, if it comes between two questions", async () => {
    const answers = ["running (booted)", "shut off (crashed)"];
    const ended = await guestEnd(new StateLibvirt(answers, undefined), domain, new Error("broken"));
    expect(ended).toMatchObject({ details: { state: "libvirt: shut off (crashed)" } });
  });

  it("is not why a backup failed while its run goes on, or if libvirt doesn't answer", async () => {
    expect(await ask(["running (booted)"])).toBeUndefined();
    expect(await ask(["paused (I/O error)"])).toBeUndefined();
    expect(await ask([new PreconditionError("E_LIBVIRT", "no answer")])).toBeUndefined();
  });
});
