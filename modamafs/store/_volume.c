/*
 * _volume: the system calls that the store needs and Python 3.11 does not lend.
 *
 * No policy lives here. Every function is one step on the backing file system, relative to a
 * directory descriptor or by file handle, never by a path; names are bytes; errors are OSError.
 *
 * A node id is an inode number of the store. It is turned into a descriptor with
 * open_by_handle_at(2), whose handle is laid out by the file system:
 *
 *   ext4   type 1     { u32 ino, u32 generation }                  generation 0: any
 *   XFS    type 0x81  { u64 ino, u32 generation }                  generation from XFS_IOC_BULKSTAT
 *   btrfs  type 0x4d  { u64 ino, u64 subvolume, u32 generation }   generation 0: any
 *
 * Sources: open_by_handle_at(2), statx(2), setfsuid(2), capset(2); fs/ext4/namei.c,
 * fs/xfs/xfs_export.h, fs/btrfs/export.h, fs/xfs/libxfs/xfs_fs.h of Linux 6.18.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/stat.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#define EXT4_MAGIC 0xEF53
#define XFS_MAGIC 0x58465342
#define BTRFS_MAGIC 0x9123683E

#define HANDLE_EXT4 1
#define HANDLE_XFS 0x81
#define HANDLE_BTRFS 0x4d
#define HANDLE_MAX 128
#define LAST_SECOND 9223372036LL /* that 64 bits can say in nanoseconds */

enum kind { KIND_OTHER, KIND_EXT4, KIND_XFS, KIND_BTRFS };

/* XFS_IOC_BULKSTAT for one inode; see ioctl_xfs_bulkstat(2). */
struct bulkstat_one {
    uint64_t ino;
    uint32_t flags;
    uint32_t icount;
    uint32_t ocount;
    uint32_t agno;
    uint64_t reserved[5];
    struct {
        uint64_t ino;
        uint64_t unused_to_times[3];
        int64_t times[4];
        uint32_t generation;
        uint8_t rest[192 - 68];
    } inode;
};
#define BULKSTAT_HEADER 64
#define IOC_BULKSTAT _IOC(_IOC_READ, 'X', 127, BULKSTAT_HEADER)

union handle {
    struct file_handle header;
    unsigned char bytes[sizeof(struct file_handle) + HANDLE_MAX];
};

static PyTypeObject *attributes_type; /* modamafs.model.Attributes */

/* ---- the identity that a system call is made with ------------------------------------------ */

static struct __user_cap_data_struct own_capabilities[2];

#define FSETID_BIT (1u << CAP_FSETID)
#define OVERRIDES                                                                                  \
    ((1u << CAP_DAC_OVERRIDE) | (1u << CAP_DAC_READ_SEARCH) | (1u << CAP_FOWNER) | (1u << CAP_CHOWN) \
     | (1u << CAP_MKNOD))

static int set_capabilities(uint32_t low_effective)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct data[2] = {own_capabilities[0], own_capabilities[1]};

    data[0].effective = low_effective;
    return (int)syscall(SYS_capset, &header, data);
}

/*
 * Act as uid:gid on the file system: what is created belongs to them, quotas and reserved blocks
 * are theirs. The kernel has already decided that they may (default_permissions), with groups that
 * we don't know, so permission itself stays overridden. `keep_setid` keeps CAP_FSETID, without
 * which set-user-id and set-group-id bits are cleared as for an ordinary user.
 */
static int become(uid_t uid, gid_t gid, bool keep_setid)
{
    if (gid)
        setfsgid(gid);
    if (!uid && keep_setid)
        return 0;
    if (uid)
        setfsuid(uid); /* the kernel takes the file system capabilities away: give back our own */
    uint32_t wanted = own_capabilities[0].effective | (own_capabilities[0].permitted & OVERRIDES);
    if (!keep_setid)
        wanted &= ~FSETID_BIT;
    return set_capabilities(wanted);
}

/* An identity that can't be given back would act for the wrong person: better no worker at all. */
static void be_myself(uid_t uid, gid_t gid, bool kept_setid)
{
    int saved = errno;

    if (uid)
        setfsuid(0);
    if ((uid || !kept_setid) && set_capabilities(own_capabilities[0].effective))
        abort();
    if (gid)
        setfsgid(0);
    errno = saved;
}

