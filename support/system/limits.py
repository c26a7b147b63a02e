"""What this process may use of its machine: cores and memory.

A batch system or a container grants a part of the machine, by affinity, by control
groups (cgroups) and by resource limits. Groups are nested: the tightest limit of all
groups up to the top one counts.
"""

import os
import pathlib

try:
    import resource
except ImportError:  # Not on this system.
    resource = None

# Files with a group's limit of memory [bytes]: version 2, version 1.
MEMORY_FILES = ('memory.max', 'memory.high', 'memory.limit_in_bytes')


def cores(root='/'):
    """Return how many cores this process may keep busy, at least 1.

    Args:
      root: folder that holds `proc` and `sys`.
    """
    if hasattr(os, 'sched_getaffinity'):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas = []
    for folder in _groups(root, 'cpu'):
        # Version 2 has quota and period in one file, 'max' for no quota.
        words = _read(folder / 'cpu.max').split()
        if not words:
            files = 'cpu.cfs_quota_us', 'cpu.cfs_period_us'
            words = [_read(folder / name).strip() for name in files]
        # Version 1 has the quota -1 where there is none.
        if len(words) == 2 and all(map(str.isdecimal, words)) and int(words[1]):
            quotas.append(int(words[0]) // int(words[1]))
    return max(1, min([allowed, *quotas]))


def count_cores():
    """Return the cores that this process may keep busy in words, as in '2 cores'."""
    count = cores()
    return f'{count} core{"s" * (count > 1)}'


def memory(root='/'):
    """Return how much memory this process may take [bytes]; 8 GiB if it is unknown.

    Args:
      root: folder that holds `proc` and `sys`.
    """
    limits = [
        int(text)
        for folder in _groups(root, 'memory')
        for name in MEMORY_FILES
        if (text := _read(folder / name).strip()).isdecimal()
    ]
    try:
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (AttributeError, OSError, ValueError):
        pass  # Not on this system.
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA) if resource else ():
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            limits.append(limit)
    return min(limits, default=2**33)


def _groups(root, controller):
    """Return folders of the control groups that this process is in, with those above
    them, for one controller.
    """
    root = pathlib.Path(root)
    paths = {}
    for line in _read(root / 'proc/self/cgroup').splitlines():
        # 'number:controllers:path'; version 2 has no controllers here.
        _, _, rest = line.partition(':')
        names, _, path = rest.partition(':')
        paths |= {name: path for name in names.split(',')}
    folders = []
    for line in _read(root / 'proc/self/mountinfo').splitlines():
        before, _, after = line.partition(' - ')
        kind, options = after.partition(' ')[0], after.rpartition(' ')[2]
        name = {'cgroup2': '', 'cgroup': controller}.get(kind)
        if name not in paths or name and name not in options.split(','):
            continue
        _, _, _, top, mount, *_ = before.split(' ')
        # A container may see a part of the tree only: then `top` is above its group,
        # or the group lies outside of what is mounted.
        inside = os.path.relpath(paths[name], top).split('/')
        folder = root / mount.lstrip('/')
        folders.append(folder)
        for part in inside if '..' not in inside else ():
            folder /= part
            folders.append(folder)
    return folders


def _read(path):
    """Return the text of a file, '' if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ''
