import { expect, it } from "vitest";
import { startAll } from "./start-all.js";

function server(name: string, ended: string[]): AsyncDisposable & { readonly name: string } {
  return {
    name,
    async [Symbol.asyncDispose]() {
      ended.push(name);
    },
  };
}

it("hands over what has started, in its order", async () => {
  const ended: string[] = [];
  const [one, other] = await startAll(Promise.resolve(server("one", ended)), lateServer(ended));
  expect([one.name, other.name, ended]).toEqual(["one", "other", []]);
});

it("ends the others where one fails, also those that start later than it fails", async () => {
  const ended: string[] = [];
  const failing = Promise.reject(new Error("no port is free"));
  await expect(startAll(failing, lateServer(ended), Promise.resolve(server("one", ended)))).rejects.toThrow(
    "no port is free",
  );
  expect(ended.sort()).toEqual(["one", "other"]);
});

it("names all that failed", async () => {
  const failing = ["no port", "no room"].map((why) => Promise.reject<AsyncDisposable>(new Error(why)));
  await expect(startAll(...failing)).rejects.toThrow("no port; Error: no room");
});

it("says why the start failed, and ends all others, where one of those can't end", async () => {
  const ended: string[] = [];
  const stuck = {
    async [Symbol.asyncDispose]() {
      throw new Error("it does not end");
    },
  };
  const failing = Promise.reject<AsyncDisposable>(new Error("no port is free"));
  await expect(startAll(Promise.resolve(stuck), failing, lateServer(ended))).rejects.toThrow(
    "no port is free; Error: it does not end",
  );
  expect(ended).toEqual(["other"]);
});

/** Starts a moment later. */
async function lateServer(ended: string[]) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  return server("other", ended);
}
