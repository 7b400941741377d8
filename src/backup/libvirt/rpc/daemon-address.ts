import type { SshTarget } from "../../host/ssh.js";

/** How to reach a daemon. */
export type DaemonWay =
  /** The first socket that somebody listens on. */
  | { readonly kind: "unix"; readonly sockets: readonly string[] }
  /** A program on the other host connects to the socket there. */
  | {
      readonly kind: "ssh";
      readonly target: SshTarget;
      /** For nc, where there is no virt-ssh-helper. */
      readonly sockets: readonly string[];
      readonly netcat: string;
      readonly proxy: "auto" | "native" | "netcat";
    }
  | {
      readonly kind: "tls";
      readonly host: string;
      readonly port: number;
      /** Folder with cacert.pem, clientcert.pem and clientkey.pem; undefined: libvirt's own places. */
      readonly pki: string | undefined;
      readonly verify: boolean;
    }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

export interface DaemonAddress {
  readonly way: DaemonWay;
  /** What the daemon is asked to open: the URI as it is on its host. */
  readonly uri: string;
}
