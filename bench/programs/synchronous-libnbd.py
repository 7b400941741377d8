"""
Only what virtnbdbackup does with a disk: ask for the extents, then for each of them read a block, update the
checksum and write the block, with one read in flight. Blocks are as large as the server allows, 32 MiB with
QEMU.

    synchronous-libnbd.py URI CONTEXT OUTPUT

It writes a sparse raw image instead of a stream of its own format, so that the result can be compared.
"""

import sys
import zlib

import nbd

# virtnbdbackup asks the server, and takes this where it doesn't say.
DEFAULT_MAXIMUM_BYTES = 32 * 1024 * 1024
# No request for extents may be longer; a multiple of all block sizes.
STATUS_BYTES = 4 * 1024 * 1024 * 1024 - 65536


def extents_of(handle, context, size):
    """The extents to copy, neighbours of one kind as one."""
    wanted = []
    position = 0

    def collect(name, offset, entries, error):
        nonlocal position
        if name != context:
            return 0
        for length, flags in zip(entries[0::2], entries[1::2]):
            # A bitmap sets the first flag for dirty, base:allocation sets it for a hole.
            dirty = bool(flags & 1) == context.startswith("qemu:dirty-bitmap:")
            if dirty and wanted and wanted[-1][0] + wanted[-1][1] == offset:
                wanted[-1][1] += length
            elif dirty:
                wanted.append([offset, length])
            offset += length
        position = offset
        return 0

    while position < size:
        handle.block_status(min(size - position, STATUS_BYTES), position, collect)
    if wanted:
        wanted[-1][1] = min(wanted[-1][1], size - wanted[-1][0])
    return wanted


def main(uri, context, output):
    handle = nbd.NBD()
    handle.add_meta_context(context)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    if not handle.can_meta_context(context):
        sys.exit(f"the export has no meta context {context}")
    size = handle.get_size()
    maximum = handle.get_block_size(nbd.SIZE_MAXIMUM) or DEFAULT_MAXIMUM_BYTES
    checksum = 1
    with open(output, "wb") as image:
        image.truncate(size)
        for offset, length in extents_of(handle, context, size):
            end = offset + length
            while offset < end:
                block = handle.pread(min(end - offset, maximum), offset)
                checksum = zlib.adler32(block, checksum)
                image.seek(offset)
                image.write(block)
                offset += len(block)
    handle.shutdown()
    print(checksum)


main(*sys.argv[1:])