/* ---- attributes ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    int root_fd; /* borrowed from Python: the store's root, open for reading */
    uint64_t dev;
    uint64_t root_ino;
    uint64_t subvolume; /* btrfs */
    enum kind kind;
} Volume;

static uint32_t load32(const unsigned char *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint64_t load64(const unsigned char *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint32_t handle_generation(const union handle *handle)
{
    switch (handle->header.handle_type) {
    case HANDLE_EXT4:
        return load32(handle->header.f_handle + 4);
    case HANDLE_XFS:
        return load32(handle->header.f_handle + 8);
    case HANDLE_BTRFS:
        return load32(handle->header.f_handle + 16);
    default:
        return 0;
    }
}

/* statx(2) and the generation of (dir_fd, name), or of dir_fd itself where name is "". */
static int fetch(const Volume *volume, int dir_fd, const char *name, struct statx *st,
                 uint32_t *generation)
{
    int flags = *name ? 0 : AT_EMPTY_PATH;

    if (statx(dir_fd, name, flags | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
              STATX_BASIC_STATS | STATX_BTIME, st))
        return -1;
    *generation = 0;
    if (volume->kind != KIND_OTHER) {
        union handle handle = {.header.handle_bytes = HANDLE_MAX};
        int mount_id;
        if (name_to_handle_at(dir_fd, name, &handle.header, &mount_id, flags)) {
            if (errno != EOPNOTSUPP)
                return -1; /* gone between the two calls, most likely */
        } else {
            *generation = handle_generation(&handle);
        }
    }
    return 0;
}

/* Since 1970, as an int of Python's: 64 bits end in the year 2262, ext4 and XFS do not. */
static PyObject *nanoseconds(const struct statx_timestamp *t)
{
    if (t->tv_sec > -LAST_SECOND && t->tv_sec < LAST_SECOND)
        return PyLong_FromLongLong(t->tv_sec * 1000000000LL + t->tv_nsec);
    PyObject *seconds = PyLong_FromLongLong(t->tv_sec), *billion = PyLong_FromLong(1000000000);
    PyObject *rest = PyLong_FromUnsignedLong(t->tv_nsec);
    PyObject *whole = seconds && billion ? PyNumber_Multiply(seconds, billion) : NULL;
    PyObject *sum = whole && rest ? PyNumber_Add(whole, rest) : NULL;
    Py_XDECREF(seconds);
    Py_XDECREF(billion);
    Py_XDECREF(rest);
    Py_XDECREF(whole);
    return sum;
}

static PyObject *build_attributes(const struct statx *st, uint32_t generation)
{
    PyObject *tuple = attributes_type->tp_alloc(attributes_type, 16);
    if (!tuple)
        return NULL;
    PyTuple_SET_ITEM(tuple, 0, PyLong_FromUnsignedLongLong(st->stx_ino));
    PyTuple_SET_ITEM(tuple, 1, PyLong_FromUnsignedLong(generation));
    PyTuple_SET_ITEM(tuple, 2, PyLong_FromUnsignedLong(st->stx_mode));
    PyTuple_SET_ITEM(tuple, 3, PyLong_FromUnsignedLong(st->stx_nlink));
    PyTuple_SET_ITEM(tuple, 4, PyLong_FromUnsignedLong(st->stx_uid));
    PyTuple_SET_ITEM(tuple, 5, PyLong_FromUnsignedLong(st->stx_gid));
    PyTuple_SET_ITEM(tuple, 6,
                     PyLong_FromUnsignedLongLong(makedev(st->stx_rdev_major, st->stx_rdev_minor)));
    PyTuple_SET_ITEM(tuple, 7, PyLong_FromUnsignedLongLong(st->stx_size));
    PyTuple_SET_ITEM(tuple, 8, PyLong_FromUnsignedLongLong(st->stx_blocks));
    PyTuple_SET_ITEM(tuple, 9, PyLong_FromUnsignedLong(st->stx_blksize));
    PyTuple_SET_ITEM(tuple, 10, nanoseconds(&st->stx_atime));
    PyTuple_SET_ITEM(tuple, 11, nanoseconds(&st->stx_mtime));
    PyTuple_SET_ITEM(tuple, 12, nanoseconds(&st->stx_ctime));
    PyTuple_SET_ITEM(tuple, 13,
                     st->stx_mask & STATX_BTIME ? nanoseconds(&st->stx_btime) : PyLong_FromLong(0));
    PyTuple_SET_ITEM(tuple, 14, PyBool_FromLong(!!(st->stx_attributes & STATX_ATTR_IMMUTABLE)));
    PyTuple_SET_ITEM(tuple, 15,
                     PyLong_FromUnsignedLongLong(makedev(st->stx_dev_major, st->stx_dev_minor)));
    for (int i = 0; i < 16; i++)
        if (!PyTuple_GET_ITEM(tuple, i)) {
            Py_DECREF(tuple);
            return NULL;
        }
    return tuple;
}

static PyObject *os_error(void)
{
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- Volume -------------------------------------------------------------------------------- */

static int Volume_init(Volume *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"root_fd", NULL};
    struct statfs fs;
    struct statx st;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i", names, &self->root_fd))
        return -1;
    if (fstatfs(self->root_fd, &fs)
        || statx(self->root_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st)) {
        os_error();
        return -1;
    }
    self->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
    self->root_ino = st.stx_ino;

    union handle handle = {.header.handle_bytes = HANDLE_MAX};
    int mount_id;
    bool handles = !name_to_handle_at(self->root_fd, "", &handle.header, &mount_id, AT_EMPTY_PATH);
    int type = handles ? handle.header.handle_type : -1;
    self->kind = KIND_OTHER;
    if (fs.f_type == EXT4_MAGIC && type == HANDLE_EXT4)
        self->kind = KIND_EXT4;
    else if (fs.f_type == XFS_MAGIC && type == HANDLE_XFS)
        self->kind = KIND_XFS;
    else if (fs.f_type == BTRFS_MAGIC && type == HANDLE_BTRFS) {
        self->kind = KIND_BTRFS;
        self->subvolume = load64(handle.header.f_handle + 8);
    }
    return 0;
}

static int xfs_generation(const Volume *self, uint64_t ino, uint32_t *generation)
{
    struct bulkstat_one request = {.ino = ino, .icount = 1};

    if (ioctl(self->root_fd, IOC_BULKSTAT, &request))
        return -1;
    if (request.ocount != 1 || request.inode.ino != ino) {
        errno = ESTALE; /* bulkstat answers with the next inode in use */
        return -1;
    }
    *generation = request.inode.generation;
    return 0;
}

static int open_inode(const Volume *self, uint64_t ino, int flags)
{
    union handle handle = {0};
    unsigned char *to = handle.header.f_handle;
    uint32_t low = (uint32_t)ino, generation = 0;

    switch (self->kind) {
    case KIND_EXT4:
        handle.header.handle_type = HANDLE_EXT4;
        handle.header.handle_bytes = 8;
        memcpy(to, &low, 4);
        break;
    case KIND_XFS:
        if (xfs_generation(self, ino, &generation))
            return -1;
        handle.header.handle_type = HANDLE_XFS;
        handle.header.handle_bytes = 12;
        memcpy(to, &ino, 8);
        memcpy(to + 8, &generation, 4);
        break;
    case KIND_BTRFS:
        handle.header.handle_type = HANDLE_BTRFS;
        handle.header.handle_bytes = 20;
        memcpy(to, &ino, 8);
        memcpy(to + 8, &self->subvolume, 8);
        break;
    case KIND_OTHER:
        errno = EOPNOTSUPP;
        return -1;
    }
    return open_by_handle_at(self->root_fd, &handle.header, flags | O_CLOEXEC);
}

PyDoc_STRVAR(Volume_open_doc,
"open(ino: int, flags: int) -> int\n\n"
"A new descriptor of the inode, also of one that has no name any more. OSError: ESTALE.");

static PyObject *Volume_open(Volume *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "open() takes ino and flags");
    uint64_t ino = PyLong_AsUnsignedLongLong(args[0]);
    long flags = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    int fd = open_inode(self, ino, (int)flags);
    if (fd < 0)
        return os_error();
    return PyLong_FromLong(fd);
}

PyDoc_STRVAR(Volume_attributes_doc,
"attributes(fd: int) -> Attributes\n\nThe attributes of what the descriptor (also O_PATH) names.");

static PyObject *Volume_attributes(Volume *self, PyObject *arg)
{
    struct statx st;
    uint32_t generation;
    long fd = PyLong_AsLong(arg);

    if (PyErr_Occurred())
        return NULL;
    if (fetch(self, (int)fd, "", &st, &generation))
        return os_error();
    return build_attributes(&st, generation);
}

PyDoc_STRVAR(Volume_attributes_of_doc,
"attributes_of(ino: int) -> Attributes\n\nThe attributes of an inode. OSError: ESTALE.");

static PyObject *Volume_attributes_of(Volume *self, PyObject *arg)
{
    struct statx st;
    uint32_t generation;
    uint64_t ino = PyLong_AsUnsignedLongLong(arg);

    if (PyErr_Occurred())
        return NULL;
    int fd = open_inode(self, ino, O_PATH);
    if (fd < 0)
        return os_error();
    int failed = fetch(self, fd, "", &st, &generation);
    int saved = errno;
    close(fd);
    if (failed) {
        errno = saved;
        return os_error();
    }
    return build_attributes(&st, generation);
}

PyDoc_STRVAR(Volume_getxattr_doc,
"getxattr(ino: int, name: bytes) -> bytes | None\n\n"
"The value of an extended attribute of any inode; None where it has none. OSError: ESTALE, ENOTSUP.");

static PyObject *Volume_getxattr(Volume *self, PyObject *const *args, Py_ssize_t count)
{
    char path[64], *name;
    static char value[65536]; /* XATTR_SIZE_MAX; used with the GIL held */

    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "getxattr() takes ino and name");
    uint64_t ino = PyLong_AsUnsignedLongLong(args[0]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[1], &name, NULL))
        return NULL;
    int fd = open_inode(self, ino, O_PATH);
    if (fd < 0)
        return os_error();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    long size = syscall(SYS_getxattr, path, name, value, sizeof value);
    int saved = errno;
    close(fd);
    if (size >= 0)
        return PyBytes_FromStringAndSize(value, size);
    if (saved == ENODATA)
        Py_RETURN_NONE;
    errno = saved;
    return os_error();
}

