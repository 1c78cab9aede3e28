"""File handles, as a server of a share uses them.

usage: handle.py take PATH         prints the handle of a file, in hexadecimal
       handle.py read MOUNT HANDLE prints the file's bytes, or the directory's names, found by nothing but its handle
"""

import ctypes
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
SIZE = 128


class Handle(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * SIZE)]


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


match sys.argv[1:]:
    case ["take", path]:
        handle, mount = Handle(SIZE), ctypes.c_int()
        at_fdcwd = -100
        checked(libc.name_to_handle_at(at_fdcwd, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
        print(handle.type.to_bytes(4, "big").hex() + bytes(handle.bytes[: handle.length]).hex())
    case ["read", mount, text]:
        raw = bytes.fromhex(text)
        handle = Handle(len(raw) - 4, int.from_bytes(raw[:4], "big"))
        ctypes.memmove(handle.bytes, raw[4:], len(raw) - 4)
        root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        file = checked(libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY))
        if stat.S_ISDIR(os.fstat(file).st_mode):
            print("\n".join(sorted(os.listdir(file))))
        else:
            sys.stdout.buffer.write(os.fdopen(file, "rb").read())
