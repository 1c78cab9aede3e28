"""A client of a share, driven line by line: one request on stdin, one answer on stdout, `ok [HEX]` or `error NUMBER TEXT`.

usage: client.py nfs HOST EXPORT
       client.py smb HOST SHARE USER PASSWORD
"""

import ctypes
import errno
import os
import sys
import time


class Nfs:
    """NFSv3 by libnfs, which is a client in the program itself: no mount, no cache."""

    def __init__(self, host, export):
        self.lib = ctypes.CDLL("libnfs.so.13")
        self.lib.nfs_init_context.restype = ctypes.c_void_p
        self.lib.nfs_get_error.restype = ctypes.c_char_p
        self.nfs = ctypes.c_void_p(self.lib.nfs_init_context())
        self.file = ctypes.c_void_p()
        # A hard mount: a server that is away is waited for.
        self.lib.nfs_set_autoreconnect(self.nfs, -1)
        self._call("mount", host.encode(), export.encode())

    def _call(self, name, *args):
        result = getattr(self.lib, "nfs_" + name)(self.nfs, *args)
        # libnfs gives a request up when nobody listens while the server begins anew; a hard mount asks again.
        end = time.monotonic() + 20
        while name == "pread" and result == -errno.EFAULT and time.monotonic() < end:
            time.sleep(0.05)
            result = getattr(self.lib, "nfs_" + name)(self.nfs, *args)
        if result < 0:
            raise OSError(-result, self.lib.nfs_get_error(self.nfs).decode())
        return result

    def open(self, name, mode):
        flags = {"r": os.O_RDONLY, "w": os.O_RDWR | os.O_CREAT, "s": os.O_RDWR | os.O_CREAT | os.O_SYNC}[mode]
        create = ctypes.byref(self.file)
        if mode == "r":
            self._call("open", name.encode(), flags, create)
        else:
            self._call("open2", name.encode(), flags, 0o644, create)

    def write(self, offset, data):
        return self._call("pwrite", self.file, ctypes.c_uint64(offset), ctypes.c_uint64(len(data)), data)

    def flush(self):
        self._call("fsync", self.file)

    def read(self, offset, length):
        data = ctypes.create_string_buffer(length)
        count = self._call("pread", self.file, ctypes.c_uint64(offset), ctypes.c_uint64(length), data)
        return data.raw[:count]

    def close(self):
        self._call("close", self.file)

    def mkdir(self, name):
        self._call("mkdir", name.encode())

    def rename(self, old, new):
        self._call("rename", old.encode(), new.encode())

    def size(self, name):
        # struct nfs_stat_64: the size is the eighth number.
        stat = (ctypes.c_uint64 * 32)()
        self._call("stat64", name.encode(), stat)
        return stat[7]


class Smb:
    """SMB 3 by smbprotocol."""

    def __init__(self, host, share, user, password):
        import smbclient
        from smbprotocol.exceptions import EndOfFile

        self.lib = smbclient
        self.root = f"//{host}/{share}"
        self.end_of_file = EndOfFile
        self.file = None
        smbclient.reset_connection_cache(fail_on_error=False)
        smbclient.register_session(host, username=user, password=password, connection_timeout=10)

    def open(self, name, mode):
        if mode == "r":
            # Without buffer and without asking for a lease: each read is one READ.
            self.file = self.lib.open_file(self.root + name, "rb", buffering=0, share_access="rwd")
        else:
            there = self.lib.path.exists(self.root + name)
            self.file = self.lib.open_file(self.root + name, "rb+" if there else "xb+", buffering=0, share_access="rwd")

    def write(self, offset, data):
        self.file.seek(offset)
        return self.file.write(data)

    def flush(self):
        self.file.flush()
        self.file.fd.flush()

    def read(self, offset, length):
        # By the handle: the file object would look at the size from when it was opened.
        try:
            return self.file.fd.read(offset, length)
        except self.end_of_file:
            return b""

    def close(self):
        self.file.close()

    def mkdir(self, name):
        self.lib.mkdir(self.root + name)

    def rename(self, old, new):
        self.lib.rename(self.root + old, self.root + new)

    def size(self, name):
        return self.lib.stat(self.root + name).st_size


def serve(client, words):
    match words:
        case ["open", name, mode]:
            client.open(name, mode)
        case ["write", offset, data]:
            data = bytes.fromhex(data)
            count = client.write(int(offset), data)
            if count != len(data):
                raise OSError(errno.EIO, f"{count} of {len(data)} bytes written")
        case ["read", offset, length]:
            return client.read(int(offset), int(length)).hex()
        case ["size", name]:
            return client.size(name).to_bytes(8, "big").hex()
        case [("flush" | "close" | "mkdir" | "rename") as what, *names]:
            getattr(client, what)(*names)
        case _:
            raise ValueError(f"no such request: {words}")
    return ""


def main():
    kind, *args = sys.argv[1:]
    client = None
    for line in sys.stdin:
        try:
            # Connected by the first request, so that a refusal is an answer.
            client = client or {"nfs": Nfs, "smb": Smb}[kind](*args)
            answer = "ok " + serve(client, line.split())
        except Exception as e:
            number = getattr(e, "errno", None) or 0
            # With nothing open it connects again, should its server have gone.
            client = client if client and client.file else None
            answer = f"error {number} {' '.join(str(e).split())}"
        print(answer, flush=True)


main()