PyDoc_STRVAR(Volume_lookup_doc,
"lookup(dir_fd: int, name: bytes) -> Attributes | None\n\n"
"The attributes of an entry, not following a symbolic link; None where there is no such entry.");

static PyObject *Volume_lookup(Volume *self, PyObject *const *args, Py_ssize_t count)
{
    struct statx st;
    uint32_t generation;

    char *name;

    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "lookup() takes dir_fd and name");
    long dir_fd = PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[1], &name, NULL))
        return NULL;
    if (!*name)
        Py_RETURN_NONE;
    if (fetch(self, (int)dir_fd, name, &st, &generation)) {
        if (errno == ENOENT)
            Py_RETURN_NONE;
        return os_error();
    }
    return build_attributes(&st, generation);
}

struct dirent64 {
    uint64_t d_ino;
    int64_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};

/* For a method that takes fd, offset and size_bytes: puts the directory at its position, and lowers
 * `size`, which is that of the buffer, to what is asked for. False: an exception is set. */
static bool at_position(PyObject *const *args, Py_ssize_t count, const char *method, int *fd,
                        long *size)
{
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "%s() takes fd, offset and size_bytes", method);
        return false;
    }
    *fd = (int)PyLong_AsLong(args[0]);
    long long offset = PyLong_AsLongLong(args[1]);
    long asked = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return false;
    if (asked < 512)
        asked = 512;
    if (asked < *size)
        *size = asked;
    if (lseek(*fd, offset, SEEK_SET) < 0) {
        os_error();
        return false;
    }
    return true;
}

