import { randomUUID } from "node:crypto";
import { execa } from "execa";
import { expect, it } from "vitest";
import { turnOnHost } from "../../../src/backup/host/turn-on-host.js";

const LONG_MS = 60_000;

it("is one's at a time, until that ends, by kill -9 too, and nobody waits for ever", async () => {
  const name = `nbdpull-test-${randomUUID()}`;
  const order: string[] = [];
  const first = await turnOnHost(name, LONG_MS);
  const second = turnOnHost(name, LONG_MS).then((turn) => {
    order.push("second");
    return turn;
  });
  await using _ = await turnOnHost(`${name}-other`, 0);
  await using _squatted = await turnOnHost(name, 100);
  order.push("first ends");
  await first[Symbol.asyncDispose]();
  await (await second)[Symbol.asyncDispose]();
  expect(order).toEqual(["first ends", "second"]);

  const script =
    'require("net").createServer().listen({ path: "\\0" + process.argv[1] }, () => console.log())';
  const holder = execa("node", ["-e", script, name], { reject: false });
  await new Promise((resolve) => holder.stdout.once("data", resolve));
  const third = turnOnHost(name, LONG_MS).then((turn) => {
    order.push("third");
    return turn;
  });
  await using _other = await turnOnHost(`${name}-other-still`, 0);
  order.push("killed");
  holder.kill("SIGKILL");
  await holder;
  await (await third)[Symbol.asyncDispose]();
  expect(order).toEqual(["first ends", "second", "killed", "third"]);
});
