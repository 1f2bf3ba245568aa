"""Names of the system calls that can block, by number: what /proc/PID/syscall does not say.

Source: asm/unistd_64.h (x86-64) and asm-generic/unistd.h (aarch64) of Linux 6.1. Each entry of the table is
name:x86-64 number:aarch64 number:what says where it waits ("fd": argument 0 is a descriptor; "path0", "path1": that
argument points to a path).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_TABLE = """
read:0:63:fd write:1:64:fd open:2::path0 close:3:57:fd stat:4::path0 fstat:5:80:fd lstat:6::path0 poll:7::
mmap:9:222: mprotect:10:226: munmap:11:215: brk:12:214: rt_sigreturn:15:139: ioctl:16:29:fd pread64:17:67:fd
pwrite64:18:68:fd readv:19:65:fd writev:20:66:fd access:21::path0 pipe:22:: select:23:: sched_yield:24:124:
mremap:25:216: msync:26:227: madvise:28:233: shmat:30:196: pause:34:: nanosleep:35:101: connect:42:203:fd
accept:43:202:fd sendto:44:206:fd recvfrom:45:207:fd sendmsg:46:211:fd recvmsg:47:212:fd clone:56:220: fork:57::
vfork:58:: execve:59:221:path0 exit:60:93: wait4:61:260: semop:65:193: fcntl:72:25:fd flock:73:32:fd fsync:74:82:fd
fdatasync:75:83:fd truncate:76:45:path0 ftruncate:77:46:fd chdir:80:49:path0 rename:82::path0 mkdir:83::path0
rmdir:84::path0 creat:85::path0 link:86::path0 unlink:87::path0 symlink:88::path0 readlink:89::path0 chmod:90::path0
chown:92::path0 rt_sigtimedwait:128:137: rt_sigsuspend:130:133: mknod:133::path0 statfs:137:43:path0
fstatfs:138:44:fd mlock:149:228: munlock:150:229: sync:162:81: mount:165:40:path0 umount2:166:39:path0
init_module:175:105: delete_module:176:106: futex:202:98: io_getevents:208:4: getdents64:217:61:fd
restart_syscall:219:128: clock_nanosleep:230:115: exit_group:231:94: epoll_wait:232::fd mbind:237:235:
waitid:247:95: migrate_pages:256:238: openat:257:56:path1 mkdirat:258:34:path1 mknodat:259:33:path1
newfstatat:262:79:path1 unlinkat:263:35:path1 renameat:264:38:path1 linkat:265:37:path1 symlinkat:266:36:path1
readlinkat:267:78:path1 fchmodat:268:53:path1 faccessat:269:48:path1 pselect6:270:72: ppoll:271:73: splice:275:76:fd
sync_file_range:277:84:fd move_pages:279:239: utimensat:280:88:path1 epoll_pwait:281:22:fd fallocate:285:47:fd
accept4:288:242:fd preadv:295:69:fd pwritev:296:70:fd recvmmsg:299:243:fd syncfs:306:267:fd sendmmsg:307:269:fd
process_vm_readv:310:270: finit_module:313:273:fd getrandom:318:278: memfd_create:319:279: execveat:322:281:path1
membarrier:324:283: mlock2:325:284: copy_file_range:326:285:fd preadv2:327:286:fd pwritev2:328:287:fd
statx:332:291:path1 io_uring_enter:426:426:fd close_range:436:436: openat2:437:437:path1 faccessat2:439:439:path1
epoll_pwait2:441:441:fd futex_waitv:449:449:
"""


@dataclass(frozen=True)
class Syscall:
    """One system call: its name, and which argument names the file it works on (None: none does)."""

    name: str
    fd_argument: int | None = None
    path_argument: int | None = None


def _table(machine: str) -> dict[int, Syscall]:
    column = {"x86_64": 1, "aarch64": 2}.get(machine)
    calls = {}
    for fields in (entry.split(":") for entry in _TABLE.split()):
        if column is not None and fields[column]:
            path = int(fields[3][-1]) if fields[3].startswith("path") else None
            calls[int(fields[column])] = Syscall(fields[0], 0 if fields[3] == "fd" else None, path)
    return calls


_CALLS = _table(os.uname().machine)


def lookup(number: int, machine: str | None = None) -> Syscall:
    """Return system call NUMBER of MACHINE (default: this one); unknown ones are called "syscall N"."""
    calls = _CALLS if machine is None else _table(machine)
    return calls.get(number, Syscall(f"syscall {number}"))