PyDoc_STRVAR(Volume_scan_doc,
"scan(fd: int, offset: int, size_bytes: int) -> list[tuple[bytes, int, Attributes]]\n\n"
"Entries of an open directory from the position `offset` (0, or the second field of an entry):\n"
"name, position after it, attributes. As many as getdents64(2) puts into size_bytes; an empty list\n"
"at the end. Entries that vanish meanwhile are left out.");

static PyObject *Volume_scan(Volume *self, PyObject *const *args, Py_ssize_t count)
{
    char buffer[65536] __attribute__((aligned(8)));

    int fd;
    long size = (long)sizeof buffer;
    if (!at_position(args, count, "scan", &fd, &size))
        return NULL;

    PyObject *entries = PyList_New(0);
    if (!entries)
        return NULL;
    while (PyList_GET_SIZE(entries) == 0) { /* again only if all of a batch has vanished */
        long got = syscall(SYS_getdents64, fd, buffer, (size_t)size);
        if (got < 0) {
            Py_DECREF(entries);
            return os_error();
        }
        if (got == 0)
            break;
        for (long at = 0; at < got;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            struct statx st;
            uint32_t generation;
            at += entry->d_reclen;
            if (fetch(self, fd, entry->d_name, &st, &generation))
                continue;
            PyObject *attributes = build_attributes(&st, generation);
            PyObject *item = attributes ? Py_BuildValue("(yLN)", entry->d_name,
                                                        (long long)entry->d_off, attributes)
                                        : NULL;
            if (!item || PyList_Append(entries, item)) {
                Py_XDECREF(item);
                Py_DECREF(entries);
                return NULL;
            }
            Py_DECREF(item);
        }
    }
    return entries;
}

