import { join } from "node:path";
import type { Image } from "../images.js";
import { PROGRAMS } from "../programs.js";
import { type Contender, onlySource, type Source, type Task } from "../workload.js";
import { equalsSource, nothingToCompare } from "./verify.js";

/** `qemu-img convert` straight from the export. */
export function qemuImgConvert(format: "raw" | "qcow2", ...more: readonly string[]): Contender {
  const image = (task: Task): Image => ({ path: join(task.output, `disk.${format}`), format });
  return {
    name: ["qemu-img convert", format, ...more].join(" "),
    needs: [PROGRAMS.qemuImg],
    command: (task) => ({
      program: "qemu-img",
      args: ["convert", ...more, "-O", format, ...inputOf(onlySource(task)), image(task).path],
    }),
    verify: equalsSource(image),
  };
}

/** Reads all, keeps nothing. */
export function qemuImgToNull(...more: readonly string[]): Contender {
  return {
    ...qemuImgConvert("raw", ...more),
    name: ["qemu-img convert null-co", ...more].join(" "),
    command: (task) => {
      const source = onlySource(task);
      const sink = `driver=null-co,size=${source.virtualSize}`;
      return {
        program: "qemu-img",
        args: ["convert", ...more, "-n", "--target-image-opts", ...inputOf(source), sink],
      };
    },
    verify: nothingToCompare,
  };
}

/** TLS needs an object, and a source that is described by options. */
function inputOf({ at, tls, uri, exportName }: Source): string[] {
  if (tls === undefined) return ["-f", "raw", uri];
  if (at.kind !== "tcp") throw new Error("TLS is measured over TCP");
  const credentials = `tls-creds-x509,id=tls0,endpoint=client,dir=${tls.certificates}`;
  return [
    ...["--object", credentials, "--image-opts"],
    `driver=nbd,host=${at.host},port=${at.port},export=${exportName},tls-creds=tls0`,
  ];
}
