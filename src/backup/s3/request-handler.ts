import { NodeHttpHandler } from "@smithy/node-http-handler";

/** A body of so many bytes is sent in several packets, whose arrival is acknowledged at once. */
const SEVERAL_PACKETS = 64 * 1024;
/**
 * A request of so many bytes arrives at once, and is read whole: where a store refuses one and ends the
 * connection with bytes unread, it is reset, which could overtake the answer.
 */
const ONE_READ = 4 * 1024;
/** What is answered to these has no body. */
const WITHOUT_BODY = ["HEAD", "DELETE"];

type Asked = Parameters<NodeHttpHandler["handle"]>[0];

/**
 * Sends requests, and has the store end the connection of one whose answer is small. Ceph sends the headers
 * of an answer first, and holds back a small body until their arrival is acknowledged (RFC 896), which Linux
 * does after 40 ms on a connection that is used again (RFC 1122, section 4.2.3.2). A server that ends the
 * connection holds nothing back. With TLS another handshake would cost as much.
 */
export class RequestHandler extends NodeHttpHandler {
  override handle(request: Asked, ...options: [Parameters<NodeHttpHandler["handle"]>[1]?]) {
    if (request.protocol === "http:" && hasSmallAnswer(request)) {
      // It is not signed, and the request may be sent again.
      request.headers["connection"] = "close";
    }
    return super.handle(request, ...options);
  }
}

/** Whether both the request and its answer are small, as far as the request tells. */
function hasSmallAnswer({ method, headers }: Asked): boolean {
  if (WITHOUT_BODY.includes(method) || Number(headers["content-length"] ?? 0) > ONE_READ) return false;
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers["range"] ?? headers["Range"] ?? "") ?? [];
  return first === undefined || Number(last) - Number(first) + 1 < SEVERAL_PACKETS;
}