PyDoc_STRVAR(Volume_names_doc,
"names(fd: int, offset: int, size_bytes: int) -> bytes\n\n"
"Entries of an open directory from a position on, without their attributes: the linux_dirent64 records\n"
"of getdents64(2), as many as it puts into size_bytes; none at the end.");

static PyObject *Volume_names(Volume *self, PyObject *const *args, Py_ssize_t count)
{
    char buffer[65536] __attribute__((aligned(8)));
    (void)self;

    int fd;
    long size = (long)sizeof buffer;
    if (!at_position(args, count, "names", &fd, &size))
        return NULL;
    long got = syscall(SYS_getdents64, fd, buffer, (size_t)size);
    return got < 0 ? os_error() : PyBytes_FromStringAndSize(buffer, got);
}

static PyObject *Volume_get_kind(Volume *self, void *closure)
{
    static const char *names[] = {"other", "ext4", "xfs", "btrfs"};
    (void)closure;
    return PyUnicode_FromString(names[self->kind]);
}

static PyObject *Volume_get_root_ino(Volume *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->root_ino);
}

static PyObject *Volume_get_dev(Volume *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->dev);
}

static PyMethodDef Volume_methods[] = {
    {"open", (PyCFunction)(void (*)(void))Volume_open, METH_FASTCALL, Volume_open_doc},
    {"attributes", (PyCFunction)Volume_attributes, METH_O, Volume_attributes_doc},
    {"attributes_of", (PyCFunction)Volume_attributes_of, METH_O, Volume_attributes_of_doc},
    {"getxattr", (PyCFunction)(void (*)(void))Volume_getxattr, METH_FASTCALL, Volume_getxattr_doc},
    {"lookup", (PyCFunction)(void (*)(void))Volume_lookup, METH_FASTCALL, Volume_lookup_doc},
    {"names", (PyCFunction)(void (*)(void))Volume_names, METH_FASTCALL, Volume_names_doc},
    {"scan", (PyCFunction)(void (*)(void))Volume_scan, METH_FASTCALL, Volume_scan_doc},
    {0},
};

static PyGetSetDef Volume_properties[] = {
    {"kind", (getter)Volume_get_kind, NULL, "ext4, xfs, btrfs, or other (no usable handles)", NULL},
    {"root_ino", (getter)Volume_get_root_ino, NULL, "the inode number of the store's root", NULL},
    {"dev", (getter)Volume_get_dev, NULL, "the device that the store's root lies on", NULL},
    {0},
};

static PyTypeObject Volume_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "modamafs.store._volume.Volume",
    .tp_doc = "Volume(root_fd: int): the file system that a store lies on.",
    .tp_basicsize = sizeof(Volume),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Volume_init,
    .tp_methods = Volume_methods,
    .tp_getset = Volume_properties,
};

/* ---- system calls as somebody ---------------------------------------------------------------- */

PyDoc_STRVAR(create_doc,
"create(dir_fd, name, flags, mode, uid, gid, umask) -> int\n\n"
"openat(2) with O_CREAT as uid:gid; the umask counts only where the directory has no default ACL.");

