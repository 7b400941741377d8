/** Every 512 bytes contain their position, so that none can pass for another. */
export function numbered(length: number, salt = 0): Buffer {
  const bytes = Buffer.alloc(length, salt);
  for (let at = 0; at + 6 <= length; at += 512) bytes.writeUIntBE(1 + salt * 2 ** 24 + at / 512, at, 6);
  return bytes;
}
