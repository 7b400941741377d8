/**
 * The guest room prepares a domain for a backup and cleans up after one. It finds jobs and job folders that
 * an earlier backup left, freezes and thaws the guest, plans each disk (full or increment), connects to a
 * job's exports, watches the scratch files and deletes old checkpoints.
 *
 * Read this file first, then:
 *
 *     claim.ts               what a dead backup left, whose the running job is, the folder taken over
 *     job-folder.ts          where a job works; local-job-folder.ts, or ssh-job-folder.ts on another host
 *     encrypted-disks.ts     disks that a backup would store as plain text
 *     look-at-disk.ts        size and qcow2 version of a disk; volume-of.ts finds those in storage pools
 *     checkpoint-record.ts   which checkpoints this host has made for a repository
 *     plan-guest.ts          what is taken, and plan-disk.ts of each disk; needed-checkpoints.ts
 *     retire-repository.ts   checkpoints of a repository that is no more
 *     freeze.ts              the guest's file systems frozen while the job begins
 *     job-connection.ts      how the job's exports are reached; ssh-to-hypervisor.ts
 *     job-clients.ts         the clients that outlive the job
 *     scratch-guard.ts       gives the job up before scratch files fill the disk; judge-scratch.ts judges
 *     keep-files.ts          the files beside the disks that a domain boots with
 *     stopped-disk.ts        the images of a domain that is off; qemu-img.ts asks about them, qemu-nbd.ts
 *                            serves them, confined-tool.ts says as whom, image-use.ts who else uses them
 *
 * This room never begins a backup job, reads no disk data and commits no points: the take room does that.
 */

import { messageOf } from "../base/errors.js";
import type { Ssh } from "../host/ssh.js";
import { deleteCheckpoint } from "../libvirt/checkpoints.js";
import type { DomainDefinition } from "../libvirt/documents/domain-xml.js";
import type { Libvirt } from "../libvirt/libvirt.js";
import type { Repository } from "../repository/repository.js";
import type { CheckpointRecord } from "./checkpoint-record.js";
import type { JobFolderKey } from "./job-folder.js";

/** One repository's view of one domain. */
export interface Guest {
  readonly libvirt: Libvirt;
  readonly domain: DomainDefinition;
  readonly repository: Repository;
  /** Connection to the host where the domain runs, if that is another host. */
  readonly ssh: Ssh | undefined;
}

/** The key of the job folder of this repository and domain. */
export function keyOf({ repository, domain }: Guest): JobFolderKey {
  return { repositoryId: repository.id, domainUuid: domain.uuid };
}

/**
 * Deletes those checkpoints that this host has made for the repository and for which `mayGo` is true. Never
 * touches other checkpoints.
 * @returns the names of the deleted checkpoints, and a message for each that could not be deleted
 */
export async function retireCheckpoints(
  { libvirt, domain }: Pick<Guest, "libvirt" | "domain">,
  record: CheckpointRecord,
  mayGo: (name: string) => boolean,
): Promise<{ retired: string[]; failed: string[] }> {
  const retired: string[] = [];
  const failed: string[] = [];
  for (const name of await libvirt.checkpointNames(domain)) {
    if (!record.has(name) || !mayGo(name)) continue;
    try {
      await deleteCheckpoint(libvirt, domain, name);
      retired.push(name);
    } catch (error) {
      failed.push(`checkpoint ${name} could not be deleted: ${messageOf(error)}`);
    }
  }
  await record.forget(retired);
  return { retired, failed };
}