static PyObject *py_create(PyObject *self, PyObject *args)
{
    int dir_fd, flags;
    const char *name;
    unsigned mode, uid, gid, mask;
    (void)self;

    if (!PyArg_ParseTuple(args, "iyiIIII", &dir_fd, &name, &flags, &mode, &uid, &gid, &mask))
        return NULL;
    mode_t old = umask(mask);
    int fd = become(uid, gid, true) ? -1 : openat(dir_fd, name, flags | O_CLOEXEC, mode);
    be_myself(uid, gid, true);
    umask(old);
    return fd < 0 ? os_error() : PyLong_FromLong(fd);
}

PyDoc_STRVAR(mknod_doc,
"mknod(dir_fd, name, mode, rdev, uid, gid, umask) -> None\n\nmknodat(2), or mkdirat(2), as uid:gid.");

static PyObject *py_mknod(PyObject *self, PyObject *args)
{
    int dir_fd;
    const char *name;
    unsigned mode, uid, gid, mask;
    unsigned long long rdev;
    (void)self;

    if (!PyArg_ParseTuple(args, "iyIKIII", &dir_fd, &name, &mode, &rdev, &uid, &gid, &mask))
        return NULL;
    mode_t old = umask(mask);
    int failed = become(uid, gid, true);
    if (!failed)
        failed = S_ISDIR(mode) ? mkdirat(dir_fd, name, mode & 07777)
                               : mknodat(dir_fd, name, mode, (dev_t)rdev);
    be_myself(uid, gid, true);
    umask(old);
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(symlink_doc, "symlink(target, dir_fd, name, uid, gid) -> None\n\nsymlinkat(2) as uid:gid.");

static PyObject *py_symlink(PyObject *self, PyObject *args)
{
    int dir_fd;
    const char *target, *name;
    unsigned uid, gid;
    (void)self;

    if (!PyArg_ParseTuple(args, "yiyII", &target, &dir_fd, &name, &uid, &gid))
        return NULL;
    int failed = become(uid, gid, true) || symlinkat(target, dir_fd, name);
    be_myself(uid, gid, true);
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(truncate_doc,
"truncate(fd, size_bytes, uid, gid) -> None\n\n"
"ftruncate(2) as uid:gid: set-user-id bits and capabilities go, as they do for an ordinary user.");

static PyObject *py_truncate(PyObject *self, PyObject *args)
{
    int fd, failed;
    long long size;
    unsigned uid, gid;
    (void)self;

    if (!PyArg_ParseTuple(args, "iLII", &fd, &size, &uid, &gid))
        return NULL;
    Py_BEGIN_ALLOW_THREADS /* freeing a large file takes a while */
    failed = become(uid, gid, !uid) || ftruncate(fd, size);
    be_myself(uid, gid, !uid);
    Py_END_ALLOW_THREADS
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(write_doc,
"write(fd, data, offset, uid, gid) -> int\n\n"
"pwrite(2) as uid:gid: set-user-id bits and capabilities go, as they do for an ordinary user.");

static PyObject *py_write(PyObject *self, PyObject *args)
{
    int fd;
    Py_buffer data;
    long long offset;
    unsigned uid, gid;
    ssize_t wrote;
    (void)self;

    if (!PyArg_ParseTuple(args, "iy*LII", &fd, &data, &offset, &uid, &gid))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    wrote = become(uid, gid, !uid) ? -1 : pwrite(fd, data.buf, (size_t)data.len, offset);
    be_myself(uid, gid, !uid);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return wrote < 0 ? os_error() : PyLong_FromSsize_t(wrote);
}

PyDoc_STRVAR(fallocate_doc,
"fallocate(fd, mode, offset, length, uid, gid) -> None\n\nfallocate(2) as uid:gid, on quotas too.");

static PyObject *py_fallocate(PyObject *self, PyObject *args)
{
    int fd, mode, failed;
    long long offset, length;
    unsigned uid, gid;
    (void)self;

    if (!PyArg_ParseTuple(args, "iiLLII", &fd, &mode, &offset, &length, &uid, &gid))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = become(uid, gid, !uid) || fallocate(fd, mode, offset, length);
    be_myself(uid, gid, !uid);
    Py_END_ALLOW_THREADS
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ioctl_as_doc,
"ioctl_as(fd, request, argument: bytearray, uid, gid) -> int\n\n"
"ioctl(2) as uid:gid and without CAP_FSETID, which is what a backing file that is registered now will\n"
"act as later: set-user-id bits go with a write, whoever writes.");

static PyObject *py_ioctl_as(PyObject *self, PyObject *args)
{
    int fd;
    unsigned long request;
    unsigned uid, gid;
    Py_buffer argument;
    (void)self;

    if (!PyArg_ParseTuple(args, "ikw*II", &fd, &request, &argument, &uid, &gid))
        return NULL;
    int result = become(uid, gid, false) ? -1 : ioctl(fd, request, argument.buf);
    be_myself(uid, gid, false);
    PyBuffer_Release(&argument);
    return result < 0 ? os_error() : PyLong_FromLong(result);
}

PyDoc_STRVAR(setxattr_as_doc,
"setxattr_as(fd, name, value, flags, uid, gid, keep_setid) -> None\n\n"
"setxattr(2) on a descriptor (also O_PATH) as uid:gid. An ACL that is set without keep_setid clears\n"
"the set-group-id bit of a file whose group the caller is not in.");

static PyObject *py_setxattr_as(PyObject *self, PyObject *args)
{
    int fd, flags, keep_setid;
    const char *name;
    Py_buffer value;
    unsigned uid, gid;
    char path[64];
    (void)self;

    if (!PyArg_ParseTuple(args, "iyy*iIIp", &fd, &name, &value, &flags, &uid, &gid, &keep_setid))
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int failed = become(uid, gid, keep_setid);
    if (!failed)
        failed = (int)syscall(SYS_setxattr, path, name, value.buf, (size_t)value.len, flags);
    be_myself(uid, gid, keep_setid);
    PyBuffer_Release(&value);
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(exists_doc,
"exists(dir_fd, path) -> bool\n\n"
"Whether there is such a path. OSError where that can't be told (EIO, ENOMEM, …).");

static PyObject *py_exists(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    char *path;
    (void)self;

    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "exists() takes dir_fd and path");
    long dir_fd = PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[1], &path, NULL))
        return NULL;
    if (!faccessat((int)dir_fd, path, F_OK, 0))
        Py_RETURN_TRUE;
    if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG)
        Py_RETURN_FALSE;
    return os_error();
}

PyDoc_STRVAR(rename_doc,
"rename(dir_fd, name, new_dir_fd, new_name, flags) -> None\n\nrenameat2(2).");

static PyObject *py_rename(PyObject *self, PyObject *args)
{
    int dir_fd, new_dir_fd;
    const char *name, *new_name;
    unsigned flags;
    (void)self;

    if (!PyArg_ParseTuple(args, "iyiyI", &dir_fd, &name, &new_dir_fd, &new_name, &flags))
        return NULL;
    if (renameat2(dir_fd, name, new_dir_fd, new_name, flags))
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(link_doc, "link(fd, dir_fd, name) -> None\n\nlinkat(2) of a descriptor (AT_EMPTY_PATH).");

static PyObject *py_link(PyObject *self, PyObject *args)
{
    int fd, dir_fd;
    const char *name;
    (void)self;

    if (!PyArg_ParseTuple(args, "iiy", &fd, &dir_fd, &name))
        return NULL;
    if (linkat(fd, "", dir_fd, name, AT_EMPTY_PATH))
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(chown_doc,
"chown(fd, uid, gid) -> None\n\nfchownat(2) of a descriptor (also O_PATH); 0xffffffff leaves one as it is.");

static PyObject *py_chown(PyObject *self, PyObject *args)
{
    int fd;
    unsigned uid, gid;
    (void)self;

    if (!PyArg_ParseTuple(args, "iII", &fd, &uid, &gid))
        return NULL;
    if (fchownat(fd, "", uid, gid, AT_EMPTY_PATH))
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(utimens_doc,
"utimens(fd, atime_ns: int | None, mtime_ns: int | None) -> None\n\n"
"utimensat(2) of a descriptor (also O_PATH); None leaves a time as it is.");

static int timespec_from(PyObject *value, struct timespec *to)
{
    if (value == Py_None) {
        *to = (struct timespec){.tv_nsec = UTIME_OMIT};
        return 0;
    }
    PyObject *billion = PyLong_FromLong(1000000000);
    PyObject *parts = billion ? PyNumber_Divmod(value, billion) : NULL;
    if (parts) {
        to->tv_sec = PyLong_AsLongLong(PyTuple_GET_ITEM(parts, 0));
        to->tv_nsec = PyLong_AsLong(PyTuple_GET_ITEM(parts, 1));
    }
    Py_XDECREF(billion);
    Py_XDECREF(parts);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *py_utimens(PyObject *self, PyObject *args)
{
    int fd;
    PyObject *atime, *mtime;
    struct timespec times[2];
    (void)self;

    if (!PyArg_ParseTuple(args, "iOO", &fd, &atime, &mtime) || timespec_from(atime, &times[0])
        || timespec_from(mtime, &times[1]))
        return NULL;
    if (syscall(SYS_utimensat, fd, "", times, AT_EMPTY_PATH))
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(syncfs_doc,
"syncfs(fd: int) -> None\n\nsyncfs(2): write the descriptor's whole file system to the disk.");

static PyObject *py_syncfs(PyObject *self, PyObject *arg)
{
    int fd = (int)PyLong_AsLong(arg);
    int failed;
    (void)self;

    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = syncfs(fd);
    Py_END_ALLOW_THREADS
    if (failed)
        return os_error();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(drop_capability_doc,
"drop_capability(number: int) -> None\n\nGive one capability up, for good, in the calling thread.");

static PyObject *py_drop_capability(PyObject *self, PyObject *arg)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    long number = PyLong_AsLong(arg);
    (void)self;

    if (PyErr_Occurred())
        return NULL;
    if (number < 0 || number >= 64)
        return PyErr_Format(PyExc_ValueError, "there is no capability %ld", number);
    uint32_t bit = ~(1u << (number % 32));
    own_capabilities[number / 32].effective &= bit;
    own_capabilities[number / 32].permitted &= bit;
    if (syscall(SYS_capset, &header, own_capabilities))
        return os_error();
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"create", py_create, METH_VARARGS, create_doc},
    {"mknod", py_mknod, METH_VARARGS, mknod_doc},
    {"symlink", py_symlink, METH_VARARGS, symlink_doc},
    {"write", py_write, METH_VARARGS, write_doc},
    {"truncate", py_truncate, METH_VARARGS, truncate_doc},
    {"fallocate", py_fallocate, METH_VARARGS, fallocate_doc},
    {"ioctl_as", py_ioctl_as, METH_VARARGS, ioctl_as_doc},
    {"setxattr_as", py_setxattr_as, METH_VARARGS, setxattr_as_doc},
    {"exists", (PyCFunction)(void (*)(void))py_exists, METH_FASTCALL, exists_doc},
    {"rename", py_rename, METH_VARARGS, rename_doc},
    {"link", py_link, METH_VARARGS, link_doc},
    {"chown", py_chown, METH_VARARGS, chown_doc},
    {"utimens", py_utimens, METH_VARARGS, utimens_doc},
    {"syncfs", py_syncfs, METH_O, syncfs_doc},
    {"drop_capability", py_drop_capability, METH_O, drop_capability_doc},
    {0},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "modamafs.store._volume",
    .m_doc = "The system calls that the store needs and Python does not lend.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__volume(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};

    _Static_assert(sizeof(struct bulkstat_one) == BULKSTAT_HEADER + 192, "ioctl_xfs_bulkstat(2)");
    if (syscall(SYS_capget, &header, own_capabilities))
        return os_error();
    PyObject *model = PyImport_ImportModule("modamafs.model");
    if (!model)
        return NULL;
    attributes_type = (PyTypeObject *)PyObject_GetAttrString(model, "Attributes");
    Py_DECREF(model);
    if (!attributes_type || PyType_Ready(&Volume_type))
        return NULL;
    PyObject *self = PyModule_Create(&module);
    if (self && PyModule_AddObjectRef(self, "Volume", (PyObject *)&Volume_type)) {
        Py_DECREF(self);
        return NULL;
    }
    return self;
}
